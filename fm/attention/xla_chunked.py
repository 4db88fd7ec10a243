"""FlashAttention in plain XLA: blocks with an online softmax, memory linear in length, any device.

A loop over the pairs of a query block and a key block that the mask may connect, in the forward
and in the backward pass (Dao et al. 2022, algorithms 1 and 4). Saved between the two are the
output and each row's logsumexp; weights are recomputed block by block.

Within blocks: G = H / K query heads per key head, M queries, T keys, N blocks.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from fm.attention.mask import Mask

# Scores of one step: 16 MiB of float32, about the size of a last-level cache.
_MAX_BLOCK_SCORES = 2**22
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
    """Returns attention o_BLHC, computed block by block; memory B x (L + S) x H x C float32.

    Blocks that the mask's static fields hide are not computed. `block_size` is the largest number
    of queries, and of keys, in a block; 256 by default, 128 if B x H is large.
    """
    B, L, H, _ = q_BLHC.shape
    if block_size is None:
        block_size = 256 if B * H * 256**2 <= _MAX_BLOCK_SCORES else 128
    sizes = _even_block_size(L, block_size), _even_block_size(k_BSKC.shape[1], block_size)
    return _attend(q_BLHC, k_BSKC, v_BSKC, mask, scale, softcap, sizes)


def block_pairs(mask: Mask, L: int, S: int, sizes: tuple[int, int]) -> np.ndarray:
    """Returns the (query block, key block) pairs that the mask may connect, int32 [pairs, 2]."""
    M, T = sizes
    ranges = [mask.key_range(row, min(M, L - row), S) for row in range(0, L, M)]
    pairs = [(i, j) for i, (low, high) in enumerate(ranges) for j in range(low // T, -(-high // T))]
    return np.array(pairs, np.int32).reshape(-1, 2)


def _even_block_size(length: int, max_size: int) -> int:
    """Splits `length` into the fewest blocks of at most `max_size`; returns their equal size."""
    return -(-length // -(-length // max_size))


def _to_blocks(x_BLHC, K, size):
    """[B, L, H, C] to [N, B, K, G, size, C], padded with zeros."""
    B, L, H, C = x_BLHC.shape
    N = -(-L // size)
    x = jnp.pad(x_BLHC, ((0, 0), (0, N * size - L), (0, 0), (0, 0)))
    return x.reshape(B, N, size, K, H // K, C).transpose(1, 0, 3, 4, 2, 5)


def _from_blocks(x_NBKGMC, L):
    """Inverse of `_to_blocks`."""
    N, B, K, G, M, C = x_NBKGMC.shape
    return x_NBKGMC.transpose(1, 0, 4, 2, 3, 5).reshape(B, N * M, K * G, C)[:, :L]


def _padded_mask(mask: Mask, L, S, sizes):
    """The mask over whole blocks, with the padding keys hidden."""
    pad_q, pad_k = -L % sizes[0], -S % sizes[1]
    q_segments, kv_segments, kv_length = mask.q_segments, mask.kv_segments, mask.kv_length
    if q_segments is not None and pad_q:
        q_segments = jnp.pad(q_segments, ((0, 0), (0, pad_q)))
    if kv_segments is not None and pad_k:
        kv_segments = jnp.pad(kv_segments, ((0, 0), (0, pad_k)))
    if pad_k:
        full = jnp.full((1,), S, jnp.int32)
        kv_length = full if kv_length is None else jnp.minimum(kv_length, S)
    return dataclasses.replace(
        mask, q_segments=q_segments, kv_segments=kv_segments, kv_length=kv_length
    )


def _take(x, index):
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)


def _put(x, value, index):
    return jax.lax.dynamic_update_index_in_dim(x, value, index, 0)


def _scores(q_BKGMC, k_BKTC, scale, softcap):
    """Scores [B, K, G, M, T], and their derivative by the uncapped scores (None if uncapped)."""
    s = jnp.einsum("bkgmc,bktc->bkgmt", q_BKGMC, k_BKTC, preferred_element_type=jnp.float32)
    if softcap is None:
        return s * scale, None
    capped = jnp.tanh(s * (scale / softcap))
    return softcap * capped, 1.0 - capped**2


def _visible(mask, i, j, sizes):
    """bool [1 or B, 1, 1, M, T], or None if every key is visible."""
    if mask.is_full():
        return None
    M, T = sizes
    return mask.tile(i * M, j * T, M, T).materialize(M, T)[:, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(q_BLHC, k_BSKC, v_BSKC, mask, scale, softcap, sizes):
    return _forward(q_BLHC, k_BSKC, v_BSKC, mask, scale, softcap, sizes)[0]


def _forward(q_BLHC, k_BSKC, v_BSKC, mask, scale, softcap, sizes):
    L, S, K = q_BLHC.shape[1], *k_BSKC.shape[1:3]
    q = _to_blocks(q_BLHC, K, sizes[0])
    k, v = (_to_blocks(x, K, sizes[1])[:, :, :, 0] for x in (k_BSKC, v_BSKC))
    padded_mask = _padded_mask(mask, L, S, sizes)

    def step(carry, pair):
        o, row_max, row_sum = carry
        i, j = pair
        scores, _ = _scores(_take(q, i), _take(k, j), scale, softcap)
        visible = _visible(padded_mask, i, j, sizes)
        if visible is not None:
            scores = jnp.where(visible, scores, _MASKED)
        old_max = _take(row_max, i)
        new_max = jnp.maximum(old_max, jnp.max(scores, axis=-1))
        weights = jnp.exp(scores - new_max[..., None])
        if visible is not None:
            weights = jnp.where(visible, weights, 0.0)  # the maximum may be a hidden score's
        decay = jnp.exp(old_max - new_max)
        update = jnp.einsum(
            "bkgmt,bktc->bkgmc",
            weights.astype(v.dtype),
            _take(v, j),
            preferred_element_type=jnp.float32,
        )
        o = _put(o, _take(o, i) * decay[..., None] + update, i)
        row_sum = _put(row_sum, _take(row_sum, i) * decay + jnp.sum(weights, axis=-1), i)
        return (o, _put(row_max, new_max, i), row_sum), None

    rows = q.shape[:-1]
    carry = (jnp.zeros(q.shape, jnp.float32), jnp.full(rows, _MASKED), jnp.zeros(rows))
    pairs = jnp.asarray(block_pairs(mask, L, S, sizes))
    (o, row_max, row_sum), _ = jax.lax.scan(step, carry, pairs)
    empty = row_sum == 0.0
    row_sum = jnp.where(empty, 1.0, row_sum)
    o_BLHC = _from_blocks(o / row_sum[..., None], L).astype(q_BLHC.dtype)
    # A huge logsumexp makes the backward pass's weights of a row that sees no key zero.
    lse = jnp.where(empty, -_MASKED, row_max + jnp.log(row_sum))
    return o_BLHC, (q_BLHC, k_BSKC, v_BSKC, mask, o_BLHC, lse)


def _backward(scale, softcap, sizes, residuals, do_BLHC):
    q_BLHC, k_BSKC, v_BSKC, mask, o_BLHC, lse = residuals
    L, S, K = q_BLHC.shape[1], *k_BSKC.shape[1:3]
    q, o, do = (_to_blocks(x, K, sizes[0]) for x in (q_BLHC, o_BLHC, do_BLHC))
    k, v = (_to_blocks(x, K, sizes[1])[:, :, :, 0] for x in (k_BSKC, v_BSKC))
    padded_mask = _padded_mask(mask, L, S, sizes)
    # Gradient of softmax: p * (dp - sum(p dp)), and sum(p dp) = sum(o do) (Dao et al. 2022, eq. 4).
    delta = jnp.sum(o.astype(jnp.float32) * do.astype(jnp.float32), axis=-1)
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def step(carry, pair):
        dq, dk, dv = carry
        i, j = pair
        q_i, k_j, v_j, do_i = _take(q, i), _take(k, j), _take(v, j), _take(do, i)
        scores, softcap_grad = _scores(q_i, k_j, scale, softcap)
        weights = jnp.exp(scores - _take(lse, i)[..., None])
        visible = _visible(padded_mask, i, j, sizes)
        if visible is not None:
            weights = jnp.where(visible, weights, 0.0)
        dp = einsum("bkgmc,bktc->bkgmt", do_i, v_j)
        ds = weights * (dp - _take(delta, i)[..., None]) * scale
        if softcap_grad is not None:
            ds = ds * softcap_grad
        ds, weights = ds.astype(q.dtype), weights.astype(do.dtype)
        dq = _put(dq, _take(dq, i) + einsum("bkgmt,bktc->bkgmc", ds, k_j), i)
        dk = _put(dk, _take(dk, j) + einsum("bkgmt,bkgmc->bktc", ds, q_i), j)
        dv = _put(dv, _take(dv, j) + einsum("bkgmt,bkgmc->bktc", weights, do_i), j)
        return (dq, dk, dv), None

    carry = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    pairs = jnp.asarray(block_pairs(mask, L, S, sizes))
    (dq, dk, dv), _ = jax.lax.scan(step, carry, pairs)
    dk, dv = (_from_blocks(x[:, :, :, None], S).astype(k_BSKC.dtype) for x in (dk, dv))
    return _from_blocks(dq, L).astype(q_BLHC.dtype), dk, dv, None


_attend.defvjp(_forward, _backward)
