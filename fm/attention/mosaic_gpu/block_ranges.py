"""Which blocks of keys a block of queries needs, and the other way round.

Computed by XLA ahead of the kernels from the structured mask, a few numbers for each block: the
kernels read them and never visit a block outside. Memory B x (L / block) x (S / block).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fm.attention.mask import Mask


def block_visibility(
    mask: Mask, batch: int, length: int, keys: int, block_q: int, block_k: int
) -> tuple[jax.Array, jax.Array]:
    """What each block of queries sees of each block of keys, from their corners.

    Args:
      mask: positive `window`, when it has one.
      batch: rows.
      length: queries, the last block of them may be short.
      keys: keys, the last block of them may be short.
      block_q: queries in a block.
      block_k: keys in a block.

    Returns:
      some: bool [batch, query blocks, key blocks], whether any pair of the two is visible.
        Exact without segments; with them, by their least and largest value in each block.
      every: bool of the same shape, whether each query sees each of `block_k` keys, so that no
        mask need be applied. A short block of keys is never seen whole.
    """
    i_low = jnp.arange(0, length, block_q)[None, :, None]
    i_high = jnp.minimum(i_low + block_q, length) - 1
    if mask.q_start is not None:
        i_low, i_high = (i + mask.q_start[:, None, None] for i in (i_low, i_high))
    j_low = jnp.arange(0, keys, block_k)[None, None, :]
    j_high = j_low + block_k - 1
    valid = keys
    if mask.kv_length is not None:
        valid = jnp.minimum(mask.kv_length, keys)[:, None, None]
    j_last = jnp.minimum(j_high, valid - 1)  # the last key there is

    def near(j_last):
        return True if mask.window is None else j_last > i_low - mask.window

    some = (j_low < valid) & near(j_last)
    every = j_high < valid
    if mask.causal:
        some &= j_low <= i_high
        past = j_high <= i_low
        if mask.prefix is not None:
            prefix = mask.prefix[:, None, None]
            before = jnp.minimum(j_last, prefix - 1)
            some |= (j_low < valid) & (j_low < prefix) & near(before)
            past |= j_high < prefix
        every &= past
    if mask.window is not None:
        every &= j_low > i_high - mask.window
    if mask.q_segments is not None and mask.kv_segments is not None:
        q_low, q_high = (x[:, :, None] for x in _extremes(mask.q_segments, block_q))
        k_low, k_high = (x[:, None, :] for x in _extremes(mask.kv_segments, block_k))
        some &= (q_low <= k_high) & (k_low <= q_high)
        every &= (q_low == q_high) & (k_low == k_high) & (q_low == k_low)
    shape = (batch, -(-length // block_q), -(-keys // block_k))
    return jnp.broadcast_to(some, shape), jnp.broadcast_to(every, shape)


def _extremes(segments_BN: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """The least and the largest segment of each block."""
    padded = pad_segments(segments_BN, block)
    blocks = padded.reshape(len(padded), -1, block)
    return blocks.min(-1), blocks.max(-1)


def pad_segments(x_BN: jax.Array, block: int) -> jax.Array:
    """Segments up to a whole number of blocks, the last one repeated."""
    return jnp.pad(x_BN, ((0, 0), (0, -x_BN.shape[1] % block)), mode="edge")


def block_ranges(some: jax.Array, every: jax.Array) -> jax.Array:
    """The stretch of the last axis that is needed, and a stretch within that needs no mask.

    Args:
      some: bool [..., N].
      every: bool [..., N], true only where `some` is.

    Returns:
      int32 [..., 4]: ``first <= full_first <= full_last <= last``. Blocks `first` up to `last`
      cover all of `some`; blocks `full_first` up to `full_last` are all `every`.
    """
    size = some.shape[-1]
    at = jnp.arange(size)
    any_ = jnp.any(some, -1)
    first = jnp.argmax(some, -1)
    last = jnp.where(any_, size - jnp.argmax(jnp.flip(some, -1), -1), first)
    full_first = jnp.where(jnp.any(every, -1), jnp.argmax(every, -1), first)
    gap = ~every & (at >= full_first[..., None])
    full_last = jnp.where(jnp.any(gap, -1), jnp.argmax(gap, -1), size)
    return jnp.stack([first, full_first, full_last, last], -1).astype(jnp.int32)


def block_at_step(span: tuple, step):
    """The block visited at a step: those that need a mask first, then the others in order.

    Args:
      span: the four numbers of `spans`.
      step: 0 up to ``last - first``.
    """
    first, full_first, full_last, _ = span
    lead = full_first - first
    masked = num_masked_steps(span)
    edge = jnp.where(step < lead, first + step, full_last + step - lead)
    return jnp.where(step < masked, edge, full_first + step - masked)


def num_masked_steps(span: tuple):
    """How many of a span's blocks need a mask."""
    first, full_first, full_last, last = span
    return (full_first - first) + (last - full_last)
