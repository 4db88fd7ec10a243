"""Attention as the textbook has it: float32, every score held, nothing clever."""

from __future__ import annotations

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
    """softmax(scale q k^T) v (Vaswani et al. 2017, eq. 1); memory B x H x L x S float32."""
    groups = q_BLHC.shape[2] // k_BSKC.shape[2]
    q, k, v = (x.astype(jnp.float32) for x in (q_BLHC, k_BSKC, v_BSKC))
    k_BSHC = jnp.repeat(k, groups, axis=2)
    v_BSHC = jnp.repeat(v, groups, axis=2)
    scores_BHLS = scale * jnp.einsum("BLHC,BSHC->BHLS", q, k_BSHC, precision="highest")
    if softcap is not None:
        scores_BHLS = softcap * jnp.tanh(scores_BHLS / softcap)
    seen_B1LS = mask.visible(q.shape[1], k.shape[1])[:, None]
    scores_BHLS = jnp.where(seen_B1LS, scores_BHLS, -jnp.inf)
    top_BHL1 = jnp.max(scores_BHLS, axis=-1, keepdims=True)
    # A fully masked row has no maximum: zero stands in, and its weights come out as exact zeros.
    top_BHL1 = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top_BHL1), top_BHL1, 0.0))
    weights_BHLS = jnp.where(seen_B1LS, jnp.exp(scores_BHLS - top_BHL1), 0.0)
    total_BHL1 = jnp.sum(weights_BHLS, axis=-1, keepdims=True)
    weights_BHLS = weights_BHLS / jnp.where(total_BHL1 == 0.0, 1.0, total_BHL1)
    o_BLHC = jnp.einsum("BHLS,BSHC->BLHC", weights_BHLS, v_BSHC, precision="highest")
    return o_BLHC.astype(q_BLHC.dtype)
