"""Piece dropout: a training step sees some pieces of an example."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def some_pieces(batch: dict[str, jax.Array], rng: jax.Array, keep: int) -> dict[str, jax.Array]:
    """`keep` pieces of every row, drawn at random, padding last.

    Args:
      batch: arrays [B, L, ...], with `segments`, 0 where there is padding.
      rng: key of the draw.
      keep: pieces of a row (K); all of them where there are fewer.

    Returns:
      The same arrays [B, K, ...].
    """
    filled = batch["segments"] > 0
    L = filled.shape[1]
    order = jax.lax.top_k(jax.random.uniform(rng, filled.shape) - ~filled, min(keep, L))[1]

    def pick(value):
        return jnp.take_along_axis(
            value, order.reshape(*order.shape, *[1] * (value.ndim - 2)), axis=1
        )

    return {key: pick(value) for key, value in batch.items()}
