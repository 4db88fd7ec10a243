"""Plain attention in float32, with all scores in memory."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fm.attention.mask import Mask


def attend(
    q_BLHC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKC: jax.Array,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None,
) -> jax.Array:
    """Returns softmax(scale q k^T) v (Vaswani et al. 2017, eq. 1), with all scores in memory."""
    weights_BHLS = attention_weights(q_BLHC, k_BSKC, mask=mask, scale=scale, softcap=softcap)
    groups = q_BLHC.shape[2] // k_BSKC.shape[2]
    v_BSHC = jnp.repeat(v_BSKC.astype(jnp.float32), groups, axis=2)
    o_BLHC = jnp.einsum("BHLS,BSHC->BLHC", weights_BHLS, v_BSHC, precision="highest")
    return o_BLHC.astype(q_BLHC.dtype)


def attention_weights(
    q_BLHC: jax.Array,
    k_BSKC: jax.Array,
    *,
    mask: Mask | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """Returns the attention weights softmax(scale q k^T), 0 for keys that the mask hides.

    Times the values, these give the output of `fm.attention.attention` by any implementation;
    the arguments are the same.

    Returns:
      float32 [B, H, L, S]; a row sums to one, or is all zeros where the query sees no key.
    """
    groups = q_BLHC.shape[2] // k_BSKC.shape[2]
    scale = 1.0 / math.sqrt(q_BLHC.shape[-1]) if scale is None else scale
    q, k = q_BLHC.astype(jnp.float32), k_BSKC.astype(jnp.float32)
    k_BSHC = jnp.repeat(k, groups, axis=2)
    scores_BHLS = scale * jnp.einsum("BLHC,BSHC->BHLS", q, k_BSHC, precision="highest")
    if softcap is not None:
        scores_BHLS = softcap * jnp.tanh(scores_BHLS / softcap)
    visible_B1LS = (mask or Mask()).materialize(q.shape[1], k.shape[1])[:, None]
    scores_BHLS = jnp.where(visible_B1LS, scores_BHLS, -jnp.inf)
    max_BHL1 = jnp.max(scores_BHLS, axis=-1, keepdims=True)
    # The maximum of a fully masked row is -inf: with 0 instead its weights are exact zeros.
    max_BHL1 = jax.lax.stop_gradient(jnp.where(jnp.isfinite(max_BHL1), max_BHL1, 0.0))
    weights_BHLS = jnp.where(visible_B1LS, jnp.exp(scores_BHLS - max_BHL1), 0.0)
    sum_BHL1 = jnp.sum(weights_BHLS, axis=-1, keepdims=True)
    return weights_BHLS / jnp.where(sum_BHL1 == 0.0, 1.0, sum_BHL1)
