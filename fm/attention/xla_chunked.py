"""Attention by blocks with a running softmax: memory linear in length, any device, plain XLA.

One loop over the pairs of a query block and a key block that the mask may join, in the forward
and in the backward pass (Dao et al. 2022, algorithms 1 and 4). Kept between the two are the
output and the logarithm of each row's sum; weights are computed again, block by block.

Within blocks: G = H / K heads share a key head, M queries and T keys a block, N blocks.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from fm.attention.mask import Mask

# Scores held at once: 16 MiB of float32, around what a last-level cache keeps.
_HELD = 2**22
_MASKED = -1e30


def attend(
    q_BLHC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKC: jax.Array,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None,
    block_size: int | None = None,
) -> jax.Array:
    """Same contract as the reference; memory B x (L + S) x H x C float32.

    Args:
      q_BLHC: queries.
      k_BSKC: keys.
      v_BSKC: values.
      mask: blocks that it rules out whatever its arrays hold are not computed.
      scale: of the scores.
      softcap: of the scores.
      block_size: most queries, and most keys, a block; 128 or 256 by B and H when None.
    """
    B, L, H, _ = q_BLHC.shape
    if block_size is None:
        block_size = 256 if B * H * 256**2 <= _HELD else 128
    sizes = _even(L, block_size), _even(k_BSKC.shape[1], block_size)
    return _attend(q_BLHC, k_BSKC, v_BSKC, mask, scale, softcap, sizes)


def block_pairs(mask: Mask, L: int, S: int, sizes: tuple[int, int]) -> np.ndarray:
    """int32 [pairs, 2]: the query block and the key block of each step, key blocks in order."""
    M, T = sizes
    spans = [mask.key_range(row, min(M, L - row), S) for row in range(0, L, M)]
    steps = [(i, j) for i, (low, high) in enumerate(spans) for j in range(low // T, -(-high // T))]
    return np.array(steps, np.int32).reshape(-1, 2)


def _even(length: int, block: int) -> int:
    """The size of the fewest blocks of at most `block` that hold `length`, all of one size."""
    return -(-length // -(-length // block))


def _split(x_BLHC, K, size):
    """To blocks of a length that `size` divides: N B K G size C."""
    B, L, H, C = x_BLHC.shape
    N = -(-L // size)
    x = jnp.pad(x_BLHC, ((0, 0), (0, N * size - L), (0, 0), (0, 0)))
    return x.reshape(B, N, size, K, H // K, C).transpose(1, 0, 3, 4, 2, 5)


def _join(x_NBKGMC, L):
    """Back again, without what was filled up."""
    N, B, K, G, M, C = x_NBKGMC.shape
    return x_NBKGMC.transpose(1, 0, 4, 2, 3, 5).reshape(B, N * M, K * G, C)[:, :L]


def _filled(mask: Mask, L, S, sizes):
    """The mask over whole blocks, keys past the last one hidden."""
    over_q, over_k = -L % sizes[0], -S % sizes[1]
    q_segments, kv_segments, kv_length = mask.q_segments, mask.kv_segments, mask.kv_length
    if q_segments is not None and over_q:
        q_segments = jnp.pad(q_segments, ((0, 0), (0, over_q)))
    if kv_segments is not None and over_k:
        kv_segments = jnp.pad(kv_segments, ((0, 0), (0, over_k)))
    if over_k:
        every = jnp.full((1,), S, jnp.int32)
        kv_length = every if kv_length is None else jnp.minimum(kv_length, S)
    return dataclasses.replace(
        mask, q_segments=q_segments, kv_segments=kv_segments, kv_length=kv_length
    )


def _take(x, index):
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)


def _put(x, value, index):
    return jax.lax.dynamic_update_index_in_dim(x, value, index, 0)


def _scores(q_BKGMC, k_BKTC, scale, softcap):
    """Scores [B, K, G, M, T], and their slope by the uncapped ones."""
    s = jnp.einsum("bkgmc,bktc->bkgmt", q_BKGMC, k_BKTC, preferred_element_type=jnp.float32)
    if softcap is None:
        return s * scale, None
    capped = jnp.tanh(s * (scale / softcap))
    return softcap * capped, 1.0 - capped**2


def _seen(mask, i, j, sizes):
    """bool [1 or B, 1, 1, M, T], or None where every key is seen."""
    if mask.is_full():
        return None
    M, T = sizes
    return mask.tile(i * M, j * T, M, T).visible(M, T)[:, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(q_BLHC, k_BSKC, v_BSKC, mask, scale, softcap, sizes):
    return _forward(q_BLHC, k_BSKC, v_BSKC, mask, scale, softcap, sizes)[0]


def _forward(q_BLHC, k_BSKC, v_BSKC, mask, scale, softcap, sizes):
    L, S, K = q_BLHC.shape[1], *k_BSKC.shape[1:3]
    q = _split(q_BLHC, K, sizes[0])
    k, v = (_split(x, K, sizes[1])[:, :, :, 0] for x in (k_BSKC, v_BSKC))
    filled = _filled(mask, L, S, sizes)

    def step(carry, pair):
        o, top, total = carry
        i, j = pair
        scores, _ = _scores(_take(q, i), _take(k, j), scale, softcap)
        seen = _seen(filled, i, j, sizes)
        if seen is not None:
            scores = jnp.where(seen, scores, _MASKED)
        before = _take(top, i)
        now = jnp.maximum(before, jnp.max(scores, axis=-1))
        weights = jnp.exp(scores - now[..., None])
        if seen is not None:
            weights = jnp.where(seen, weights, 0.0)  # the maximum may be a hidden score's
        decay = jnp.exp(before - now)
        more = jnp.einsum(
            "bkgmt,bktc->bkgmc",
            weights.astype(v.dtype),
            _take(v, j),
            preferred_element_type=jnp.float32,
        )
        o = _put(o, _take(o, i) * decay[..., None] + more, i)
        total = _put(total, _take(total, i) * decay + jnp.sum(weights, axis=-1), i)
        return (o, _put(top, now, i), total), None

    rows = q.shape[:-1]
    start = (jnp.zeros(q.shape, jnp.float32), jnp.full(rows, _MASKED), jnp.zeros(rows))
    (o, top, total), _ = jax.lax.scan(step, start, jnp.asarray(block_pairs(mask, L, S, sizes)))
    nothing = total == 0.0
    total = jnp.where(nothing, 1.0, total)
    o_BLHC = _join(o / total[..., None], L).astype(q_BLHC.dtype)
    # Rows that see nothing get a sum no weight survives.
    logsum = jnp.where(nothing, -_MASKED, top + jnp.log(total))
    return o_BLHC, (q_BLHC, k_BSKC, v_BSKC, mask, o_BLHC, logsum)


def _backward(scale, softcap, sizes, kept, do_BLHC):
    q_BLHC, k_BSKC, v_BSKC, mask, o_BLHC, logsum = kept
    L, S, K = q_BLHC.shape[1], *k_BSKC.shape[1:3]
    q, o, do = (_split(x, K, sizes[0]) for x in (q_BLHC, o_BLHC, do_BLHC))
    k, v = (_split(x, K, sizes[1])[:, :, :, 0] for x in (k_BSKC, v_BSKC))
    filled = _filled(mask, L, S, sizes)
    # d softmax: p * (dp - sum(p dp)), and sum(p dp) = sum(o do) (Dao et al. 2022, eq. 4).
    shift = jnp.sum(o.astype(jnp.float32) * do.astype(jnp.float32), axis=-1)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def step(carry, pair):
        dq, dk, dv = carry
        i, j = pair
        q_i, k_j, v_j, do_i = _take(q, i), _take(k, j), _take(v, j), _take(do, i)
        scores, slope = _scores(q_i, k_j, scale, softcap)
        weights = jnp.exp(scores - _take(logsum, i)[..., None])
        seen = _seen(filled, i, j, sizes)
        if seen is not None:
            weights = jnp.where(seen, weights, 0.0)
        dp = product("bkgmc,bktc->bkgmt", do_i, v_j)
        ds = weights * (dp - _take(shift, i)[..., None]) * scale
        if slope is not None:
            ds = ds * slope
        ds, weights = ds.astype(q.dtype), weights.astype(do.dtype)
        dq = _put(dq, _take(dq, i) + product("bkgmt,bktc->bkgmc", ds, k_j), i)
        dk = _put(dk, _take(dk, j) + product("bkgmt,bkgmc->bktc", ds, q_i), j)
        dv = _put(dv, _take(dv, j) + product("bkgmt,bkgmc->bktc", weights, do_i), j)
        return (dq, dk, dv), None

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    (dq, dk, dv), _ = jax.lax.scan(step, start, jnp.asarray(block_pairs(mask, L, S, sizes)))
    dk, dv = (_join(x[:, :, :, None], S).astype(k_BSKC.dtype) for x in (dk, dv))
    return _join(dq, L).astype(q_BLHC.dtype), dk, dv, None


_attend.defvjp(_forward, _backward)
