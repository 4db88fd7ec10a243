"""Attention as batched matrix products over a held score matrix: the fast way on a CPU.

XLA:CPU turns `bhlc,bhsc->bhls` with heads ahead of length into plain matrix products, which the
usual `blhc` einsum does not get. The backward pass is arranged by hand: it keeps the
unnormalised weights and the row sums, so nothing is exponentiated twice.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from fm.attention.mask import Mask

_MASKED = -1e30


def attend(
    q_BLHC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKC: jax.Array,
    *,
    mask: Mask,
    scale: float,
    softcap: float | None,
) -> jax.Array:
    """Same contract as the reference; memory B x H x L x S of the input's dtype."""
    B, L, H, C = q_BLHC.shape
    S, K = k_BSKC.shape[1:3]
    q_BHLC = jnp.swapaxes(q_BLHC, 1, 2)
    # Queries of the heads that share a key head lie one after another: one larger product.
    q_BKMC = q_BHLC.reshape(B, K, (H // K) * L, C)
    k_BKSC, v_BKSC = jnp.swapaxes(k_BSKC, 1, 2), jnp.swapaxes(v_BSKC, 1, 2)
    bias = None
    if not mask.is_full():
        seen_BLS = mask.visible(L, S)
        bias_BLS = jnp.where(seen_BLS, 0.0, _MASKED).astype(jnp.float32)
        bias = jnp.tile(bias_BLS, (1, H // K, 1))[:, None]
    o_BKMC: jax.Array = _attend(q_BKMC, k_BKSC, v_BKSC, bias, scale, softcap)
    return jnp.swapaxes(o_BKMC.reshape(B, H, L, C), 1, 2)


def _weights(q, k, bias, scale, softcap):
    """Unnormalised weights and the inverse of their row sums, both float32."""
    scores = scale * jnp.einsum("bkmc,bksc->bkms", q, k, preferred_element_type=jnp.float32)
    slope = None
    if softcap is not None:
        capped = jnp.tanh(scores / softcap)
        scores, slope = softcap * capped, 1.0 - capped**2
    if bias is not None:
        scores = scores + bias
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    if bias is not None:
        weights = jnp.where(top > 0.5 * _MASKED, weights, 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights, jnp.where(total == 0.0, 0.0, 1.0 / total), slope


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(q, k, v, bias, scale, softcap):
    return _forward(q, k, v, bias, scale, softcap)[0]


def _forward(q, k, v, bias, scale, softcap):
    weights, inverse, slope = _weights(q, k, bias, scale, softcap)
    weights = weights.astype(v.dtype)
    o = jnp.einsum("bkms,bksc->bkmc", weights, v, preferred_element_type=jnp.float32) * inverse
    o = o.astype(q.dtype)
    return o, (q, k, v, weights, inverse, slope, o, bias)


def _backward(scale, softcap, kept, do):
    q, k, v, weights, inverse, slope, o, bias = kept
    # d softmax: p * (dp - sum(p dp)), and sum(p dp) = sum(o do) (Dao et al. 2022, eq. 4).
    shift = jnp.sum(o.astype(jnp.float32) * do.astype(jnp.float32), axis=-1, keepdims=True)
    scaled_do = (do.astype(jnp.float32) * inverse).astype(do.dtype)
    dv = jnp.einsum("bkms,bkmc->bksc", weights, scaled_do, preferred_element_type=jnp.float32)
    dp = jnp.einsum("bkmc,bksc->bkms", scaled_do, v, preferred_element_type=jnp.float32)
    ds = weights.astype(jnp.float32) * (dp - shift * inverse) * scale
    if slope is not None:
        ds = ds * slope
    ds = ds.astype(q.dtype)
    dq = jnp.einsum("bkms,bksc->bkmc", ds, k, preferred_element_type=jnp.float32)
    dk = jnp.einsum("bkms,bkmc->bksc", ds, q, preferred_element_type=jnp.float32)
    dbias = None if bias is None else jnp.zeros_like(bias)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), dbias


_attend.defvjp(_forward, _backward)
