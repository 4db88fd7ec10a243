"""Which keys each query sees, as structured data rather than as a matrix."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """An attention mask as rules (causal, window, prefix, segments), not a matrix; a pytree.

    Query i, at absolute position ``i + q_start``, sees key j iff all of these hold:

    * ``j < kv_length`` (if given);
    * ``q_segments[i] == kv_segments[j]`` (if given);
    * not `causal`, or ``j <= i + q_start``, or ``j < prefix``;
    * no `window`, or ``j > i + q_start - window``;
    * no `window_right`, or ``j < i + q_start + window_right``.

    ``|i - j| <= w`` is ``window=w + 1, window_right=w + 1``.

    Attributes:
      causal: static.
      window: static; number of keys back a query sees, its own position included.
      window_right: static; number of keys ahead a query sees, its own position included.
      prefix: int [B]; keys before it are visible to every query of the row.
      q_start: int [B]; absolute position of the row's first query, 0 by default.
      kv_length: int [B]; number of valid keys.
      q_segments: int [B, L].
      kv_segments: int [B, S].
      packed: static; promises that `q_segments` and `kv_segments` are equal and that each segment
        of a row is one run of consecutive positions, as in a packed row. Hides nothing; kernels
        that take ranges of keys, or one array of segments, need the promise.
    """

    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    window_right: int | None = dataclasses.field(
        default=None, metadata={"static": True}, kw_only=True
    )
    prefix: jax.Array | None = None
    q_start: jax.Array | None = None
    kv_length: jax.Array | None = None
    q_segments: jax.Array | None = None
    kv_segments: jax.Array | None = None
    packed: bool = dataclasses.field(default=False, metadata={"static": True}, kw_only=True)

    def is_full(self) -> bool:
        """Whether every query sees every key, as far as is known without reading an array."""
        arrays = (self.kv_length, self.q_segments, self.kv_segments)
        return not self.is_positional() and all(a is None for a in arrays)

    def is_positional(self) -> bool:
        """Whether what a query sees depends on its position (causal, or with a window)."""
        return self.causal or self.window is not None or self.window_right is not None

    def segments(self) -> tuple[jax.Array, jax.Array] | None:
        """Returns (q_segments, kv_segments), or None if the mask has no segments.

        Raises:
          ValueError: only one of the two is given.
        """
        if self.q_segments is None and self.kv_segments is None:
            return None
        if self.q_segments is None or self.kv_segments is None:
            raise ValueError("a Mask takes q_segments and kv_segments together")
        return self.q_segments, self.kv_segments

    def materialize(self, num_queries: int, num_keys: int) -> jax.Array:
        """Returns the mask as bool [B, num_queries, num_keys]; B = 1 if all rows are alike."""
        segments = self.segments()
        q_L1 = jnp.arange(num_queries)[:, None]
        k_1S = jnp.arange(num_keys)[None, :]
        q_BL1 = q_L1[None] if self.q_start is None else q_L1 + self.q_start[:, None, None]
        visible = jnp.ones((1, num_queries, num_keys), bool)
        if self.causal:
            past = k_1S <= q_BL1
            visible &= past if self.prefix is None else past | (k_1S < self.prefix[:, None, None])
        if self.window is not None:
            visible &= k_1S > q_BL1 - self.window
        if self.window_right is not None:
            visible &= k_1S < q_BL1 + self.window_right
        if self.kv_length is not None:
            visible &= k_1S < self.kv_length[:, None, None]
        if segments is not None:
            visible &= segments[0][:, :, None] == segments[1][:, None, :]
        return visible

    def tile(
        self,
        q_offset: int | jax.Array,
        k_offset: int | jax.Array,
        num_queries: int,
        num_keys: int,
    ) -> Mask:
        """Returns the mask of a block of queries and keys, indexed from the start of the block.

        For kernels that work block by block; the offsets may be traced. Segments must cover the
        block.
        """

        def block(segments, start, size):
            if segments is None:
                return None
            return jax.lax.dynamic_slice_in_dim(segments, start, size, axis=1)

        shift = jnp.asarray(q_offset - k_offset, jnp.int32)
        return Mask(
            causal=self.causal,
            window=self.window,
            window_right=self.window_right,
            prefix=None if self.prefix is None else self.prefix - k_offset,
            q_start=shift[None] if self.q_start is None else self.q_start + shift,
            kv_length=None if self.kv_length is None else self.kv_length - k_offset,
            q_segments=block(self.q_segments, q_offset, num_queries),
            kv_segments=block(self.kv_segments, k_offset, num_keys),
        )

    def key_range(self, q_offset: int, num_queries: int, num_keys: int) -> tuple[int, int]:
        """Returns the first and past-the-last key that a block of queries may see.

        Uses only what is known without reading an array; keys outside can be skipped.
        """
        first, end = 0, num_keys
        if self.q_start is None and self.window is not None:
            first = min(max(q_offset - self.window + 1, 0), num_keys)
        if self.q_start is None and self.causal and self.prefix is None:
            end = min(q_offset + num_queries, num_keys)
        if self.q_start is None and self.window_right is not None:
            end = max(min(end, q_offset + num_queries - 1 + self.window_right), 0)
        return first, end


def pad_head_dim(x_BLHC: jax.Array, size: int) -> jax.Array:
    """Returns queries, keys or values with heads padded to `size` by zeros.

    Zeros add nothing to a score, and give outputs and gradients that are cut off again.
    """
    missing = size - x_BLHC.shape[-1]
    return jnp.pad(x_BLHC, [(0, 0)] * 3 + [(0, missing)]) if missing else x_BLHC
