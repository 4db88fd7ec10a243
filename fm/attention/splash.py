"""JAX's splash attention, a TPU kernel that skips hidden blocks.

Causality and windows become its static masks, lengths and segments its segment ids. Every row's
softmax has a sink of negligible weight, so that a row that sees no key gives zeros in value and
gradient; the kernel alone would divide zero by zero.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fm.attention.mask import Mask
from fm.attention.requirements import unsupported_dtypes

_BLOCK_SIZES = (512, 256, 128)  # of queries and keys; 128 is the kernel's minimum
_SINK_LOGIT = -1e30  # below any real score and above the kernel's masked ones


def unsupported_reason(q_BLHC, k_BSKC, v_BSKC, mask, softcap, platform) -> str | None:
    """Returns why the splash kernel cannot compute this attention; None if it can."""
    del softcap
    if platform != "tpu":
        return f"splash attention needs a TPU, not {platform}"
    arrays = (q_BLHC, k_BSKC, v_BSKC)
    if reason := unsupported_dtypes("splash attention", arrays, ("float32", "bfloat16")):
        return reason
    if mask.causal and mask.prefix is not None:
        return "splash attention masks must be known when compiling; a prefix is an array"
    if mask.is_positional() and mask.q_start is not None:
        return "splash attention masks must be known when compiling; q_start is an array"
    return None


def attend(
    q_BLHC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKC: jax.Array,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None,
    block_size: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Returns attention o_BLHC by JAX's splash TPU kernel; memory is linear in length.

    `block_size` is a multiple of 128, by default up to 512 depending on the length. `interpret`
    runs the kernel step by step on any device, for tests.
    """
    # Imported here so that only its users pay for the import.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    B, L, H, _ = q_BLHC.shape
    S = k_BSKC.shape[1]
    block_q, block_k = block_size or _block_size(L), block_size or _block_size(S)
    pad_q, pad_k = -L % block_q, -S % block_k
    segment_ids = _segment_ids(mask, B, L, S, pad_q, pad_k)
    q, k, v = (
        jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, pad), (0, 0)))
        for x, pad in ((q_BLHC * scale, pad_q), (k_BSKC, pad_k), (v_BSKC, pad_k))
    )
    shape = (L + pad_q, S + pad_k)
    if mask.window is None and mask.window_right is None:
        head_mask = splash.CausalMask(shape) if mask.causal else splash.FullMask(shape)
    else:
        left, right = (None if n is None else n - 1 for n in (mask.window, mask.window_right))
        if mask.causal:
            right = 0 if right is None else min(right, 0)
        head_mask = splash.LocalMask(shape, (left, right), offset=0)
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([head_mask] * H),
        block_sizes=splash.BlockSizes(
            block_q=block_q,
            block_kv=block_k,
            block_q_dkv=block_q,
            block_kv_dkv=block_k,
            block_q_dq=block_q,
            block_kv_dq=block_k,
        ),
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )
    sinks = jnp.full((H,), _SINK_LOGIT, jnp.float32)

    def row(q, k, v, ids) -> Any:
        return kernel(q, k, v, None if ids is None else splash.SegmentIds(*ids), sinks=sinks)

    o_BHLC = jax.vmap(row)(q.astype(q_BLHC.dtype), k, v, segment_ids)
    return jnp.swapaxes(o_BHLC, 1, 2)[:, :L]


def _block_size(length: int) -> int:
    """The largest block size that needs no more padding than the smallest."""
    padded = length + -length % _BLOCK_SIZES[-1]
    return next(size for size in _BLOCK_SIZES if padded % size == 0)


def _segment_ids(mask: Mask, B: int, L: int, S: int, pad_q: int, pad_k: int):
    """int32 [B, L + pad_q] and [B, S + pad_k], or None; a hidden key's id matches no query's."""
    segments = mask.segments()
    if segments is not None:
        q_ids, kv_ids = segments
    elif mask.kv_length is not None or pad_k:
        q_ids, kv_ids = jnp.zeros((B, L), jnp.int32), jnp.zeros((B, S), jnp.int32)
    else:
        return None
    hidden_id_B1 = jnp.max(q_ids, axis=1, keepdims=True) + 1
    q_ids, kv_ids = (
        jnp.pad(ids, ((0, 0), (0, pad))) for ids, pad in ((q_ids, pad_q), (kv_ids, pad_k))
    )
    end_B1 = S if mask.kv_length is None else jnp.minimum(mask.kv_length, S)[:, None]
    return q_ids, jnp.where(jnp.arange(S + pad_k) < end_B1, kv_ids, hidden_id_B1)
