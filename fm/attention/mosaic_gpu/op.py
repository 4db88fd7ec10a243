"""Differentiable attention by the three kernels, for arrays of any length."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp

from fm.attention.mask import Mask, pad_head_dim
from fm.attention.mosaic_gpu import block_ranges

# The kernels are imported where they are used: Pallas takes a third of a second to import, which
# no other device should pay.

BLOCK_SIZE = 128  # lengths are padded to a multiple of it
HEAD_DIMS = (64, 128)  # heads are padded with zeros to the next of these
# Padding heads is worth it while the padded products take less time than the fallback needs to move
# its scores. The kernels do 292 TFLOP/s or more on an H100 (docs/benchmarks.md), 4 C FLOPs a score;
# XLA writes and reads its float32 scores twice each, 16 bytes at 3.35 TB/s.
_MAX_PADDED_WORK = 16 / 3.35e12 * 292e12 / 4  # padded lengths x head_dim, per pair of lengths


def unsupported_reason(q, k, v, mask: Mask, softcap: float | None, platform: str) -> str | None:
    """Returns why the Mosaic GPU kernels cannot compute this attention; None if they can."""
    if v.dtype != k.dtype:
        return f"mosaic_gpu takes values of the keys' dtype {k.dtype}, not {v.dtype}"
    masked = not mask.is_full() or k.shape[1] % BLOCK_SIZE != 0
    return unsupported_inputs(q, k, mask, softcap) or _unsupported_device(platform, masked)


def unsupported_inputs(q, k, mask: Mask | None, softcap: float | None) -> str | None:
    """Returns why the kernels cannot take these inputs (e.g. their dtype), or None if they can."""
    if q.dtype != k.dtype or q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"mosaic_gpu takes bfloat16 or float16, not {q.dtype} queries and {k.dtype} keys"
    C = q.shape[-1]
    if max(HEAD_DIMS) < C:
        return f"mosaic_gpu takes a head dimension up to {max(HEAD_DIMS)}, not {C}"
    if 0 in (*q.shape, *k.shape):
        return f"mosaic_gpu takes no empty array: q {q.shape}, k {k.shape}"
    L, S = q.shape[1], k.shape[1]
    padded_L, padded_S = (n + -n % BLOCK_SIZE for n in (L, S))
    if C not in HEAD_DIMS and padded_L * padded_S * _padded_head_dim(C) > _MAX_PADDED_WORK * L * S:
        return (
            f"mosaic_gpu would pad {L} x {S} positions and heads of {C} to {padded_L} x {padded_S} "
            f"and {_padded_head_dim(C)}, which is slower than plain XLA"
        )
    if softcap is not None and not softcap > 0:
        return f"mosaic_gpu takes a positive softcap, not {softcap}"
    for window in () if mask is None else (mask.window, mask.window_right):
        if window is not None and window < 1:
            return f"mosaic_gpu takes a window of 1 or more, not {window}"
    return None


def _unsupported_device(platform: str, masked: bool) -> str | None:
    if platform != "gpu":
        return f"mosaic_gpu runs on an NVIDIA GPU of compute capability 9, not on {platform}"
    device = jax.devices(platform)[0]
    capability = getattr(device, "compute_capability", "none")
    if not capability.startswith("9."):
        return f"mosaic_gpu is written for compute capability 9 (H100, H200), not {capability}"
    # JAX's own Mosaic GPU attention rejects causal masks for these versions of ptxas.
    version = re.search(r"cuda (\d+)", device.client.platform_version)
    if masked and version and 12080 <= int(version[1]) < 12091:
        return f"CUDA {version[1]} miscompiles masked kernels: 12.9.1 or later, or before 12.8"
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
    """Returns attention o_BLHC by the Mosaic GPU kernels; extra memory B x H x L float32.

    Raises:
      NotImplementedError: see `unsupported_inputs`; the scale is not positive; or the values'
        dtype is not the keys'.
    """
    from fm.attention.mosaic_gpu.common import HopperOps

    return run(q_BLHC, k_BSKC, v_BSKC, mask=mask, scale=scale, softcap=softcap, ops=HopperOps())


def run(q_BLHC, k_BSKC, v_BSKC, *, mask: Mask, scale: float, softcap, ops) -> jax.Array:
    """Returns attention o_BLHC; `ops` is `HopperOps` (GPU) or `InterpretedOps` (any device)."""
    reason = unsupported_inputs(q_BLHC, k_BSKC, mask, softcap)
    if reason is not None:
        raise NotImplementedError(reason)
    if v_BSKC.dtype != k_BSKC.dtype:
        raise NotImplementedError(
            f"mosaic_gpu takes values of the keys' dtype {k_BSKC.dtype}, not {v_BSKC.dtype}"
        )
    if not scale > 0:
        raise NotImplementedError(f"mosaic_gpu takes a positive scale, not {scale}")
    mask.segments()  # raises if only one of the two is given
    C = q_BLHC.shape[-1]
    q, k, v = (pad_head_dim(x, _padded_head_dim(C)) for x in (q_BLHC, k_BSKC, v_BSKC))
    o: jax.Array = _attend(q, k, v, mask, float(scale), softcap, ops)
    return o[..., :C]


def _padded_head_dim(C: int) -> int:
    return next(size for size in HEAD_DIMS if size >= C)


def kernel_spec(mask: Mask, num_keys: int, scale: float, softcap: float | None):
    """Returns the `KernelSpec` to compile kernels for: the mask's parts, scale and softcap."""
    from fm.attention.mosaic_gpu.common import KernelSpec

    return KernelSpec(
        causal=mask.causal,
        window=mask.window,
        window_right=mask.window_right,
        has_prefix=mask.causal and mask.prefix is not None,
        has_kv_length=mask.kv_length is not None or num_keys % BLOCK_SIZE != 0,
        has_segments=mask.q_segments is not None,
        scale=scale,
        softcap=softcap,
    )


