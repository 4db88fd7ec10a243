"""Where every piece looks: the attention weights of each layer and head.

They are computed again from the residuals of a forward pass, by the functions that pass itself
ran: a kernel that never holds its weights needs no second, slower form that does.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fm.attention import Mask, attention
from fm.attention.reference import attention_weights as weights
from fm.model import layers
from fm.model.config import ModelConfig
from fm.model.transformer import forward, rope_tables


def attention_weights(
    params: dict, inputs: dict[str, jax.Array], config: ModelConfig, *, mask: Mask
) -> jax.Array:
    """What every query gives every key, from the queries and keys the kernel read.

    Args:
      params: of the model.
      inputs: as for `fm.model.transformer.forward`.
      config: the model's.
      mask: who sees whom.

    Returns:
      float32 [N, B, H, L, L]; a row sums to one, or is all zeros where a query sees no key.
    """
    read = _queries_keys_values(params, inputs, config, mask)
    return jnp.stack([weights(q_BLHC, k_BLKC, mask=mask) for q_BLHC, k_BLKC, _ in read])


def kernel_error(
    params: dict, inputs: dict[str, jax.Array], config: ModelConfig, *, mask: Mask
) -> jax.Array:
    """How far the weights times the values are from what the kernel makes of the same input.

    Arguments as for `attention_weights`.

    Returns:
      The largest absolute difference over all layers, over the largest absolute output; rounding
      in the config's dtype is all there should be.
    """
    worst, size = jnp.zeros(()), jnp.zeros(())
    for q_BLHC, k_BLKC, v_BLKC in _queries_keys_values(params, inputs, config, mask):
        weights_BHLS = weights(q_BLHC, k_BLKC, mask=mask)
        v_BLHC = jnp.repeat(v_BLKC, config.num_heads // config.num_kv_heads, axis=2).astype(
            jnp.float32
        )
        want = jnp.einsum("BHLS,BSHC->BLHC", weights_BHLS, v_BLHC, precision="highest")
        got = attention(q_BLHC, k_BLKC, v_BLKC, mask=mask, implementation=config.attention)
        worst = jnp.maximum(worst, jnp.max(jnp.abs(got.astype(jnp.float32) - want)))
        size = jnp.maximum(size, jnp.max(jnp.abs(want)))
    return worst / jnp.maximum(size, jnp.finfo(jnp.float32).tiny)


def _queries_keys_values(
    params: dict, inputs: dict[str, jax.Array], config: ModelConfig, mask: Mask
) -> list[tuple[jax.Array, jax.Array, jax.Array]]:
    """Of every layer, from the residual that entered it."""
    turns = rope_tables(inputs["positions"], config)
    residuals = forward(params, inputs, config, mask=mask)["layers"]
    return [
        layers.project_qkv(
            {name: leaf[n] for name, leaf in params["layers"].items()}, residuals[n], turns, config
        )
        for n in range(config.num_layers)
    ]
