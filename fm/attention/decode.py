"""Attention of a few queries over a long KV cache; reads each key once, without copying.

Batched matrix products want heads before length, which would transpose the whole cache for one
query. Here each query is expanded to K C wide, zero outside its own key head, so that one product
per row reads the cache as the matrix [S, K C] that it is. That is K times the arithmetic, which
costs nothing while reading the cache is the bottleneck. It computes any number of queries;
`fm.attention.api` says up to how many it is chosen for.
"""

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
    """Returns attention o_BLHC of a few queries over a long KV cache, without copying the cache.

    Memory is B x L x H x (S + K C) float32.

    All keys are read, those past `kv_length` too, and must be finite.
    """
    B, L, H, C = q_BLHC.shape
    S, K = k_BSKC.shape[1:3]
    identity_KK = jnp.eye(K, dtype=q_BLHC.dtype)
    q_BLKGC = q_BLHC.reshape(B, L, K, H // K, C)
    # J is K again: the key head that is read, next to the query's own.
    wide = jnp.einsum("blkgc,kj->blkgjc", q_BLKGC, identity_KK).reshape(B, L * H, K * C)
    scores = jnp.einsum(
        "bmd,bsd->bms", wide, k_BSKC.reshape(B, S, K * C), preferred_element_type=jnp.float32
    )
    scores_BLHS = scale * scores.reshape(B, L, H, S)
    if softcap is not None:
        scores_BLHS = softcap * jnp.tanh(scores_BLHS / softcap)
    visible_BL1S = mask.materialize(L, S)[:, :, None]
    scores_BLHS = jnp.where(visible_BL1S, scores_BLHS, -jnp.inf)
    max_BLH1 = jax.lax.stop_gradient(jnp.max(scores_BLHS, axis=-1, keepdims=True))
    # The maximum of a fully masked row is -inf: with 0 instead its weights are exact zeros.
    max_BLH1 = jnp.where(jnp.isneginf(max_BLH1), 0.0, max_BLH1)
    weights_BLHS = jnp.exp(scores_BLHS - max_BLH1)
    sum_BLH1 = jnp.sum(weights_BLHS, axis=-1, keepdims=True)
    weights = weights_BLHS.reshape(B, L * H, S).astype(v_BSKC.dtype)
    o = jnp.einsum(
        "bms,bsd->bmd", weights, v_BSKC.reshape(B, S, K * C), preferred_element_type=jnp.float32
    )
    o_BLHC = jnp.einsum("blkgkc->blkgc", o.reshape(B, L, K, H // K, K, C)).reshape(B, L, H, C)
    return (o_BLHC / jnp.where(sum_BLH1 == 0.0, 1.0, sum_BLH1)).astype(q_BLHC.dtype)
