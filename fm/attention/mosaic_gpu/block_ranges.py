"""Which key blocks each query block has to visit, and which query blocks each key block.

XLA computes these few numbers per block from the structured mask, ahead of the kernels, which
never visit a block outside. Memory B x (L / block) x (S / block).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fm.attention.mask import Mask


def any_and_all_visible(
    mask: Mask, batch_size: int, num_queries: int, num_keys: int, block_q: int, block_k: int
) -> tuple[jax.Array, jax.Array]:
    """Returns two boolean arrays: whether a query block sees any, or every, key of a key block.

    Computed from the corners of the blocks; the last block of queries or keys may be short.

    Args:
      mask: its windows, where it has any, are positive.
      batch_size: batch rows.
      num_queries: L.
      num_keys: S.
      block_q: queries in a block.
      block_k: keys in a block.

    Returns:
      any_visible: bool [batch_size, query blocks, key blocks], whether any pair is visible. Exact
        without segments; with them, a superset from the smallest and largest segment of a block.
      all_visible: bool of the same shape, whether every query sees all `block_k` keys, so that no
        mask need be applied. False for a short block of keys.
    """
    i_low = jnp.arange(0, num_queries, block_q)[None, :, None]
    i_high = jnp.minimum(i_low + block_q, num_queries) - 1
    if mask.q_start is not None:
        i_low, i_high = (i + mask.q_start[:, None, None] for i in (i_low, i_high))
    j_low = jnp.arange(0, num_keys, block_k)[None, None, :]
    j_high = j_low + block_k - 1
    valid = num_keys
    if mask.kv_length is not None:
        valid = jnp.minimum(mask.kv_length, num_keys)[:, None, None]
    j_last = jnp.minimum(j_high, valid - 1)  # the last valid key of the block

    def in_window(j_last):
        return True if mask.window is None else j_last > i_low - mask.window

    any_visible = (j_low < valid) & in_window(j_last)
    all_visible = j_high < valid
    if mask.causal:
        any_visible &= j_low <= i_high
        past = j_high <= i_low
        if mask.prefix is not None:
            prefix = mask.prefix[:, None, None]
            last_in_prefix = jnp.minimum(j_last, prefix - 1)
            any_visible |= (j_low < valid) & (j_low < prefix) & in_window(last_in_prefix)
            past |= j_high < prefix
        all_visible &= past
    if mask.window is not None:
        all_visible &= j_low > i_high - mask.window
    if mask.window_right is not None:
        any_visible &= j_low < i_high + mask.window_right
        all_visible &= j_high < i_low + mask.window_right
    if mask.q_segments is not None and mask.kv_segments is not None:
        q_low, q_high = (x[:, :, None] for x in _segment_bounds(mask.q_segments, block_q))
        k_low, k_high = (x[:, None, :] for x in _segment_bounds(mask.kv_segments, block_k))
        any_visible &= (q_low <= k_high) & (k_low <= q_high)
        all_visible &= (q_low == q_high) & (k_low == k_high) & (q_low == k_low)
    shape = (batch_size, -(-num_queries // block_q), -(-num_keys // block_k))
    return jnp.broadcast_to(any_visible, shape), jnp.broadcast_to(all_visible, shape)


def _segment_bounds(segments_BN: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """The smallest and the largest segment of each block."""
    padded = edge_pad_segments(segments_BN, block)
    blocks = padded.reshape(len(padded), -1, block)
    return blocks.min(-1), blocks.max(-1)


def edge_pad_segments(x_BN: jax.Array, block: int) -> jax.Array:
    """Pads segment ids [B, N] along N to a multiple of `block` by repeating the last id."""
    return jnp.pad(x_BN, ((0, 0), (0, -x_BN.shape[1] % block)), mode="edge")


def block_ranges(any_visible: jax.Array, all_visible: jax.Array) -> jax.Array:
    """Returns block bounds, int32 [..., 4]: blocks to visit and, inside them, those without mask.

    Args:
      any_visible: bool [..., N], see `any_and_all_visible`.
      all_visible: bool [..., N], true only where `any_visible` is.

    Returns:
      int32 [..., 4]: ``first <= full_first <= full_last <= last``. Blocks `first` up to `last`
      cover all of `any_visible`; in `full_first` up to `full_last` all are `all_visible`.
    """
    size = any_visible.shape[-1]
    index = jnp.arange(size)
    first = jnp.argmax(any_visible, -1)
    last = jnp.where(
        jnp.any(any_visible, -1), size - jnp.argmax(jnp.flip(any_visible, -1), -1), first
    )
    full_first = jnp.where(jnp.any(all_visible, -1), jnp.argmax(all_visible, -1), first)
    gap = ~all_visible & (index >= full_first[..., None])
    full_last = jnp.where(jnp.any(gap, -1), jnp.argmax(gap, -1), size)
    return jnp.stack([first, full_first, full_last, last], -1).astype(jnp.int32)


def block_at_step(block_range: tuple, step):
    """Returns the index of the block visited at a step; blocks that need masking come first."""
    first, full_first, full_last, _ = block_range
    lead = full_first - first
    masked = num_masked_steps(block_range)
    edge = jnp.where(step < lead, first + step, full_last + step - lead)
    return jnp.where(step < masked, edge, full_first + step - masked)


def num_masked_steps(block_range: tuple):
    """Returns how many blocks of a `block_ranges` range need a mask; they are visited first."""
    first, full_first, full_last, last = block_range
    return (full_first - first) + (last - full_last)
