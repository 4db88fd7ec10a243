"""Continuous pieces drawn one after another: pictures, sounds, clips, or the rest of them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from fm.model import cached, streams
from fm.model.config import ModelConfig


def sample_pieces(
    params: dict,
    positions_LA: jax.Array,
    rng: jax.Array,
    config: ModelConfig,
    *,
    stream: str,
    count: int,
    given_KP: jax.Array | None = None,
    temperature: float = 1.0,
) -> jax.Array:
    """Draws examples of one format, each behind a start piece.

    Args:
      params: of the model.
      positions_LA: int, where the pieces lie, in the order of training.
      rng: of the draws.
      config: the model's.
      stream: whose pieces.
      count: examples (B).
      given_KP: bytes or floats in 0..1, the first pieces of all of them; none if None.
      temperature: multiplies the scales of the components.

    Returns:
      float32 [B, L, P] in 0..1, the given pieces as they are.
    """
    A = positions_LA.shape[1]
    P = config.piece(stream)
    given_KP = jnp.zeros((0, P)) if given_KP is None else streams.unit(jnp.asarray(given_KP))
    K = len(given_KP)
    given_BKP = jnp.broadcast_to(given_KP, (count, K, P))
    beginning = streams.with_start(
        {
            stream: given_BKP,
            "positions": jnp.broadcast_to(positions_LA[:K], (count, K, A)),
            "segments": jnp.ones((count, max(K, 1)), jnp.int32),
        }
    )
    drawn_BNP = continue_pieces(
        params, beginning, positions_LA[K:], rng, config, stream=stream, temperature=temperature
    )
    return jnp.concatenate([given_BKP, drawn_BNP], axis=1)


@functools.partial(jax.jit, static_argnames=("config", "stream"))
def continue_pieces(
    params: dict,
    beginning: dict[str, jax.Array],
    positions_NA: jax.Array,
    rng: jax.Array,
    config: ModelConfig,
    *,
    stream: str,
    temperature: float = 1.0,
) -> jax.Array:
    """Draws the pieces that follow a beginning.

    Args:
      params: of the model.
      beginning: inputs as for `fm.model.transformer.forward`, [B, K]; they end in a start piece or
        in a piece of the stream. Rows may mix formats.
      positions_NA: int, where the pieces to come lie.
      rng: of the draws.
      config: the model's.
      stream: whose pieces.
      temperature: multiplies the scales of the components.

    Returns:
      float32 [B, N, P] in 0..1.
    """
    B, K = beginning["positions"].shape[:2]
    N, A = positions_NA.shape
    weights = cached.prepare(params, config)
    final_BKD, cache = cached.prefill(weights, beginning, jnp.full(B, K), config, room=N)

    def step(carry, piece):
        final_B1D, cache = carry
        at, place_A = piece
        log_weights_BM, means, scales = streams.mixture(
            weights.streams, final_B1D[:, 0], config, stream
        )
        which, noise = jax.random.split(jax.random.fold_in(rng, at))
        component_B11 = jax.random.categorical(which, log_weights_BM)[:, None, None]
        mean_BP = jnp.take_along_axis(means, component_B11, axis=1)[:, 0]
        scale_BP = jnp.take_along_axis(scales, component_B11, axis=1)[:, 0]
        drawn_BP = mean_BP + temperature * scale_BP * jax.random.normal(noise, mean_BP.shape)
        drawn_BP = jnp.clip(drawn_BP, 0.0, 1.0)
        inputs = {
            stream: drawn_BP[:, None],
            "positions": jnp.broadcast_to(place_A, (B, 1, A)),
        }
        return cached.extend(weights, inputs, cache, at, config), drawn_BP

    pieces = jnp.arange(K, K + N), positions_NA
    _, drawn_NBP = jax.lax.scan(step, (final_BKD[:, -1:], cache), pieces)
    return jnp.swapaxes(drawn_NBP, 0, 1)
