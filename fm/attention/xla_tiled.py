"""Attention by tiles of whole rows of scores: the fast way on a CPU.

A tile is a few heads of a few batch rows, a block of queries and every key these may see: as many
scores as stay in cache, softmaxed at once. It avoids what a CPU is slow at. Memory touched for the
first time: weights are computed again in the backward pass, not kept. Products with a transposed
left side: the backward pass works on scores turned round. Products in 16 bits: all is float32.

Within a tile: N heads times batch rows, M positions, R = M x H / K queries that share a key head,
T keys.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fm.attention.mask import Mask

# Scores of a tile: 1 MiB of float32 on a CPU; elsewhere the fewer steps the better.
_HELD = 2**18
_HELD_ELSEWHERE = 2**26
# As many scores as this in all, 4 MiB, are one tile: a loop costs more than leaving the cache.
_ONE_TILE = 2**20
# Most positions of a tile, and rows wanted of one. Fewer make products slow, more compute what a
# causal mask hides.
_ROWS = 128
# The most parts of the queries whose keys are cut to what they see; each is a loop of its own.
_PARTS = 8
_MASKED = -1e30

_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


class _Part(NamedTuple):
    """Blocks `first` to `last` of queries see no other keys than `low` to `high`."""

    first: int
    last: int
    low: int
    high: int


class _Tiles(NamedTuple):
    """How the work is cut, all of it static: batch rows, key heads and positions of a tile."""

    batch: int
    heads: int
    positions: int
    parts: tuple[_Part, ...]


def attend(
    q_BLHC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKC: jax.Array,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None,
) -> jax.Array:
    """Same contract as the reference; memory linear in L and in S."""
    B, L, H, C = q_BLHC.shape
    S, K = k_BSKC.shape[1:3]
    tiles = _cut(mask, (B, L, H), S, K)
    over = -L % tiles.positions
    mask = jax.tree.map(lambda x: jnp.broadcast_to(x, (B, *x.shape[1:])), mask)
    if mask.q_segments is not None:
        mask = dataclasses.replace(mask, q_segments=jnp.pad(mask.q_segments, ((0, 0), (0, over))))
    q_BLHC = jnp.pad(q_BLHC, ((0, 0), (0, over), (0, 0), (0, 0)))
    q_BLKGC = q_BLHC.reshape(B, L + over, K, H // K, C)
    o_BLKGC: jax.Array = _attend(q_BLKGC, k_BSKC, v_BSKC, mask, scale, softcap, tiles)
    return o_BLKGC.reshape(B, L + over, H, C)[:, :L]


def _cut(mask: Mask, shape: tuple[int, int, int], S: int, K: int) -> _Tiles:
    """Tiles for queries [B, L, H, C]: all heads before a second batch row."""
    B, L, H = shape
    G = H // K
    held = _HELD if jax.default_backend() == "cpu" else _HELD_ELSEWHERE
    if B * H * L * S <= _ONE_TILE:
        held = _ONE_TILE
    blocks = -(-L // min(_ROWS, max(held // (G * S), -(-_ROWS // G))))
    M = -(-L // blocks)
    fitting = held // (G * M * S)
    heads = _divisor(K, fitting)
    batch = _divisor(B, fitting // K)
    parts: list[_Part] = []
    number = min(_PARTS, blocks)
    edges = [blocks * part // number for part in range(number + 1)]
    for first, last in itertools.pairwise(edges):
        low, high = mask.key_range(first * M, min(last * M, L) - first * M, S)
        low = min(low, S - 1)
        high = max(high, low + 1)  # one key even where none is seen: the mask hides it
        if parts and parts[-1][2:] == (low, high):
            first = parts.pop().first
        parts.append(_Part(first, last, low, high))
    return _Tiles(batch, heads, M, tuple(parts))


def _divisor(number: int, most: int) -> int:
    """The largest divisor up to `most`, 1 at least."""
    return next(size for size in range(max(1, min(number, most)), 0, -1) if number % size == 0)


class _Place(NamedTuple):
    """Where a tile lies: indices of its first batch row, key head and block of queries."""

    b: jax.Array
    h: jax.Array
    block: jax.Array | int = 0


def _bits(x):
    """16-bit floats as integers: to take or put a part XLA:CPU would convert whole arrays."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype.itemsize == 2 else x


def _take(x, starts, sizes):
    """A part of an array, float32."""
    part = jax.lax.dynamic_slice(_bits(x), starts, sizes)
    return jax.lax.bitcast_convert_type(part, x.dtype).astype(jnp.float32)


def _room(like):
    """An array of such bits to be filled."""
    return _bits(jnp.zeros_like(like))


