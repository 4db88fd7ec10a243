"""Drawing pictures from nothing, patch by patch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from fm.model import cached, streams
from fm.model.config import ModelConfig


@functools.partial(jax.jit, static_argnames=("config", "count"))
def sample_patches(
    params: dict,
    positions_LA: jax.Array,
    rng: jax.Array,
    config: ModelConfig,
    *,
    count: int,
    temperature: float = 1.0,
) -> jax.Array:
    """Draws pictures from nothing.

    Args:
      params: of the model.
      positions_LA: int, where the patches lie, in the order of training.
      rng: of the draws.
      config: the model's.
      count: pictures (B).
      temperature: multiplies the scales of the components.

    Returns:
      float32 [B, L, P] in 0..1.
    """
    L, A = positions_LA.shape
    weights = cached.prepare(params, config)
    start = streams.with_start(
        {
            "image": jnp.zeros((count, 0, config.piece("image"))),
            "positions": jnp.zeros((count, 0, A), jnp.int32),
            "segments": jnp.ones((count, 1), jnp.int32),
        }
    )
    final_B1D, cache = cached.prefill(weights, start, jnp.ones(count, jnp.int32), config, room=L)

    def step(carry, piece):
        final_B1D, cache = carry
        at, place_A = piece
        log_weights_BM, means, scales = streams.mixture(
            weights.streams, final_B1D[:, 0], config, "image"
        )
        which, noise = jax.random.split(jax.random.fold_in(rng, at))
        component_B11 = jax.random.categorical(which, log_weights_BM)[:, None, None]
        mean_BP = jnp.take_along_axis(means, component_B11, axis=1)[:, 0]
        scale_BP = jnp.take_along_axis(scales, component_B11, axis=1)[:, 0]
        drawn_BP = mean_BP + temperature * scale_BP * jax.random.normal(noise, mean_BP.shape)
        drawn_BP = jnp.clip(drawn_BP, 0.0, 1.0)
        inputs = {
            "image": drawn_BP[:, None],
            "positions": jnp.broadcast_to(place_A, (count, 1, A)),
        }
        return cached.extend(weights, inputs, cache, at, config), drawn_BP

    pieces = jnp.arange(1, L + 1), positions_LA
    _, drawn_LBP = jax.lax.scan(step, (final_B1D, cache), pieces)
    return jnp.swapaxes(drawn_LBP, 0, 1)
