"""JAX's own FlashAttention in Pallas' Triton dialect, for packed rows on GPUs since Ampere.

It takes one array of segments for queries and keys alike. JAX names tokamax as its successor, which
needs a newer Python; this one needs nothing beside JAX.
"""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp

from fm.attention.mask import Mask
from fm.attention.requirements import unsupported_dtypes, unsupported_gpu

_MAX_HEAD_DIM = 128
_BLOCK_SIZE, _MIN_BLOCK_SIZE = 128, 32  # the longest and shortest block of positions


def unsupported_reason(q_BLHC, k_BSKC, v_BSKC, mask, softcap, platform) -> str | None:
    """Returns why the kernel cannot compute this attention, as a message; None if it can."""
    reason = unsupported_gpu("pallas_triton", platform, least_capability=8.0)
    return reason or unsupported_inputs(q_BLHC, k_BSKC, v_BSKC, mask, softcap)


def unsupported_inputs(q_BLHC, k_BSKC, v_BSKC, mask: Mask, softcap: float | None) -> str | None:
    """Returns why the kernel cannot take these inputs on any device, or None if it can."""
    arrays = (q_BLHC, k_BSKC, v_BSKC)
    if reason := unsupported_dtypes("pallas_triton", arrays, ("bfloat16", "float16")):
        return reason
    if q_BLHC.shape[-1] > _MAX_HEAD_DIM:
        return f"pallas_triton takes a head dimension up to {_MAX_HEAD_DIM}, not {q_BLHC.shape[-1]}"
    if q_BLHC.shape[1] != k_BSKC.shape[1]:
        L, S = q_BLHC.shape[1], k_BSKC.shape[1]
        return f"pallas_triton takes as many queries as keys, not {L} and {S}"
    if softcap is not None:
        return "pallas_triton has no softcap"
    if mask.segments() is not None and not mask.packed:
        return "pallas_triton takes the same segments for queries and keys (a packed mask)"
    if mask.kv_length is not None:
        return "pallas_triton has no kv_length"
    if mask.window is not None or mask.window_right is not None:
        return "pallas_triton has no window"
    if mask.causal and mask.prefix is not None:
        return "pallas_triton has no prefix"
    if mask.causal and mask.q_start is not None:
        return "pallas_triton's queries start at position 0, not at q_start"
    return None


def attend(
    q_BLHC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKC: jax.Array,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None,
    interpret: bool = False,
) -> jax.Array:
    """Returns attention o_BLHC by JAX's Pallas Triton kernel; memory is linear in length.

    Lengths are padded to whole blocks, in a segment of their own, and key heads repeated for each
    query head. `interpret` runs the kernel step by step on any device, for tests.
    """
    del softcap
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from jax.experimental.pallas.ops.gpu import attention as kernels

    B, L, H, _ = q_BLHC.shape
    block_size = _MIN_BLOCK_SIZE
    while block_size < min(L, _BLOCK_SIZE):
        block_size *= 2
    pad = -L % block_size
    repeats = H // k_BSKC.shape[2]
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0)))
        for x in (q_BLHC, *(jnp.repeat(x, repeats, axis=2) for x in (k_BSKC, v_BSKC)))
    )
    segments_BL = mask.q_segments
    if segments_BL is None and pad:
        segments_BL = jnp.zeros((1, L), jnp.int32)
    if segments_BL is not None:
        padding_B1 = jnp.max(segments_BL, axis=1, keepdims=True) + 1
        padded_BL = jnp.pad(segments_BL, ((0, 0), (0, pad)))
        segments_BL = jnp.where(jnp.arange(L + pad) < L, padded_BL, padding_B1)
        segments_BL = jnp.broadcast_to(segments_BL, (B, L + pad)).astype(jnp.int32)
    sizes = kernels.BlockSizes(
        block_q=block_size,
        block_k=block_size,
        block_q_dkv=_MIN_BLOCK_SIZE,
        block_kv_dkv=_MIN_BLOCK_SIZE,
        block_q_dq=_MIN_BLOCK_SIZE,
        block_kv_dq=_MIN_BLOCK_SIZE,
    )
    o_BLHC: jax.Array = kernels.mha(
        q, k, v, segments_BL, sm_scale=scale, causal=mask.causal, block_sizes=sizes,
        interpret=interpret,
    )  # fmt: skip
    return o_BLHC[:, :L]
