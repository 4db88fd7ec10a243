"""The three kernels as one differentiable function of arrays of any length."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from fm.attention.mask import Mask
from fm.attention.mosaic_gpu import backward_dkv, backward_dq, block_ranges, forward
from fm.attention.mosaic_gpu.limits import BLOCK_SIZE, unsupported_inputs
from fm.attention.mosaic_gpu.tiles import KernelSpec


def run(q_BLHC, k_BSKC, v_BSKC, *, mask: Mask, scale: float, softcap, machine) -> jax.Array:
    """`attend` on a given machine: the chip's, or the interpreter's anywhere."""
    reason = unsupported_inputs(q_BLHC, k_BSKC, mask, softcap)
    if reason is not None:
        raise NotImplementedError(reason)
    if v_BSKC.dtype != k_BSKC.dtype:
        raise NotImplementedError(
            f"pallas_gpu takes values of the keys' dtype {k_BSKC.dtype}, not {v_BSKC.dtype}"
        )
    if not scale > 0:
        raise NotImplementedError(f"pallas_gpu takes a positive scale, not {scale}")
    if (mask.q_segments is None) != (mask.kv_segments is None):
        raise ValueError("a Mask takes q_segments and kv_segments together")
    return _attend(q_BLHC, k_BSKC, v_BSKC, mask, float(scale), softcap, machine)


def kernel_spec(mask: Mask, keys: int, scale: float, softcap: float | None) -> KernelSpec:
    """What the kernels are specialised for."""
    return KernelSpec(
        causal=mask.causal,
        window=mask.window,
        has_prefix=mask.causal and mask.prefix is not None,
        has_kv_length=mask.kv_length is not None or keys % BLOCK_SIZE != 0,
        has_segments=mask.q_segments is not None,
        scale=scale,
        softcap=softcap,
    )


def _prepared(q_BLHC, k_BSKC, v_BSKC, mask: Mask):
    """Arrays of whole blocks, start, prefix and valid keys per row, and segments."""
    B, S = k_BSKC.shape[:2]
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, -x.shape[1] % BLOCK_SIZE), (0, 0), (0, 0)))
        for x in (q_BLHC, k_BSKC, v_BSKC)
    )
    valid = S if mask.kv_length is None else jnp.minimum(mask.kv_length, S)
    columns = (mask.q_start, mask.prefix, valid)
    columns = [0 if x is None else x for x in columns]
    rows_B3 = jnp.stack([jnp.broadcast_to(jnp.asarray(x, jnp.int32), (B,)) for x in columns], 1)
    segments = ()
    if mask.q_segments is not None and mask.kv_segments is not None:
        segments = tuple(
            jnp.broadcast_to(
                block_ranges.pad_segments(x, BLOCK_SIZE), (B, x.shape[1] + -x.shape[1] % BLOCK_SIZE)
            )
            for x in (mask.q_segments, mask.kv_segments)
        )
        segments = tuple(x.astype(jnp.int32) for x in segments)
    return q, k, v, rows_B3, segments


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(q, k, v, mask, scale, softcap, machine):
    return _forward(q, k, v, mask, scale, softcap, machine)[0]


def _forward(q, k, v, mask, scale, softcap, machine):
    B, L, S = *q.shape[:2], k.shape[1]
    spans = block_ranges.block_ranges(
        *block_ranges.block_visibility(mask, B, L, S, forward.BLOCK_Q, forward.BLOCK_K)
    )
    wide_q, wide_k, wide_v, rows, segments = _prepared(q, k, v, mask)
    rule = kernel_spec(mask, S, scale, softcap)
    o, lse_BHL = forward.forward(
        wide_q, wide_k, wide_v, spans, rows, segments, rule=rule, machine=machine
    )
    o = o[:, :L]
    return o, (q, k, v, mask, o, lse_BHL)


def _backward(scale, softcap, machine, kept, do):
    q, k, v, mask, o, lse_BHL = kept
    B, L, S, C = *q.shape[:2], k.shape[1], q.shape[3]
    given = _prepared(q, k, v, mask)
    rule = kernel_spec(mask, S, scale, softcap)
    delta_BLH = jnp.sum(o.astype(jnp.float32) * do.astype(jnp.float32), -1)
    delta_BHL = jnp.pad(delta_BLH.swapaxes(1, 2), ((0, 0), (0, 0), (0, -L % BLOCK_SIZE)))
    do = jnp.pad(do, ((0, 0), (0, -L % BLOCK_SIZE), (0, 0), (0, 0)))
    sizes = backward_dq.BLOCK_Q, backward_dq.BLOCK_K
    spans = block_ranges.block_ranges(*block_ranges.block_visibility(mask, B, L, S, *sizes))
    dq = backward_dq.backward_dq(given, do, lse_BHL, delta_BHL, spans, rule=rule, machine=machine)
    some, every = block_ranges.block_visibility(
        mask, B, L, S, backward_dkv.BLOCK_Q[C], backward_dkv.BLOCK_K
    )
    spans = block_ranges.block_ranges(some.swapaxes(1, 2), every.swapaxes(1, 2))
    dk, dv = backward_dkv.backward_dkv(
        given, do, lse_BHL, delta_BHL, spans, rule=rule, machine=machine
    )
    return dq[:, :L], dk[:, :S], dv[:, :S], None


_attend.defvjp(_forward, _backward)
