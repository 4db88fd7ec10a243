"""JAX's splash attention, a TPU kernel that skips hidden blocks, behind the contract.

Causality and windows become its static masks, lengths and segments its segment ids. A sink of
no weight stands in the sum of every row, so that a row that sees nothing comes out as zeros, in
value and gradient, where the kernel alone would divide zero by zero.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fm.attention.mask import Mask

_BLOCKS = (512, 256, 128)  # of queries and keys; 128 is the kernel's least
_NOTHING = -1e30  # a score under any real one and over the kernel's hidden ones


def unsupported_reason(
    q_BLHC: jax.Array | jax.ShapeDtypeStruct,
    k_BSKC: jax.Array | jax.ShapeDtypeStruct,
    v_BSKC: jax.Array | jax.ShapeDtypeStruct,
    mask: Mask,
    softcap: float | None,
    platform: str,
) -> str | None:
    """Why it cannot run, or None if it can."""
    del softcap
    if platform != "tpu":
        return f"splash attention needs a TPU, not {platform}"
    dtypes = {str(x.dtype) for x in (q_BLHC, k_BSKC, v_BSKC)}
    if not (dtypes <= {"float32"} or dtypes <= {"bfloat16"}):
        return f"splash attention takes float32 or bfloat16 alone, not {', '.join(sorted(dtypes))}"
    if mask.causal and mask.prefix is not None:
        return "splash attention masks must be known when compiling; a prefix is an array"
    if (mask.causal or mask.window is not None) and mask.q_start is not None:
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
    block: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Same contract as the reference where `refusal` has none; memory linear in length.

    Args:
      q_BLHC: queries.
      k_BSKC: keys.
      v_BSKC: values.
      mask: who sees whom.
      scale: of the scores.
      softcap: of the scores.
      block: queries, and keys, a block, a multiple of 128; up to 512 by length when None.
      interpret: run the kernel step by step on any device, for tests.
    """
    # Here, so that only those who use it pay for the import.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    B, L, H, _ = q_BLHC.shape
    S = k_BSKC.shape[1]
    M, T = block or _block(L), block or _block(S)
    over_q, over_k = -L % M, -S % T
    ids = _segment_ids(mask, B, L, S, over_q, over_k)
    q, k, v = (
        jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, over), (0, 0)))
        for x, over in ((q_BLHC * scale, over_q), (k_BSKC, over_k), (v_BSKC, over_k))
    )
    shape = (L + over_q, S + over_k)
    if mask.window is not None:
        ahead = 0 if mask.causal else None
        each = splash.LocalMask(shape, (mask.window - 1, ahead), offset=0)
    else:
        each = splash.CausalMask(shape) if mask.causal else splash.FullMask(shape)
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([each] * H),
        block_sizes=splash.BlockSizes(
            block_q=M,
            block_kv=T,
            block_q_dkv=M,
            block_kv_dkv=T,
            block_q_dq=M,
            block_kv_dq=T,
        ),
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )
    sinks = jnp.full((H,), _NOTHING, jnp.float32)

    def row(q, k, v, ids) -> Any:
        return kernel(q, k, v, None if ids is None else splash.SegmentIds(*ids), sinks=sinks)

    o_BHLC = jax.vmap(row)(q.astype(q_BLHC.dtype), k, v, ids)
    return jnp.swapaxes(o_BHLC, 1, 2)[:, :L]


def _block(length: int) -> int:
    """The largest block that needs no more filling up than the smallest."""
    whole = length + -length % _BLOCKS[-1]
    return next(size for size in _BLOCKS if whole % size == 0)


def _segment_ids(mask: Mask, B: int, L: int, S: int, over_q: int, over_k: int):
    """int32 [B, L + over_q] and [B, S + over_k], a hidden key's unlike any query's, or None."""
    segments = mask.segments()
    if segments is not None:
        q_ids, kv_ids = segments
    elif mask.kv_length is not None or over_k:
        q_ids, kv_ids = jnp.zeros((B, L), jnp.int32), jnp.zeros((B, S), jnp.int32)
    else:
        return None
    stranger_B1 = jnp.max(q_ids, axis=1, keepdims=True) + 1
    q_ids, kv_ids = (
        jnp.pad(ids, ((0, 0), (0, over))) for ids, over in ((q_ids, over_q), (kv_ids, over_k))
    )
    end_B1 = S if mask.kv_length is None else jnp.minimum(mask.kv_length, S)[:, None]
    return q_ids, jnp.where(jnp.arange(S + over_k) < end_B1, kv_ids, stranger_B1)
