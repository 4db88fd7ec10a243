"""cuDNN's fused attention, called through `jax.nn.dot_product_attention`."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from fm.attention.mask import Mask, pad_head_dim
from fm.attention.requirements import compute_capability, unsupported_dtypes, unsupported_gpu

_MAX_HEAD_DIM, _MAX_HEAD_DIM_HOPPER = 128, 256


def unsupported_reason(q_BLHC, k_BSKC, v_BSKC, mask, softcap, platform) -> str | None:
    """Returns why cuDNN cannot compute this attention, as a message; None if it can."""
    if reason := unsupported_gpu("cuDNN", platform, least_capability=None):
        return reason
    L, C, S = *q_BLHC.shape[1::2], k_BSKC.shape[1]
    if L % 2 or S % 2:
        return f"cuDNN's gradient takes even lengths, not {L} queries and {S} keys"
    arrays = (q_BLHC, k_BSKC, v_BSKC)
    if reason := unsupported_dtypes("cuDNN", arrays, ("bfloat16", "float16")):
        return reason
    is_hopper = float(compute_capability()) >= 9.0
    max_head_dim = _MAX_HEAD_DIM_HOPPER if is_hopper else _MAX_HEAD_DIM
    if max_head_dim < C:
        return f"cuDNN takes head dimensions up to {max_head_dim}, not {C}"
    if softcap is not None:
        return "cuDNN has no softcap"
    if mask.segments() is not None:
        return "cuDNN would need the segments materialized as an L x S mask"
    if mask.causal and mask.prefix is not None:
        return "cuDNN has no prefix"
    if mask.is_positional() and mask.q_start is not None:
        return "cuDNN's queries start at position 0, not at q_start"
    if mask.window_right is not None:
        return "cuDNN has no window of keys ahead (window_right)"
    if mask.window is not None:
        if not mask.causal:
            return "cuDNN has no window without causality"
        # A row whose window lies past the keys sees none: cuDNN may not return finite values.
        if mask.kv_length is not None or L > S:
            return "cuDNN's window needs a key for every query, so no kv_length and L <= S"
    return None


def attend(
    q_BLHC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKC: jax.Array,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None,
    backend: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Returns attention o_BLHC by `jax.nn.dot_product_attention`, with cuDNN by default.

    Heads are padded to a multiple of 8, which is all that cuDNN takes: at most 8 times the
    products of one channel, where the alternative is to move all scores through memory.

    `backend` is that of `jax.nn.dot_product_attention`; "xla" takes the same arguments anywhere.
    """
    del softcap
    S, length_B = k_BSKC.shape[1], mask.kv_length
    C = q_BLHC.shape[-1]
    o_BLHC = jax.nn.dot_product_attention(
        *(pad_head_dim(x, C + -C % 8) for x in (q_BLHC, k_BSKC, v_BSKC)),
        scale=scale,
        is_causal=mask.causal,
        local_window_size=None if mask.window is None else (mask.window - 1, 0),
        # A row without keys attends to one here; its output is replaced by zeros below.
        key_value_seq_lengths=(
            None if length_B is None else jnp.clip(length_B, 1, S).astype(jnp.int32)
        ),
        implementation=backend,
    )[..., :C]
    if length_B is None:
        return o_BLHC
    return jnp.where((length_B > 0)[:, None, None, None], o_BLHC, 0.0)
