"""Continuous pieces drawn one after another: pictures, sounds, clips, or the rest of them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from fm.model import embeddings, kv_cache
from fm.model.config import ModelConfig


def sample_patches(
    params: dict,
    positions_LA: jax.Array,
    rng: jax.Array,
    config: ModelConfig,
    *,
    modality: str,
    num_samples: int,
    prefix_KP: jax.Array | None = None,
    temperature: float = 1.0,
) -> jax.Array:
    """Draws examples of one format, each behind a start piece.

    Args:
      params: of the model.
      positions_LA: int, where the pieces lie, in the order of training.
      rng: of the draws.
      config: the model's.
      modality: whose pieces.
      num_samples: examples (B).
      prefix_KP: bytes or floats in 0..1, the first pieces of all of them; none if None.
      temperature: multiplies the scales of the components.

    Returns:
      float32 [B, L, P] in 0..1, the given pieces as they are.
    """
    A = positions_LA.shape[1]
    P = config.patch_dim(modality)
    prefix_KP = (
        jnp.zeros((0, P)) if prefix_KP is None else embeddings.to_unit_range(jnp.asarray(prefix_KP))
    )
    K = len(prefix_KP)
    given_BKP = jnp.broadcast_to(prefix_KP, (num_samples, K, P))
    beginning = embeddings.prepend_start_patch(
        {
            modality: given_BKP,
            "positions": jnp.broadcast_to(positions_LA[:K], (num_samples, K, A)),
            "segments": jnp.ones((num_samples, max(K, 1)), jnp.int32),
        }
    )
    drawn_BNP = continue_patches(
        params, beginning, positions_LA[K:], rng, config, modality=modality, temperature=temperature
    )
    return jnp.concatenate([given_BKP, drawn_BNP], axis=1)


@functools.partial(jax.jit, static_argnames=("config", "modality"))
def continue_patches(
    params: dict,
    prefix: dict[str, jax.Array],
    positions_NA: jax.Array,
    rng: jax.Array,
    config: ModelConfig,
    *,
    modality: str,
    temperature: float = 1.0,
) -> jax.Array:
    """Draws the pieces that follow a beginning.

    Args:
      params: of the model.
      prefix: inputs as for `fm.model.transformer.forward`, [B, K]; they end in a start piece or
        in a piece of the stream. Rows may mix formats.
      positions_NA: int, where the pieces to come lie.
      rng: of the draws.
      config: the model's.
      modality: whose pieces.
      temperature: multiplies the scales of the components.

    Returns:
      float32 [B, N, P] in 0..1.
    """
    B, K = prefix["positions"].shape[:2]
    N, A = positions_NA.shape
    weights = kv_cache.prepare_params(params, config)
    final_BKD, cache = kv_cache.prefill(weights, prefix, jnp.full(B, K), config, max_new_tokens=N)

    def step(carry, piece):
        final_B1D, cache = carry
        at, place_A = piece
        log_weights_BM, means, scales = embeddings.gmm_params(
            weights.embeddings, final_B1D[:, 0], config, modality
        )
        which, noise = jax.random.split(jax.random.fold_in(rng, at))
        component_B11 = jax.random.categorical(which, log_weights_BM)[:, None, None]
        mean_BP = jnp.take_along_axis(means, component_B11, axis=1)[:, 0]
        scale_BP = jnp.take_along_axis(scales, component_B11, axis=1)[:, 0]
        drawn_BP = mean_BP + temperature * scale_BP * jax.random.normal(noise, mean_BP.shape)
        drawn_BP = jnp.clip(drawn_BP, 0.0, 1.0)
        inputs = {
            modality: drawn_BP[:, None],
            "positions": jnp.broadcast_to(place_A, (B, 1, A)),
        }
        return kv_cache.decode_step(weights, inputs, cache, at, config), drawn_BP

    pieces = jnp.arange(K, K + N), positions_NA
    _, drawn_NBP = jax.lax.scan(step, (final_BKD[:, -1:], cache), pieces)
    return jnp.swapaxes(drawn_NBP, 0, 1)
