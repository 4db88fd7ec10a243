"""What the kernels take, and what they refuse."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp

from fm.attention.mask import Mask

BLOCK_SIZE = 128  # lengths are padded to it
HEAD_DIMS = (64, 128)


def unsupported_reason(q, k, v, mask: Mask, softcap: float | None, platform: str) -> str | None:
    """Why the kernels cannot run a case, None when they can.

    Args:
      q: queries [B, L, H, C], or their shape and dtype.
      k: keys [B, S, K, C], likewise.
      v: values, likewise.
      mask: of any kind but a window below 1.
      softcap: positive or None.
      platform: as `fm.attention.api.default_platform` names it.
    """
    if v.dtype != k.dtype:
        return f"pallas_gpu takes values of the keys' dtype {k.dtype}, not {v.dtype}"
    masked = not mask.is_full()
    return unsupported_inputs(q, k, mask, softcap) or _no_hopper(
        platform, masked or k.shape[1] % BLOCK_SIZE != 0
    )


def unsupported_inputs(q, k, mask: Mask | None, softcap: float | None) -> str | None:
    """The part of `refusal` that no device changes."""
    if q.dtype != k.dtype or q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"pallas_gpu takes bfloat16 or float16, not {q.dtype} queries and {k.dtype} keys"
    if q.shape[-1] not in HEAD_DIMS:
        return f"pallas_gpu takes heads {' or '.join(map(str, HEAD_DIMS))} wide, not {q.shape[-1]}"
    if 0 in (*q.shape, *k.shape):
        return f"pallas_gpu takes no empty array: q {q.shape}, k {k.shape}"
    if softcap is not None and not softcap > 0:
        return f"pallas_gpu takes a positive softcap, not {softcap}"
    if mask is not None and mask.window is not None and mask.window < 1:
        return f"pallas_gpu takes a window of 1 or more, not {mask.window}"
    return None


def _no_hopper(platform: str, masked: bool) -> str | None:
    if platform != "gpu":
        return f"pallas_gpu runs on an NVIDIA GPU of compute capability 9, not on {platform}"
    device = jax.devices(platform)[0]
    capability = getattr(device, "compute_capability", "none")
    if not capability.startswith("9."):
        return f"pallas_gpu is written for compute capability 9 (H100, H200), not {capability}"
    # JAX's own Mosaic GPU attention refuses causal masks for these versions of ptxas.
    version = re.search(r"cuda (\d+)", device.client.platform_version)
    if masked and version and 12080 <= int(version[1]) < 12091:
        return f"CUDA {version[1]} miscompiles masked kernels: 12.9.1 or later, or before 12.8"
    return None
