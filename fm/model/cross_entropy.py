"""Fused linear projection and cross-entropy over a vocabulary, in chunks of predictions.

All logits at once take tokens x vocabulary floats, several times over. Here a chunk's logits become
its part of the loss and, if differentiated, of the gradients in the forward pass, and are dropped:
memory is that of one chunk and of the gradients, and no logit is computed twice. The loss is one
weighted sum, so its cotangent is one number, multiplied in at the end (as in Liger Kernel, Hsu et
al. 2024, sec. 3.2; exact, not an approximation).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fm.attention.api import default_platform
from fm.attention.row_max import row_max
from fm.parallel.mesh import constrain_batch, mesh_shard_counts

# Logits per chunk on a CPU: 8 MiB in float32, the fastest among a quarter to four times that. They
# add to what a step holds, and the C library maps a block of over 32 MiB anew each time at 2 us per
# page, so few predictions are split into 4 chunks, of at least 1 MiB.
_CPU_LOGITS, _CPU_MIN_LOGITS, _CPU_MIN_CHUNKS = 2**21, 2**18, 4
# On an accelerator, which small products leave idle: 1 GiB in float32.
_ACCELERATOR_LOGITS = 2**28


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def fused_linear_cross_entropy(
    head_DV: jax.Array,
    h_TD: jax.Array,
    targets_T: jax.Array,
    weights_T: jax.Array,
    softcap: float = 0.0,
) -> jax.Array:
    """Returns the weighted sum of -log softmax(h @ head)[target] over all tokens, in nats.

    Args:
      head_DV: any float dtype; the product uses that of `h_TD`.
      h_TD: hidden states.
      targets_T: int, target tokens.
      weights_T: float32; no gradient flows to them.
      softcap: static; if given, logits become `softcap * tanh(logits / softcap)` first.
    """

    def body(total, chunk):
        return total + _chunk_loss(head_DV, *chunk, softcap=softcap)[0], None

    return _scan_chunks(body, jnp.zeros(()), head_DV.shape[1], (h_TD, targets_T, weights_T))[0]


def _forward(head_DV, h_TD, targets_T, weights_T, softcap):
    def body(carry, chunk):
        total, dhead_DV = carry
        h_TD, targets_T, weights_T = chunk
        loss, exps_TV, sums_T, logits_TV = _chunk_loss(head_DV, h_TD, targets_T, weights_T, softcap)
        dlogits_TV = exps_TV * (weights_T / sums_T)[:, None]
        dlogits_TV -= jnp.where(_is_target(targets_T, dlogits_TV.shape[1]), weights_T[:, None], 0.0)
        if softcap:
            dlogits_TV *= 1.0 - jnp.square(logits_TV / softcap)
        dlogits_TV = dlogits_TV.astype(h_TD.dtype)
        dh_TD = dlogits_TV @ head_DV.astype(h_TD.dtype).T
        dhead_DV += jnp.matmul(h_TD.T, dlogits_TV, preferred_element_type=jnp.float32)
        return (total + loss, dhead_DV), dh_TD

    start = jnp.zeros(()), jnp.zeros(head_DV.shape, jnp.float32)
    arrays = h_TD, targets_T, weights_T
    (total, dhead_DV), dh_TD = _scan_chunks(body, start, head_DV.shape[1], arrays)
    return total, (dhead_DV.astype(head_DV.dtype), dh_TD)


def _backward(softcap, gradients, cotangent):
    dhead_DV, dh_TD = gradients
    dhead_DV = (dhead_DV * cotangent).astype(dhead_DV.dtype)
    return dhead_DV, (dh_TD * cotangent).astype(dh_TD.dtype), None, None


fused_linear_cross_entropy.defvjp(_forward, _backward)


def _chunk_loss(head_DV, h_TD, targets_T, weights_T, softcap):
    """Returns a chunk's loss, exp(logits - row maximum), the row sums of those, and the logits."""
    head_DV = head_DV.astype(h_TD.dtype)
    logits_TV = jnp.matmul(h_TD, head_DV, preferred_element_type=jnp.float32)
    if softcap:
        logits_TV = softcap * jnp.tanh(logits_TV / softcap)
    max_T1 = row_max(logits_TV)
    exps_TV = jnp.exp(logits_TV - max_T1)
    sums_T = jnp.sum(exps_TV, axis=-1)
    target_T = jnp.take_along_axis(logits_TV, targets_T[:, None], axis=-1)[:, 0]
    loss = jnp.sum(weights_T * (jnp.log(sums_T) + max_T1[:, 0] - target_T))
    return loss, exps_TV, sums_T, logits_TV


def _is_target(targets_T, vocab_size):
    """Returns bool [T, V]; fused into its reader, where a scatter would not be."""
    return jnp.arange(vocab_size)[None] == targets_T[:, None]


def _chunk_rows(T: int, vocab_size: int) -> int:
    """Returns the rows per chunk, at most T; the last chunk is padded to it."""
    logits = _ACCELERATOR_LOGITS
    if default_platform() == "cpu":
        logits = min(_CPU_LOGITS, max(_CPU_MIN_LOGITS, vocab_size * -(-T // _CPU_MIN_CHUNKS)))
    chunks = -(-T // max(1, logits // vocab_size))
    return -(-T // chunks)


def _scan_chunks(body: Callable, start: Any, vocab_size: int, arrays: tuple) -> tuple[Any, Any]:
    """Scans `body` over chunks of rows, the last one padded with zero weights.

    Returns the carry, and the per-row outputs as one array without the padding. On a mesh each
    chunk takes equally many rows of every device's own.
    """
    shards = mesh_shard_counts().batch
    T = arrays[0].shape[0] // shards
    size = _chunk_rows(T, vocab_size)
    chunks = -(-T // size)

    def split(x):
        by_shard = constrain_batch(x.reshape(shards, T, *x.shape[1:]))
        padding = [(0, 0), (0, chunks * size - T), *[(0, 0)] * (x.ndim - 1)]
        padded = jnp.pad(by_shard, padding)
        chunked = jnp.moveaxis(padded.reshape(shards, chunks, size, *x.shape[1:]), 1, 0)
        return constrain_batch(chunked.reshape(chunks, shards * size, *x.shape[1:]), axis=1)

    def join(x):
        by_shard = jnp.moveaxis(x.reshape(chunks, shards, size, *x.shape[2:]), 0, 1)
        by_shard = by_shard.reshape(shards, chunks * size, *x.shape[2:])[:, :T]
        return constrain_batch(by_shard.reshape(shards * T, *x.shape[2:]))

    carry, rows = jax.lax.scan(body, start, jax.tree.map(split, arrays))
    return carry, jax.tree.map(join, rows)