def _starts(tiles, B, K):
    """The places of all groups: tiles that differ in their queries alone."""
    b, h = jnp.meshgrid(jnp.arange(0, B, tiles.batch), jnp.arange(0, K, tiles.heads), indexing="ij")
    return _Place(b.ravel(), h.ravel(), jnp.zeros(b.size, jnp.int32))


def _keys(x_BSKC, tiles, at):
    """A group's keys or values, float32 [N, S, C]."""
    _, S, _, C = x_BSKC.shape
    x = _take(x_BSKC, (at.b, 0, at.h, 0), (tiles.batch, S, tiles.heads, C))
    return x.swapaxes(1, 2).reshape(-1, S, C)


def _put_keys(bits_BSKC, value_NSC, dtype, tiles, at):
    _, S, _, C = bits_BSKC.shape
    value = _bits(value_NSC.astype(dtype)).reshape(tiles.batch, tiles.heads, S, C).swapaxes(1, 2)
    return jax.lax.dynamic_update_slice(bits_BSKC, value, (at.b, 0, at.h, 0))


def _queries(x_BLKGC, tiles, at):
    """A tile's queries or what goes with them, float32 [N, R, C]."""
    G, C = x_BLKGC.shape[3:]
    sizes = (tiles.batch, tiles.positions, tiles.heads, G, C)
    first = at.block * tiles.positions
    x = _take(x_BLKGC, (at.b, first, at.h, 0, 0), sizes).transpose(0, 2, 3, 1, 4)
    return x.reshape(tiles.batch * tiles.heads, G * tiles.positions, C)


def _put_queries(bits_BLKGC, value_NRC, dtype, tiles, at):
    G, C = bits_BLKGC.shape[3:]
    value = _bits(value_NRC.astype(dtype)).reshape(tiles.batch, tiles.heads, G, tiles.positions, C)
    value = value.transpose(0, 3, 1, 2, 4)
    first = at.block * tiles.positions
    return jax.lax.dynamic_update_slice(bits_BLKGC, value, (at.b, first, at.h, 0, 0))


def _rows(x_BKGL, tiles, at):
    """A figure for each of a tile's rows: [N, 1, R]."""
    G, M = x_BKGL.shape[2], tiles.positions
    sizes = (tiles.batch, tiles.heads, G, M)
    return jax.lax.dynamic_slice(x_BKGL, (at.b, at.h, 0, at.block * M), sizes).reshape(-1, 1, G * M)


def _put_rows(x_BKGL, value_NR1, tiles, at):
    M = tiles.positions
    value = value_NR1.reshape(tiles.batch, tiles.heads, -1, M)
    return jax.lax.dynamic_update_slice(x_BKGL, value, (at.b, at.h, 0, at.block * M))


def _bias(mask, tiles, part, at, G):
    """0 where a key is seen, else hugely negative: [1 or N, R, T], or None where all are."""
    if mask.is_full():
        return None
    M, T = tiles.positions, part.high - part.low
    own = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, at.b, tiles.batch), mask)
    seen_bMT = own.tile(at.block * M, part.low, M, T).visible(M, T)
    bias_bRT = jnp.tile(jnp.where(seen_bMT, 0.0, _MASKED), (1, G, 1))
    return bias_bRT if len(bias_bRT) == 1 else jnp.repeat(bias_bRT, tiles.heads, axis=0)


def _capped(scores, bias, softcap):
    """Scores with softcap and mask, and their slope by what came in."""
    slope = None
    if softcap is not None:
        capped = jnp.tanh(scores / softcap)
        scores, slope = softcap * capped, 1.0 - capped**2
    return scores if bias is None else scores + bias, slope


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(q_BLKGC, k_BSKC, v_BSKC, mask, scale, softcap, tiles):
    return _forward(q_BLKGC, k_BSKC, v_BSKC, mask, scale, softcap, tiles)[0]


