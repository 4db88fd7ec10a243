"""Attention by tiles of whole rows of scores: the fast way on a CPU.

One tile is a few heads of a few batch rows, a block of queries and every key these may see: so
many scores as stay in cache, softmaxed at once. What a CPU is slow at is avoided: fresh memory
(weights are computed again in the backward pass, not kept), products of a transposed left side
(keys, values, queries are turned round instead) and 16-bit arithmetic (all of it is float32).

Within tiles: N heads of a number of batch rows, R queries of all heads that share a key head
(R = H / K x M, of M positions), T keys.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fm.attention.mask import Mask

# Scores of a tile: 1 MiB of float32, so that a tile's few arrays stay in a core's share of cache.
_HELD = 2**18
# Positions of a block of queries: fewer make products slow, more waste those a mask rules out.
_ROWS = 128
# The most parts of the rows with a number of keys of their own; each is compiled by itself.
_PARTS = 8
_MASKED = -1e30


class _Tiles(NamedTuple):
    """How the work is cut: static."""

    rows: int  # of the batch
    heads: int  # key heads
    positions: int  # of queries
    parts: tuple[tuple[int, int, int, int], ...]  # first and last block, first and last key


def attend(
    q_BLHC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKC: jax.Array,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None,
) -> jax.Array:
    """Same contract as the reference; memory linear in B x (L + S) x H x C."""
    B, L, H, C = q_BLHC.shape
    S, K = k_BSKC.shape[1:3]
    tiles = _cut(mask, B, L, S, H, K)
    mask = jax.tree.map(lambda x: jnp.broadcast_to(x, (B, *x.shape[1:])), mask)
    over = -L % tiles.positions
    q_BLKGC = jnp.pad(q_BLHC, ((0, 0), (0, over), (0, 0), (0, 0))).reshape(B, -1, K, H // K, C)
    if mask.q_segments is not None and over:
        import dataclasses
        mask = dataclasses.replace(mask, q_segments=jnp.pad(mask.q_segments, ((0, 0), (0, over))))
    o = _attend(q_BLKGC, k_BSKC, v_BSKC, mask, scale, softcap, tiles)
    return o[:, :L].reshape(q_BLHC.shape)


def _largest(number: int, most: float) -> int:
    """The largest divisor of `number` up to `most`, 1 at least."""
    return max(d for d in range(1, number + 1) if number % d == 0 and d <= max(1, most))


def _cut(mask, B, L, S, H, K) -> _Tiles:
    blocks = -(-L // _ROWS)
    M = -(-L // blocks)
    per_head = H // K * M * S
    heads = _largest(K, _HELD / per_head)
    rows = _largest(B, _HELD / (per_head * K)) if heads == K else 1
    number = min(_PARTS, blocks)
    edges = [blocks * i // number for i in range(number + 1)]
    parts = []
    for first, last in zip(edges, edges[1:]):
        span = mask.span(first * M, min(last * M, L) - first * M, S)
        if parts and parts[-1][2:] == span:
            first = parts.pop()[0]
        parts.append((first, last, *span))
    return _Tiles(rows, heads, M, tuple(parts))


def _take(x_BLK, tiles, b, h):
    """x[b:, :, h:] as N heads ahead: float32 [rows, heads, L, ...]."""
    start = (b, 0, h, *[0] * (x_BLK.ndim - 3))
    size = (tiles.rows, x_BLK.shape[1], tiles.heads, *x_BLK.shape[3:])
    return jax.lax.dynamic_slice(x_BLK, start, size)


def _heads_first(x):
    """[b, L, h, ..., C] -> f32 [bh, L, ..., C]"""
    x = jnp.swapaxes(x.astype(jnp.float32), 1, 2)
    return x.reshape(-1, *x.shape[2:])


def _rows(x_bMhGC):
    b, M, h, G, C = x_bMhGC.shape
    x = x_bMhGC.astype(jnp.float32).transpose(0, 2, 3, 1, 4)
    return x.reshape(b * h, G * M, C)


def _unrows(x_NRC, tiles, M):
    N, R, C = x_NRC.shape
    x = x_NRC.reshape(tiles.rows, tiles.heads, R // M, M, C)
    return x.transpose(0, 3, 1, 2, 4)


def _block(x, tiles, b, h, i):
    """rows of block i"""
    size = (tiles.rows, tiles.positions, tiles.heads, *x.shape[3:])
    return jax.lax.dynamic_slice(x, (b, i * tiles.positions, h, 0, 0), size)


def _put(x, value, tiles, b, h, i):
    return jax.lax.dynamic_update_slice(x, value.astype(x.dtype), (b, i * tiles.positions, h, 0, 0))


def _scores(q_NRC, k_NCT, seen, softcap):
    s = jnp.einsum("nrc,nct->nrt", q_NRC, k_NCT)
    slope = None
    if softcap is not None:
        capped = jnp.tanh(s / softcap)
        s, slope = softcap * capped, 1.0 - capped**2
    if seen is not None:
        s = jnp.where(seen, s, _MASKED)
    return s, slope


def _seen(mask, tiles, shape, i, low, high):
    if mask.is_full():
        return None
    N, R, T = shape
    M = tiles.positions
    seen = mask.tile(i * M, low, M, high - low).visible(M, high - low)[:, None, None]
    b = tiles.rows
    seen = jnp.broadcast_to(seen, (b, N // b, R // M, M, T))
    return seen.reshape(N, R, T)


def _groups(tiles, B, K):
    b = jnp.arange(0, B, tiles.rows)
    h = jnp.arange(0, K, tiles.heads)
    return jnp.repeat(b, len(h)), jnp.tile(h, len(b))


def _mask_rows(mask, tiles, b):
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, b, tiles.rows), mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(q, k, v, mask, scale, softcap, tiles):
    return _forward(q, k, v, mask, scale, softcap, tiles)[0]


def _forward(q, k, v, mask, scale, softcap, tiles):
    B, L, K, G, C = q.shape
    M = tiles.positions

    def group(carry, start):
        b, h = start
        k_NCS = _heads_first(_take(k, tiles, b, h)).swapaxes(1, 2)
        v_NSC = _heads_first(_take(v, tiles, b, h))
        own = _mask_rows(mask, tiles, b)
        for first, last, low, high in tiles.parts:
            k_NCT, v_NTC = k_NCS[:, :, low:high], v_NSC[:, low:high]

            def step(carry, i):
                o, top, inverse = carry
                q_NRC = _rows(_block(q, tiles, b, h, i)) * scale
                seen = _seen(own, tiles, (*q_NRC.shape[:2], high - low), i, low, high)
                s, _ = _scores(q_NRC, k_NCT, seen, softcap)
                t = jnp.maximum(jnp.max(s, axis=-1, keepdims=True), 0.5 * _MASKED)
                w = jnp.exp(s - t)
                total = jnp.sum(w, axis=-1, keepdims=True)
                inv = jnp.where(total == 0.0, 0.0, 1.0 / total)
                o_NRC = jnp.einsum("nrt,ntc->nrc", w, v_NTC) * inv
                o = _put(o, _unrows(o_NRC, tiles, M), tiles, b, h, i)
                top = _put(top, _unrows(t, tiles, M), tiles, b, h, i)
                inverse = _put(inverse, _unrows(inv, tiles, M), tiles, b, h, i)
                return (o, top, inverse), None

            carry, _ = jax.lax.scan(step, carry, jnp.arange(first, last))
        return carry, None

    o = jnp.zeros(q.shape, q.dtype)
    rows = jnp.zeros((B, L, K, G, 1), jnp.float32)
    (o, top, inverse), _ = jax.lax.scan(group, (o, rows, rows), _groups(tiles, B, K))
    return o, (q, k, v, mask, o, top, inverse)


def _backward(scale, softcap, tiles, kept, do):
    q, k, v, mask, o, top, inverse = kept
    B, L, K, G, C = q.shape
    M = tiles.positions

    def group(carry, start):
        dq, dk, dv = carry
        b, h = start
        k_NSC = _heads_first(_take(k, tiles, b, h))
        k_NCS = k_NSC.swapaxes(1, 2)
        v_NCS = _heads_first(_take(v, tiles, b, h)).swapaxes(1, 2)
        own = _mask_rows(mask, tiles, b)
        dk_NCS, dv_NCS = jnp.zeros_like(k_NCS), jnp.zeros_like(k_NCS)
        for first, last, low, high in tiles.parts:
            k_NCT, v_NCT, k_NTC = k_NCS[:, :, low:high], v_NCS[:, :, low:high], k_NSC[:, low:high]

            def step(carry, i):
                dq, dk_NCT, dv_NCT = carry
                def block(x):
                    return _rows(_block(x, tiles, b, h, i))
                q_NRC = block(q) * scale
                t, inv = block(top), block(inverse)
                do_NRC = block(do) * inv
                # d softmax: p * (dp - sum(p dp)), sum(p dp) = sum(o do) (Dao et al. 2022, eq. 4).
                shift = jnp.sum(block(o) * do_NRC, axis=-1, keepdims=True)
                seen = _seen(own, tiles, (*q_NRC.shape[:2], high - low), i, low, high)
                s, slope = _scores(q_NRC, k_NCT, seen, softcap)
                w = jnp.exp(s - t)
                ds = w * (jnp.einsum("nrc,nct->nrt", do_NRC, v_NCT) - shift)
                if slope is not None:
                    ds = ds * slope
                dq_NRC = jnp.einsum("nrt,ntc->nrc", ds, k_NTC) * scale
                dq = _put(dq, _unrows(dq_NRC, tiles, M), tiles, b, h, i)
                dk_NCT += jnp.einsum("ncr,nrt->nct", q_NRC.swapaxes(1, 2), ds)
                dv_NCT += jnp.einsum("ncr,nrt->nct", do_NRC.swapaxes(1, 2), w)
                return (dq, dk_NCT, dv_NCT), None

            here = (dq, dk_NCS[:, :, low:high], dv_NCS[:, :, low:high])
            (dq, dk_NCT, dv_NCT), _ = jax.lax.scan(step, here, jnp.arange(first, last))
            dk_NCS = dk_NCS.at[:, :, low:high].set(dk_NCT)
            dv_NCS = dv_NCS.at[:, :, low:high].set(dv_NCT)

        def back(x, x_NCS):
            N, _, S = x_NCS.shape
            x_bhCS = x_NCS.reshape(tiles.rows, tiles.heads, C, S)
            x_bShC = x_bhCS.transpose(0, 3, 1, 2)
            return jax.lax.dynamic_update_slice(x, x_bShC.astype(x.dtype), (b, 0, h, 0))

        return (dq, back(dk, dk_NCS), back(dv, dv_NCS)), None

    start = jnp.zeros_like(q), jnp.zeros_like(k), jnp.zeros_like(v)
    (dq, dk, dv), _ = jax.lax.scan(group, start, _groups(tiles, B, K))
    return dq, dk, dv, None


_attend.defvjp(_forward, _backward)
