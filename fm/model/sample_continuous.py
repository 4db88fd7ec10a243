"""Autoregressive sampling of continuous patches: images, audio, video, or continuations of them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from fm.model import embeddings, kv_cache
from fm.model.config import Arrays, ModelConfig


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
    """Samples patches of one modality autoregressively, optionally after a given prefix.

    Args:
      params: the model's.
      positions_LA: int, positions of the patches, in training order.
      rng: random key.
      modality: of the patches.
      num_samples: examples (B).
      prefix_KP: uint8 or floats in 0..1, the first patches of every example; none if None.
      temperature: multiplies the components' scales.

    Returns:
      float32 [B, L, P] in 0..1, the prefix unchanged.
    """
    A = positions_LA.shape[1]
    P = config.patch_dim(modality)
    if prefix_KP is None:
        prefix_KP = jnp.zeros((0, P))
    else:
        prefix_KP = embeddings.to_unit_range(jnp.asarray(prefix_KP))
    K = len(prefix_KP)
    prefix_BKP = jnp.broadcast_to(prefix_KP, (num_samples, K, P))
    inputs = embeddings.prepend_start_patch(
        {
            modality: prefix_BKP,
            "positions": jnp.broadcast_to(positions_LA[:K], (num_samples, K, A)),
            "segments": jnp.ones((num_samples, max(K, 1)), jnp.int32),
        }
    )
    sampled_BNP = continue_patches(
        params, inputs, positions_LA[K:], rng, config, modality=modality, temperature=temperature
    )
    return jnp.concatenate([prefix_BKP, sampled_BNP], axis=1)


@functools.partial(jax.jit, static_argnames=("config", "modality"))
def continue_patches(
    params: dict,
    prefix: Arrays,
    positions_NA: jax.Array,
    rng: jax.Array,
    config: ModelConfig,
    *,
    modality: str,
    temperature: float = 1.0,
) -> jax.Array:
    """Samples autoregressively the patches that follow the given inputs, float32 [B, N, P].

    Args:
      params: the model's.
      prefix: inputs as for `fm.model.transformer.forward`, [B, K], ending in a start patch or a
        patch of `modality`; rows may mix modalities.
      positions_NA: int, positions of the new patches.
      rng: random key.
      modality: of the new patches.
      temperature: multiplies the components' scales.

    Returns:
      float32 [B, N, P] in 0..1.
    """
    B, K = prefix["positions"].shape[:2]
    N, A = positions_NA.shape
    prepared = kv_cache.prepare_params(params, config)
    final_BKD, cache = kv_cache.prefill(prepared, prefix, jnp.full(B, K), config, max_new_tokens=N)

    def step(carry, patch):
        final_B1D, cache = carry
        cache_index, position_A = patch
        log_weights_BM, means, scales = embeddings.gmm_params(
            prepared.embeddings, final_B1D[:, 0], config, modality
        )
        component_key, noise_key = jax.random.split(jax.random.fold_in(rng, cache_index))
        component_B11 = jax.random.categorical(component_key, log_weights_BM)[:, None, None]
        mean_BP = jnp.take_along_axis(means, component_B11, axis=1)[:, 0]
        scale_BP = jnp.take_along_axis(scales, component_B11, axis=1)[:, 0]
        noise_BP = jax.random.normal(noise_key, mean_BP.shape)
        sampled_BP = jnp.clip(mean_BP + temperature * scale_BP * noise_BP, 0.0, 1.0)
        inputs = {
            modality: sampled_BP[:, None],
            "positions": jnp.broadcast_to(position_A, (B, 1, A)),
        }
        return kv_cache.decode_step(prepared, inputs, cache, cache_index, config), sampled_BP

    patches = jnp.arange(K, K + N), positions_NA
    _, sampled_NBP = jax.lax.scan(step, (final_BKD[:, -1:], cache), patches)
    return jnp.swapaxes(sampled_NBP, 0, 1)
