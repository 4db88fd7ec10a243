"""A few queries against a long cache: each key is read once, where it lies.

The usual products need keys and values with heads ahead of length, which moves the whole cache
for the sake of one query. Here the queries are spread out instead, zeros where a head must not
look, so that one product per row takes the cache as the matrix [S, K C] that it is: K times the
arithmetic, which is free while reading the cache is what takes the time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fm.attention.mask import Mask

MAX_QUERIES = 16


def unsupported_reason(
    q_BLHC: jax.Array | jax.ShapeDtypeStruct,
    k_BSKC: jax.Array | jax.ShapeDtypeStruct,
    v_BSKC: jax.Array | jax.ShapeDtypeStruct,
    mask: Mask,
    softcap: float | None,
    platform: str,
) -> str | None:
    """Why it cannot run, or None if it can."""
    del k_BSKC, v_BSKC, mask, softcap, platform
    L = q_BLHC.shape[1]
    if L > MAX_QUERIES:
        return f"it takes up to {MAX_QUERIES} queries a row, not {L}"
    return None


def attend(
    q_BLHC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKC: jax.Array,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None,
) -> jax.Array:
    """Same contract as the reference; memory B x L x H x (S + K C) float32, no copy of the cache.

    Gradients are those of autodiff. All keys are read, those past `kv_length` too, and must be
    finite.
    """
    B, L, H, C = q_BLHC.shape
    S, K = k_BSKC.shape[1:3]
    own_KK = jnp.eye(K, dtype=q_BLHC.dtype)
    q_BLKGC = q_BLHC.reshape(B, L, K, H // K, C)
    # J is K once more: the key head that is looked at, next to the one that should be.
    wide = jnp.einsum("blkgc,kj->blkgjc", q_BLKGC, own_KK).reshape(B, L * H, K * C)
    scores = jnp.einsum(
        "bmd,bsd->bms", wide, k_BSKC.reshape(B, S, K * C), preferred_element_type=jnp.float32
    )
    scores_BLHS = scale * scores.reshape(B, L, H, S)
    if softcap is not None:
        scores_BLHS = softcap * jnp.tanh(scores_BLHS / softcap)
    seen_BL1S = mask.materialize(L, S)[:, :, None]
    scores_BLHS = jnp.where(seen_BL1S, scores_BLHS, -jnp.inf)
    top_BLH1 = jax.lax.stop_gradient(jnp.max(scores_BLHS, axis=-1, keepdims=True))
    # A row that sees nothing has no maximum: zero stands in, and its weights are exact zeros.
    top_BLH1 = jnp.where(jnp.isneginf(top_BLH1), 0.0, top_BLH1)
    weights_BLHS = jnp.exp(scores_BLHS - top_BLH1)
    total_BLH1 = jnp.sum(weights_BLHS, axis=-1, keepdims=True)
    weights = weights_BLHS.reshape(B, L * H, S).astype(v_BSKC.dtype)
    o = jnp.einsum(
        "bms,bsd->bmd", weights, v_BSKC.reshape(B, S, K * C), preferred_element_type=jnp.float32
    )
    o_BLHC = jnp.einsum("blkgkc->blkgc", o.reshape(B, L, K, H // K, K, C)).reshape(B, L, H, C)
    return (o_BLHC / jnp.where(total_BLH1 == 0.0, 1.0, total_BLH1)).astype(q_BLHC.dtype)
