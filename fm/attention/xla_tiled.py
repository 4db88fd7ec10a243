"""Attention by tiles of full rows of scores: the fastest implementation on CPU.

A tile is a few heads of a few batch rows, a block of queries and every key they may see: as many
scores as fit in cache, one softmax each. It avoids what is slow on a CPU: first-touched memory
(weights are recomputed in the backward pass, not saved), products with a transposed left side
(the backward pass works on transposed scores) and 16-bit products (everything is float32).

Within a tile: N heads times batch rows, M positions, R = M x H / K queries per key head, T keys.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fm.attention.mask import Mask
from fm.attention.row_max import row_max
from fm.parallel.mesh import default_device

# Scores of a tile: 1 MiB of float32 on a CPU; elsewhere fewer, larger steps are faster.
_TILE_SCORES = 2**18
_TILE_SCORES_ACCELERATOR = 2**26
# Up to this many scores in all, 4 MiB, are one tile: a loop costs more than missing the cache.
_SINGLE_TILE_SCORES = 2**20
# Positions in a tile, and rows at which one is large enough. With fewer, products are slow; with
# more, more is computed that a causal mask hides.
_TILE_ROWS = 128
# The queries are split into at most this many spans, each a loop over only the keys it sees.
_MAX_SPANS = 8
_MASKED = -1e30

_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


class _QuerySpan(NamedTuple):
    """Query blocks `first` to `last`, which see no keys outside `low` to `high`."""

    first: int
    last: int
    low: int
    high: int


class _Tiling(NamedTuple):
    """Sizes of a tile (batch rows, key heads, positions) and the query spans; all static."""

    batch: int
    heads: int
    positions: int
    spans: tuple[_QuerySpan, ...]


class _TileIndex(NamedTuple):
    """Indices of a tile's first batch row, first key head and block of queries."""

    b: jax.Array
    h: jax.Array
    block: jax.Array | int = 0


