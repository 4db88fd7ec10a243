"""tokamax's FlashAttention kernels: Mosaic GPU on Hopper and Blackwell, Triton on other GPUs.

An optional package (`pip install "fm[tokamax]"`: Python 3.12 and jax 0.11.1, or later) that is
imported when used. Its kernels take a range of visible keys for each query, which can say all that
a `Mask` can as long as its segments are packed.
"""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp

from fm.attention.mask import Mask
from fm.attention.requirements import compute_capability, unsupported_dtypes, unsupported_gpu
from fm.parallel.mesh import default_device

# What its own tests and tuned configurations cover; larger heads need more shared memory.
_MAX_HEAD_DIM = 128


def unsupported_reason(q_BLHC, k_BSKC, v_BSKC, mask, softcap, platform) -> str | None:
    """Returns why tokamax cannot compute this attention, as a message; None if it can."""
    if reason := unsupported_gpu("tokamax", platform, least_capability=8.0):
        return reason
    if importlib.util.find_spec("tokamax") is None:
        return 'tokamax is not installed: pip install "fm[tokamax]" (Python 3.12 or later)'
    kernel = kernel_name(compute_capability(platform))
    return unsupported_inputs(q_BLHC, k_BSKC, v_BSKC, mask, softcap, kernel)


def unsupported_inputs(
    q_BLHC, k_BSKC, v_BSKC, mask: Mask, softcap: float | None, kernel: str
) -> str | None:
    """Returns why a kernel of tokamax cannot take these inputs on any device, or None if it can."""
    arrays = (q_BLHC, k_BSKC, v_BSKC)
    if reason := unsupported_dtypes("tokamax", arrays, ("bfloat16", "float16")):
        return reason
    if q_BLHC.shape[-1] > _MAX_HEAD_DIM:
        return f"tokamax takes a head dimension up to {_MAX_HEAD_DIM}, not {q_BLHC.shape[-1]}"
    if mask.segments() is not None and not mask.packed:
        return "tokamax takes ranges of keys, so segments that are runs of positions (packed)"
    if softcap is not None and kernel == "triton":
        return "tokamax's Triton kernel, for GPUs other than Hopper and Blackwell, has no softcap"
    return None


def kernel_name(capability: str) -> str:
    """Returns tokamax's name of its fastest kernel, with a gradient, on a compute capability."""
    return "mosaic_gpu" if 9.0 <= float(capability) < 11.0 else "triton"


def attend(
    q_BLHC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKC: jax.Array,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None,
    kernel: str | None = None,
) -> jax.Array:
    """Returns attention o_BLHC by a tokamax kernel; memory is linear in length.

    Its Triton gradient alone makes an L x S mask, one byte an entry, unless the mask is causal and
    nothing more.

    Args:
      q_BLHC: queries.
      k_BSKC: keys.
      v_BSKC: values.
      mask: which keys each query sees.
      scale: factor on the scores.
      softcap: of the scores.
      kernel: tokamax's name of an implementation, by default the fastest here; "xla" runs anywhere.
    """
    # `tokamax.dot_product_attention` takes no ranges; these two modules are what it is made of.
    from tokamax._src.ops.attention import api, base  # pyright: ignore[reportMissingImports]

    kernel = kernel or kernel_name(getattr(default_device(), "compute_capability", "0"))
    L, S = q_BLHC.shape[1], k_BSKC.shape[1]
    first_BL, end_BL = key_ranges(mask, L, S)
    ranges, empty_BL = {}, None
    if first_BL is not None and end_BL is not None:
        # A query without keys attends to one here; its output is replaced by zeros below.
        empty_BL = first_BL >= end_BL
        ranges = {
            "k_start": jnp.where(empty_BL, 0, first_BL)[:, None],
            "k_end": jnp.where(empty_BL, 1, end_BL)[:, None],
        }
    o_BLHC = api.IMPLEMENTATIONS[kernel](
        q_BLHC,
        k_BSKC,
        v_BSKC,
        mask=base.Mask(is_causal=_only_causal(mask), **ranges),
        logits_scale=scale,
        logits_soft_cap=softcap,
    )
    return o_BLHC if empty_BL is None else jnp.where(empty_BL[..., None, None], 0.0, o_BLHC)


def _only_causal(mask: Mask) -> bool:
    """Whether causality needs no range: query i sees keys up to i."""
    return mask.causal and mask.prefix is None and mask.q_start is None


def key_ranges(mask: Mask, L: int, S: int) -> tuple[jax.Array | None, jax.Array | None]:
    """Returns each query's first and past-the-last key, int32 [B, L]; None if it sees all S.

    Of a mask that is causal and nothing more the ranges are None: the kernel needs to know only
    that it is. Elsewhere they hold causality too.

    Args:
      mask: its segments, if it has any, are packed.
      L: number of queries.
      S: number of keys.
    """
    segments = mask.segments()
    bounds = mask.window, mask.window_right, mask.kv_length, segments
    if all(x is None for x in bounds) and (not mask.causal or _only_causal(mask)):
        return None, None
    i_BL = jnp.arange(L)[None]
    if mask.q_start is not None:
        i_BL = i_BL + mask.q_start[:, None]
    first_BL, end_BL = jnp.zeros_like(i_BL), jnp.full_like(i_BL, S)
    if mask.causal:
        past_BL = i_BL + 1
        if mask.prefix is not None:
            past_BL = jnp.maximum(past_BL, mask.prefix[:, None])
        end_BL = jnp.minimum(end_BL, past_BL)
    if mask.window is not None:
        first_BL = jnp.maximum(first_BL, i_BL - mask.window + 1)
    if mask.window_right is not None:
        end_BL = jnp.minimum(end_BL, i_BL + mask.window_right)
    if mask.kv_length is not None:
        end_BL = jnp.minimum(end_BL, mask.kv_length[:, None])
    if segments is not None:
        # A run starts where the segment changes; it ends where the next one starts.
        starts_BL = jnp.pad(segments[1][:, 1:] != segments[1][:, :-1], ((0, 0), (1, 0)))
        places = jnp.arange(S)[None]
        run_BL = jax.lax.cummax(jnp.where(starts_BL, places, 0), axis=1)
        nexts_BL = jnp.pad(starts_BL[:, 1:], ((0, 0), (0, 1)), constant_values=True)
        run_end_BL = jax.lax.cummin(jnp.where(nexts_BL, places + 1, S), axis=1, reverse=True)
        first_BL, end_BL = jnp.maximum(first_BL, run_BL), jnp.minimum(end_BL, run_end_BL)
    return first_BL.astype(jnp.int32), jnp.clip(end_BL, 0, S).astype(jnp.int32)