def _forward(q_BLKGC, k_BSKC, v_BSKC, mask, scale, softcap, tiles):
    dtype = q_BLKGC.dtype
    B, L, K, G, _ = q_BLKGC.shape

    def group(results, start):
        k_NSC, v_NSC = _keys(k_BSKC, tiles, start), _keys(v_BSKC, tiles, start)

        def tile(part, k_NTC, v_NTC, results, block):
            at = start._replace(block=block)
            q_NRC = _queries(q_BLKGC, tiles, at) * scale
            bias = _bias(mask, tiles, part, at, G)
            scores, _ = _capped(_product("nrc,ntc->nrt", q_NRC, k_NTC), bias, softcap)
            # Above the bias, so that a row that sees nothing has weights of zero.
            top = jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), 0.5 * _MASKED)
            weights = jnp.exp(scores - top)
            total = jnp.sum(weights, axis=-1, keepdims=True)
            inverse = jnp.where(total == 0.0, 0.0, 1.0 / total)
            o_NRC = _product("nrt,ntc->nrc", weights, v_NTC) * inverse
            o_BLKGC, top_BKGL, inverse_BKGL = results
            return (
                _put_queries(o_BLKGC, o_NRC, dtype, tiles, at),
                _put_rows(top_BKGL, top, tiles, at),
                _put_rows(inverse_BKGL, inverse, tiles, at),
            ), None

        for part in tiles.parts:
            seen = slice(part.low, part.high)
            step = functools.partial(tile, part, k_NSC[:, seen], v_NSC[:, seen])
            results, _ = jax.lax.scan(step, results, jnp.arange(part.first, part.last))
        return results, None

    rows = jnp.zeros((B, K, G, L), jnp.float32)
    results = _room(q_BLKGC), rows, rows
    (o_BLKGC, top_BKGL, inverse_BKGL), _ = jax.lax.scan(group, results, _starts(tiles, B, K))
    o_BLKGC = jax.lax.bitcast_convert_type(o_BLKGC, dtype)
    return o_BLKGC, (q_BLKGC, k_BSKC, v_BSKC, mask, o_BLKGC, top_BKGL, inverse_BKGL)


def _backward(scale, softcap, tiles, kept, do_BLKGC):
    q_BLKGC, k_BSKC, v_BSKC, mask, o_BLKGC, top_BKGL, inverse_BKGL = kept
    B, _, K, G, _ = q_BLKGC.shape

    def group(results, start):
        dq_BLKGC, dk_BSKC, dv_BSKC = results
        k_NSC, v_NSC = _keys(k_BSKC, tiles, start), _keys(v_BSKC, tiles, start)

        def tile(part, k_NTC, v_NTC, sums, block):
            dq_BLKGC, dk_NTC, dv_NTC = sums
            at = start._replace(block=block)
            q, o, do = (_queries(x, tiles, at) for x in (q_BLKGC, o_BLKGC, do_BLKGC))
            q, do = q * scale, do * _rows(inverse_BKGL, tiles, at).swapaxes(1, 2)
            # d softmax: p * (dp - sum(p dp)), and sum(p dp) = sum(o do) (Dao et al. 2022, eq. 4).
            shift = jnp.sum(o * do, axis=-1)[:, None, :]
            bias = _bias(mask, tiles, part, at, G)
            bias = None if bias is None else bias.swapaxes(1, 2)
            scores, slope = _capped(_product("ntc,nrc->ntr", k_NTC, q), bias, softcap)
            weights = jnp.exp(scores - _rows(top_BKGL, tiles, at))
            ds = weights * (_product("ntc,nrc->ntr", v_NTC, do) - shift)
            if slope is not None:
                ds = ds * slope
            dq_NRC = _product("ntc,ntr->ncr", k_NTC, ds).swapaxes(1, 2) * scale
            return (
                _put_queries(dq_BLKGC, dq_NRC, q_BLKGC.dtype, tiles, at),
                dk_NTC + _product("ntr,nrc->ntc", ds, q),
                dv_NTC + _product("ntr,nrc->ntc", weights, do),
            ), None

        dk_NSC, dv_NSC = jnp.zeros_like(k_NSC), jnp.zeros_like(v_NSC)
        for part in tiles.parts:
            seen = slice(part.low, part.high)
            step = functools.partial(tile, part, k_NSC[:, seen], v_NSC[:, seen])
            sums = dq_BLKGC, dk_NSC[:, seen], dv_NSC[:, seen]
            sums, _ = jax.lax.scan(step, sums, jnp.arange(part.first, part.last))
            dq_BLKGC = sums[0]
            dk_NSC, dv_NSC = dk_NSC.at[:, seen].set(sums[1]), dv_NSC.at[:, seen].set(sums[2])
        dk_BSKC = _put_keys(dk_BSKC, dk_NSC, k_BSKC.dtype, tiles, start)
        dv_BSKC = _put_keys(dv_BSKC, dv_NSC, v_BSKC.dtype, tiles, start)
        return (dq_BLKGC, dk_BSKC, dv_BSKC), None

    given = q_BLKGC, k_BSKC, v_BSKC
    results = tuple(_room(x) for x in given)
    results, _ = jax.lax.scan(group, results, _starts(tiles, B, K))
    pairs = zip(results, given, strict=True)
    return *(jax.lax.bitcast_convert_type(bits, x.dtype) for bits, x in pairs), None


_attend.defvjp(_forward, _backward)
