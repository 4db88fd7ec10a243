"""Attention weights of every layer and head, recomputed from the residuals of a forward pass.

They use the functions the forward pass ran, so a kernel that never stores its weights needs no
second, slower form that does.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fm.attention import Mask, reference
from fm.model import layers
from fm.model.config import Arrays, ModelConfig
from fm.model.transformer import forward, rope_tables


def attention_weights(
    params: dict, inputs: Arrays, config: ModelConfig, *, mask: Mask
) -> jax.Array:
    """Returns the attention weights of every layer and head, float32 [N, B, H, L, L].

    Args:
      params: the model's.
      inputs: as for `fm.model.transformer.forward`.
      mask: which tokens each query attends to.

    Returns:
      float32 [N, B, H, L, L]; a row sums to one, or is all zeros where a query sees no key.
    """
    qkv = _layer_qkv(params, inputs, config, mask)
    return jnp.stack([_weights(q, k, own_mask, config) for q, k, _, own_mask in qkv])


def kernel_error(params: dict, inputs: Arrays, config: ModelConfig, *, mask: Mask) -> jax.Array:
    """Returns the largest relative error of the attention kernel's output against plain attention.

    Arguments as for `attention_weights`.

    Returns:
      The largest absolute difference over all layers, relative to the largest absolute output;
      rounding error of the config's dtype is expected.
    """
    max_error, max_output = jnp.zeros(()), jnp.zeros(())
    for q_BLHC, k_BLKC, v_BLKC, own_mask in _layer_qkv(params, inputs, config, mask):
        weights_BHLS = _weights(q_BLHC, k_BLKC, own_mask, config)
        group_size = config.num_heads // config.num_kv_heads
        v_BLHC = jnp.repeat(v_BLKC, group_size, axis=2).astype(jnp.float32)
        want = jnp.einsum("BHLS,BSHC->BLHC", weights_BHLS, v_BLHC, precision="highest")
        got = layers.attend(q_BLHC, k_BLKC, v_BLKC, own_mask, config)
        error = jnp.max(jnp.abs(got.astype(jnp.float32) - want))
        max_error = jnp.maximum(max_error, error)
        max_output = jnp.maximum(max_output, jnp.max(jnp.abs(want)))
    return max_error / jnp.maximum(max_output, jnp.finfo(jnp.float32).tiny)


def _weights(q_BLHC: jax.Array, k_BLKC: jax.Array, mask: Mask, config: ModelConfig) -> jax.Array:
    scale, softcap = layers.scale_and_softcap(config)
    return reference.attention_weights(q_BLHC, k_BLKC, mask=mask, scale=scale, softcap=softcap)


def _layer_qkv(
    params: dict, inputs: Arrays, config: ModelConfig, mask: Mask
) -> list[tuple[jax.Array, jax.Array, jax.Array, Mask]]:
    """Returns queries, keys, values and mask of every layer, from the residual it read."""
    tables = rope_tables(inputs["positions"], config)
    residuals = forward(params, inputs, config, mask=mask)["layers"]
    return [
        (
            *layers.project_qkv(
                layers.layer_params(params["layers"], n, config), residuals[n], tables[kind], config
            ),
            layers.layer_mask(mask, kind, config),
        )
        for n, kind in enumerate(config.layer_kinds)
    ]
