"""cuDNN's fused attention, as `jax.nn.dot_product_attention` reaches it, behind the contract."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from fm.attention.mask import Mask

_WIDEST, _WIDEST_HOPPER = 128, 256  # head widths


def unsupported_reason(
    q_BLHC: jax.Array | jax.ShapeDtypeStruct,
    k_BSKC: jax.Array | jax.ShapeDtypeStruct,
    v_BSKC: jax.Array | jax.ShapeDtypeStruct,
    mask: Mask,
    softcap: float | None,
    platform: str,
) -> str | None:
    """Why it cannot run, or None if it can."""
    if platform != "gpu":
        return f"cuDNN needs an NVIDIA GPU, not {platform}"
    L, C, S = *q_BLHC.shape[1::2], k_BSKC.shape[1]
    if L % 2 or S % 2:
        return f"cuDNN's gradient takes even lengths, not {L} queries and {S} keys"
    dtypes = {str(x.dtype) for x in (q_BLHC, k_BSKC, v_BSKC)}
    if not (dtypes <= {"bfloat16"} or dtypes <= {"float16"}):
        return f"cuDNN takes bfloat16 or float16 alone, not {', '.join(sorted(dtypes))}"
    widest = _widest()
    if C % 8 or widest < C:
        return f"cuDNN takes heads of a multiple of 8 up to {widest} here, not {C}"
    if softcap is not None:
        return "cuDNN has no softcap"
    if mask.segments() is not None:
        return "cuDNN would need the segments written out as L x S scores"
    if mask.causal and mask.prefix is not None:
        return "cuDNN has no prefix"
    if (mask.causal or mask.window is not None) and mask.q_start is not None:
        return "cuDNN's queries start at position 0, not at q_start"
    if mask.window is not None:
        if not mask.causal:
            return "cuDNN has no window without causality"
        # Rows whose window lies past the keys would see nothing: not promised to stay finite.
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
    """Same contract as the reference where `refusal` has none; memory linear in length.

    Args:
      q_BLHC: queries.
      k_BSKC: keys.
      v_BSKC: values.
      mask: who sees whom.
      scale: of the scores.
      softcap: None.
      backend: of `jax.nn.dot_product_attention`; its "xla" takes the same arguments anywhere.
    """
    del softcap
    S, length_B = k_BSKC.shape[1], mask.kv_length
    o_BLHC = jax.nn.dot_product_attention(
        q_BLHC,
        k_BSKC,
        v_BSKC,
        scale=scale,
        is_causal=mask.causal,
        local_window_size=None if mask.window is None else (mask.window - 1, 0),
        # A row without keys gets one here and zeros below.
        key_value_seq_lengths=(
            None if length_B is None else jnp.clip(length_B, 1, S).astype(jnp.int32)
        ),
        implementation=backend,
    )
    if length_B is None:
        return o_BLHC
    return jnp.where((length_B > 0)[:, None, None, None], o_BLHC, 0.0)


def _widest() -> int:
    """The widest head that JAX lets this GPU have."""
    capability = getattr(jax.devices()[0], "compute_capability", "0")
    return _WIDEST_HOPPER if float(capability) >= 9.0 else _WIDEST