def _pad_length(x):
    """Pads axis 1 of [B, L, ...] with zeros to whole blocks."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % BLOCK_SIZE), *[(0, 0)] * (x.ndim - 2)))


def _kernel_inputs(q_BLHC, k_BSKC, v_BSKC, mask: Mask):
    """Padded q, k and v; (q_start, prefix, valid keys) of each row, int32 [B, 3]; segments."""
    B, S = k_BSKC.shape[:2]
    q, k, v = (_pad_length(x) for x in (q_BLHC, k_BSKC, v_BSKC))
    valid = S if mask.kv_length is None else jnp.minimum(mask.kv_length, S)
    columns = [0 if x is None else x for x in (mask.q_start, mask.prefix, valid)]
    rows_B3 = jnp.stack([jnp.broadcast_to(jnp.asarray(x, jnp.int32), (B,)) for x in columns], 1)
    segments = tuple(
        jnp.broadcast_to(
            block_ranges.edge_pad_segments(x, BLOCK_SIZE),
            (B, x.shape[1] + -x.shape[1] % BLOCK_SIZE),
        ).astype(jnp.int32)
        for x in mask.segments() or ()
    )
    return q, k, v, rows_B3, segments


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(q, k, v, mask, scale, softcap, ops):
    return _forward(q, k, v, mask, scale, softcap, ops)[0]


def _forward(q, k, v, mask, scale, softcap, ops):
    from fm.attention.mosaic_gpu import forward

    B, L, S = *q.shape[:2], k.shape[1]
    visibility = block_ranges.any_and_all_visible(mask, B, L, S, forward.BLOCK_Q, forward.BLOCK_K)
    o, lse_BHL = forward.forward(
        _kernel_inputs(q, k, v, mask),
        block_ranges.block_ranges(*visibility),
        spec=kernel_spec(mask, S, scale, softcap),
        ops=ops,
    )
    o = o[:, :L]
    return o, (q, k, v, mask, o, lse_BHL)


def _backward(scale, softcap, ops, residuals, do):
    from fm.attention.mosaic_gpu import backward_dkv, backward_dq

    q, k, v, mask, o, lse_BHL = residuals
    B, L, S, C = *q.shape[:2], k.shape[1], q.shape[3]
    inputs = _kernel_inputs(q, k, v, mask)
    spec = kernel_spec(mask, S, scale, softcap)
    delta_BLH = jnp.sum(o.astype(jnp.float32) * do.astype(jnp.float32), -1)
    delta_BHL = jnp.pad(delta_BLH.swapaxes(1, 2), ((0, 0), (0, 0), (0, -L % BLOCK_SIZE)))
    do = _pad_length(do)

    def visibility(block_q, block_k):
        return block_ranges.any_and_all_visible(mask, B, L, S, block_q, block_k)

    ranges = block_ranges.block_ranges(*visibility(backward_dq.BLOCK_Q, backward_dq.BLOCK_K))
    dq = backward_dq.backward_dq(inputs, do, lse_BHL, delta_BHL, ranges, spec=spec, ops=ops)
    tables = visibility(backward_dkv.BLOCK_Q[C], backward_dkv.BLOCK_K)
    ranges = block_ranges.block_ranges(*(table.swapaxes(1, 2) for table in tables))
    dk, dv = backward_dkv.backward_dkv(inputs, do, lse_BHL, delta_BHL, ranges, spec=spec, ops=ops)
    return dq[:, :L], dk[:, :S], dv[:, :S], None


_attend.defvjp(_forward, _backward)
