"""Rotary positions in one, two or more dimensions (Su et al. 2021, eq. 34)."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from fm.errors import UserError


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Rotary frequencies stretched to a longer context, as Llama 3.1 has them (Llama Team 2024).

    Attributes:
      factor: by which waves longer than `context / low` are stretched.
      low_freq_factor: waves that fit into `original_max_seq_len` fewer than this many times are stretched in full.
      high_freq_factor: those that fit in more often than this stay; between the two it is blended.
      original_max_seq_len: pieces the model was first trained on.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_seq_len: int

    def __post_init__(self):
        if (
            min(self.factor, self.low_freq_factor, self.original_max_seq_len) <= 0
            or self.high_freq_factor <= self.low_freq_factor
        ):
            raise UserError(
                f"rope scaling takes factor={self.factor}, low_freq_factor={self.low_freq_factor} and "
                f"original_max_seq_len={self.original_max_seq_len} over 0, and high_freq_factor={self.high_freq_factor} over low"
            )

    def __call__(self, frequencies: jax.Array) -> jax.Array:
        """The stretched frequencies."""
        turns = frequencies * self.original_max_seq_len / (2.0 * math.pi)
        kept = jnp.clip(
            (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor),
            0.0,
            1.0,
        )
        return frequencies * (kept + (1.0 - kept) / self.factor)


def rotary_cos_sin(
    positions_BLA: jax.Array,
    head_dim: int,
    theta: float,
    scaling: RopeScaling | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of every position, computed once for all layers.

    Each of the A axes turns its own share of the head's C/2 pairs; where these do not divide by
    A, the first axes turn one more.

    Args:
      positions_BLA: int, absolute positions along each axis.
      head_dim: C, even.
      theta: the slowest frequency is about 1/base.
      scaling: of the frequencies.

    Returns:
      cosines and sines, each float32 [B, L, 1, C/2].
    """
    angles = []
    for axis, share in enumerate(pairs_per_axis(head_dim // 2, positions_BLA.shape[-1])):
        frequencies = theta ** (-jnp.arange(share, dtype=jnp.float32) / share)
        if scaling:
            frequencies = scaling(frequencies)
        angles.append(positions_BLA[..., axis, None].astype(jnp.float32) * frequencies)
    angles = jnp.concatenate(angles, axis=-1)[:, :, None]
    # In a loop, which XLA does not fuse into the readers: on a CPU it would compute every sine
    # again for each head, four times the cost of the rotation (a barrier goes before fusion).
    cosines, sines = jax.lax.map(
        lambda which: jax.lax.switch(which, (jnp.cos, jnp.sin), angles), jnp.arange(2)
    )
    return cosines, sines


def expand_positions(positions: jax.Array, num_axes: int) -> jax.Array:
    """Positions of one format on the axes of a model of several (Wang et al. 2024, sec. 2.1).

    Args:
      positions: int, of text [B, L], of sound [B, L, 1], of pictures [B, L, 2] or of clips
        [B, L, 3].
      num_axes: of the model (A). Where it has more than the format, text p is at p on all of them, a
        picture's row and column are the last two, and time is the first.

    Returns:
      int [B, L, A].
    """
    if positions.ndim == 2:
        return jnp.broadcast_to(positions[..., None], (*positions.shape, num_axes))
    own = positions.shape[-1]
    before = num_axes - own if own == 2 else 0
    return jnp.pad(positions, ((0, 0), (0, 0), (before, num_axes - own - before)))


def pairs_per_axis(pairs: int, num_axes: int) -> tuple[int, ...]:
    """Pairs for each axis, as even as can be."""
    return tuple(pairs // num_axes + (axis < pairs % num_axes) for axis in range(num_axes))


def apply_rope(x_BLHC: jax.Array, cosines: jax.Array, sines: jax.Array) -> jax.Array:
    """Turns the pairs (c, c + C/2) of every head by their position's angles."""
    first, second = jnp.split(x_BLHC, 2, axis=-1)
    cosines, sines = cosines.astype(x_BLHC.dtype), sines.astype(x_BLHC.dtype)
    return jnp.concatenate(
        [first * cosines - second * sines, second * cosines + first * sines], axis=-1
    )