def attend(
    q_BLHC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKC: jax.Array,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None,
) -> jax.Array:
    """Returns attention o_BLHC, computed by tiles of queries; memory is linear in L and in S."""
    B, L, H, C = q_BLHC.shape
    S, K = k_BSKC.shape[1:3]
    tiling = _make_tiling(mask, (B, L, H), S, K)
    pad = -L % tiling.positions
    mask = jax.tree.map(lambda x: jnp.broadcast_to(x, (B, *x.shape[1:])), mask)
    if mask.q_segments is not None:
        mask = dataclasses.replace(mask, q_segments=jnp.pad(mask.q_segments, ((0, 0), (0, pad))))
    q_BLHC = jnp.pad(q_BLHC, ((0, 0), (0, pad), (0, 0), (0, 0)))
    q_BLKGC = q_BLHC.reshape(B, L + pad, K, H // K, C)
    o_BLKGC: jax.Array = _attend(q_BLKGC, k_BSKC, v_BSKC, mask, scale, softcap, tiling)
    return o_BLKGC.reshape(B, L + pad, H, C)[:, :L]


def _make_tiling(mask: Mask, shape: tuple[int, int, int], S: int, K: int) -> _Tiling:
    """Tiles for queries of [B, L, H]: all heads before a second batch row."""
    B, L, H = shape
    G = H // K
    max_scores = _TILE_SCORES if default_device().platform == "cpu" else _TILE_SCORES_ACCELERATOR
    if B * H * L * S <= _SINGLE_TILE_SCORES:
        max_scores = _SINGLE_TILE_SCORES
    blocks = -(-L // min(_TILE_ROWS, max(max_scores // (G * S), -(-_TILE_ROWS // G))))
    M = -(-L // blocks)
    max_batch_heads = max_scores // (G * M * S)
    heads = _largest_divisor(K, max_batch_heads)
    batch = _largest_divisor(B, max_batch_heads // K)
    spans: list[_QuerySpan] = []
    number = min(_MAX_SPANS, blocks)
    edges = [blocks * span // number for span in range(number + 1)]
    for first, last in itertools.pairwise(edges):
        low, high = mask.key_range(first * M, min(last * M, L) - first * M, S)
        low = min(low, S - 1)
        high = max(high, low + 1)  # one key even where none is visible: the mask hides it
        if spans and spans[-1][2:] == (low, high):
            first = spans.pop().first
        spans.append(_QuerySpan(first, last, low, high))
    return _Tiling(batch, heads, M, tuple(spans))


def _largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` up to `limit`, at least 1."""
    return next(size for size in range(max(1, min(number, limit)), 0, -1) if number % size == 0)


def _bits(x):
    """16-bit floats as integers: XLA:CPU would convert whole arrays to slice or update one."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype.itemsize == 2 else x


def _slice_float32(x, starts, sizes):
    part = jax.lax.dynamic_slice(_bits(x), starts, sizes)
    return jax.lax.bitcast_convert_type(part, x.dtype).astype(jnp.float32)


def _zero_bits(like):
    return _bits(jnp.zeros_like(like))


def _group_indices(tiling, B, K):
    """The first tile of every group of tiles that differ in their queries only."""
    b, h = jnp.meshgrid(
        jnp.arange(0, B, tiling.batch), jnp.arange(0, K, tiling.heads), indexing="ij"
    )
    return _TileIndex(b.ravel(), h.ravel(), jnp.zeros(b.size, jnp.int32))


def _load_keys(x_BSKC, tiling, at):
    """A group's keys or values, float32 [N, S, C]."""
    _, S, _, C = x_BSKC.shape
    x = _slice_float32(x_BSKC, (at.b, 0, at.h, 0), (tiling.batch, S, tiling.heads, C))
    return x.swapaxes(1, 2).reshape(-1, S, C)


def _store_keys(bits_BSKC, value_NSC, dtype, tiling, at):
    _, S, _, C = bits_BSKC.shape
    value = _bits(value_NSC.astype(dtype)).reshape(tiling.batch, tiling.heads, S, C).swapaxes(1, 2)
    return jax.lax.dynamic_update_slice(bits_BSKC, value, (at.b, 0, at.h, 0))


def _load_queries(x_BLKGC, tiling, at):
    """A tile's part of queries, outputs or their gradients, float32 [N, R, C]."""
    G, C = x_BLKGC.shape[3:]
    sizes = (tiling.batch, tiling.positions, tiling.heads, G, C)
    first = at.block * tiling.positions
    x = _slice_float32(x_BLKGC, (at.b, first, at.h, 0, 0), sizes).transpose(0, 2, 3, 1, 4)
    return x.reshape(tiling.batch * tiling.heads, G * tiling.positions, C)


def _store_queries(bits_BLKGC, value_NRC, dtype, tiling, at):
    G, C = bits_BLKGC.shape[3:]
    sizes = (tiling.batch, tiling.heads, G, tiling.positions, C)
    value = _bits(value_NRC.astype(dtype)).reshape(sizes).transpose(0, 3, 1, 2, 4)
    first = at.block * tiling.positions
    return jax.lax.dynamic_update_slice(bits_BLKGC, value, (at.b, first, at.h, 0, 0))


def _load_row_values(x_BKGL, tiling, at):
    """One value per row of a tile, [N, 1, R]."""
    G, M = x_BKGL.shape[2], tiling.positions
    sizes = (tiling.batch, tiling.heads, G, M)
    return jax.lax.dynamic_slice(x_BKGL, (at.b, at.h, 0, at.block * M), sizes).reshape(-1, 1, G * M)


def _store_row_values(x_BKGL, value_NR1, tiling, at):
    M = tiling.positions
    value = value_NR1.reshape(tiling.batch, tiling.heads, -1, M)
    return jax.lax.dynamic_update_slice(x_BKGL, value, (at.b, at.h, 0, at.block * M))


def _mask_bias(mask, tiling, span, at, G):
    """[1 or N, R, T]: 0 where a key is visible, else -1e30; None if all keys are visible."""
    if mask.is_full():
        return None
    M, T = tiling.positions, span.high - span.low
    rows = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, at.b, tiling.batch), mask)
    visible_bMT = rows.tile(at.block * M, span.low, M, T).materialize(M, T)
    bias_bRT = jnp.tile(jnp.where(visible_bMT, 0.0, _MASKED), (1, G, 1))
    return bias_bRT if len(bias_bRT) == 1 else jnp.repeat(bias_bRT, tiling.heads, axis=0)


def _cap_and_mask(scores, bias, softcap):
    """Final scores, and their derivative by the uncapped ones (None if uncapped)."""
    softcap_grad = None
    if softcap is not None:
        capped = jnp.tanh(scores / softcap)
        scores, softcap_grad = softcap * capped, 1.0 - capped**2
    return scores if bias is None else scores + bias, softcap_grad


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(q_BLKGC, k_BSKC, v_BSKC, mask, scale, softcap, tiling):
    return _forward(q_BLKGC, k_BSKC, v_BSKC, mask, scale, softcap, tiling)[0]


def _forward(q_BLKGC, k_BSKC, v_BSKC, mask, scale, softcap, tiling):
    dtype = q_BLKGC.dtype
    B, L, K, G, _ = q_BLKGC.shape

    def group(results, start):
        k_NSC, v_NSC = _load_keys(k_BSKC, tiling, start), _load_keys(v_BSKC, tiling, start)

        def tile(span, k_NTC, v_NTC, results, block):
            at = start._replace(block=block)
            q_NRC = _load_queries(q_BLKGC, tiling, at) * scale
            bias = _mask_bias(mask, tiling, span, at, G)
            scores, _ = _cap_and_mask(_einsum("nrc,ntc->nrt", q_NRC, k_NTC), bias, softcap)
            # Above the bias, so that the weights of a row that sees no key are zero.
            max_NR1 = jnp.maximum(row_max(scores), 0.5 * _MASKED)
            weights = jnp.exp(scores - max_NR1)
            row_sum = jnp.sum(weights, axis=-1, keepdims=True)
            inverse = jnp.where(row_sum == 0.0, 0.0, 1.0 / row_sum)
            o_NRC = _einsum("nrt,ntc->nrc", weights, v_NTC) * inverse
            o_BLKGC, max_BKGL, inverse_BKGL = results
            return (
                _store_queries(o_BLKGC, o_NRC, dtype, tiling, at),
                _store_row_values(max_BKGL, max_NR1, tiling, at),
                _store_row_values(inverse_BKGL, inverse, tiling, at),
            ), None

        for span in tiling.spans:
            keys = slice(span.low, span.high)
            step = functools.partial(tile, span, k_NSC[:, keys], v_NSC[:, keys])
            results, _ = jax.lax.scan(step, results, jnp.arange(span.first, span.last))
        return results, None

    rows = jnp.zeros((B, K, G, L), jnp.float32)
    results = _zero_bits(q_BLKGC), rows, rows
    results, _ = jax.lax.scan(group, results, _group_indices(tiling, B, K))
    o_BLKGC, max_BKGL, inverse_BKGL = results
    o_BLKGC = jax.lax.bitcast_convert_type(o_BLKGC, dtype)
    return o_BLKGC, (q_BLKGC, k_BSKC, v_BSKC, mask, o_BLKGC, max_BKGL, inverse_BKGL)


def _backward(scale, softcap, tiling, residuals, do_BLKGC):
    q_BLKGC, k_BSKC, v_BSKC, mask, o_BLKGC, max_BKGL, inverse_BKGL = residuals
    B, _, K, G, _ = q_BLKGC.shape

    def group(results, start):
        dq_BLKGC, dk_BSKC, dv_BSKC = results
        k_NSC, v_NSC = _load_keys(k_BSKC, tiling, start), _load_keys(v_BSKC, tiling, start)

        def tile(span, k_NTC, v_NTC, sums, block):
            dq_BLKGC, dk_NTC, dv_NTC = sums
            at = start._replace(block=block)
            q, o, do = (_load_queries(x, tiling, at) for x in (q_BLKGC, o_BLKGC, do_BLKGC))
            q, do = q * scale, do * _load_row_values(inverse_BKGL, tiling, at).swapaxes(1, 2)
            # Gradient of softmax: p * (dp - sum(p dp)), sum(p dp) = sum(o do) (Dao et al., eq. 4).
            delta = jnp.sum(o * do, axis=-1)[:, None, :]
            bias = _mask_bias(mask, tiling, span, at, G)
            bias = None if bias is None else bias.swapaxes(1, 2)
            scores = _einsum("ntc,nrc->ntr", k_NTC, q)
            scores, softcap_grad = _cap_and_mask(scores, bias, softcap)
            weights = jnp.exp(scores - _load_row_values(max_BKGL, tiling, at))
            ds = weights * (_einsum("ntc,nrc->ntr", v_NTC, do) - delta)
            if softcap_grad is not None:
                ds = ds * softcap_grad
            dq_NRC = _einsum("ntc,ntr->ncr", k_NTC, ds).swapaxes(1, 2) * scale
            return (
                _store_queries(dq_BLKGC, dq_NRC, q_BLKGC.dtype, tiling, at),
                dk_NTC + _einsum("ntr,nrc->ntc", ds, q),
                dv_NTC + _einsum("ntr,nrc->ntc", weights, do),
            ), None

        dk_NSC, dv_NSC = jnp.zeros_like(k_NSC), jnp.zeros_like(v_NSC)
        for span in tiling.spans:
            keys = slice(span.low, span.high)
            step = functools.partial(tile, span, k_NSC[:, keys], v_NSC[:, keys])
            sums = dq_BLKGC, dk_NSC[:, keys], dv_NSC[:, keys]
            sums, _ = jax.lax.scan(step, sums, jnp.arange(span.first, span.last))
            dq_BLKGC = sums[0]
            dk_NSC, dv_NSC = dk_NSC.at[:, keys].set(sums[1]), dv_NSC.at[:, keys].set(sums[2])
        dk_BSKC = _store_keys(dk_BSKC, dk_NSC, k_BSKC.dtype, tiling, start)
        dv_BSKC = _store_keys(dv_BSKC, dv_NSC, v_BSKC.dtype, tiling, start)
        return (dq_BLKGC, dk_BSKC, dv_BSKC), None

    inputs = q_BLKGC, k_BSKC, v_BSKC
    results = tuple(_zero_bits(x) for x in inputs)
    results, _ = jax.lax.scan(group, results, _group_indices(tiling, B, K))
    pairs = zip(results, inputs, strict=True)
    return *(jax.lax.bitcast_convert_type(bits, x.dtype) for bits, x in pairs), None


_attend.defvjp(_forward, _backward)
