"""Rotary positions in one, two or more dimensions (Su et al. 2021, eq. 34)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rotations(
    positions_BLA: jax.Array, head_width: int, base: float
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of every position, computed once for all layers.

    Each of the A axes turns its own share of the head's C/2 pairs.

    Args:
      positions_BLA: int, absolute positions along each axis.
      head_width: C, a multiple of 2 A.
      base: the slowest frequency is about 1/base.

    Returns:
      cosines and sines, each float32 [B, L, 1, C/2].
    """
    axes = positions_BLA.shape[-1]
    share = head_width // 2 // axes
    frequencies = base ** (-jnp.arange(share, dtype=jnp.float32) / share)
    angles = positions_BLA[..., None].astype(jnp.float32) * frequencies
    angles = angles.reshape(*positions_BLA.shape[:2], 1, axes * share)
    # In a loop, which XLA does not fuse into the readers: on a CPU it would compute every sine
    # again for each head, four times the cost of the rotation (a barrier goes before fusion).
    cosines, sines = jax.lax.map(
        lambda which: jax.lax.switch(which, (jnp.cos, jnp.sin), angles), jnp.arange(2)
    )
    return cosines, sines


def rotate(x_BLHC: jax.Array, cosines: jax.Array, sines: jax.Array) -> jax.Array:
    """Turns the pairs (c, c + C/2) of every head by their position's angles."""
    first, second = jnp.split(x_BLHC, 2, axis=-1)
    cosines, sines = cosines.astype(x_BLHC.dtype), sines.astype(x_BLHC.dtype)
    return jnp.concatenate(
        [first * cosines - second * sines, second * cosines + first * sines], axis=-1
    )
