"""Attention as the textbook has it: float32, every score held, nothing clever."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fm.attention.mask import Mask
from fm.attention.weights import weights


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
    weights_BHLS = weights(q_BLHC, k_BSKC, mask=mask, scale=scale, softcap=softcap)
    groups = q_BLHC.shape[2] // k_BSKC.shape[2]
    v_BSHC = jnp.repeat(v_BSKC.astype(jnp.float32), groups, axis=2)
    o_BLHC = jnp.einsum("BHLS,BSHC->BLHC", weights_BHLS, v_BSHC, precision="highest")
    return o_BLHC.astype(q_BLHC.dtype)
