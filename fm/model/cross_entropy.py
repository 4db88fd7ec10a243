"""The loss over a vocabulary, a chunk of predictions at a time, its gradients made on the way.

All logits at once take tokens x vocabulary floats, several times over. Here a chunk's logits are
turned into its share of the loss and, when a gradient is wanted, of the gradients, then dropped:
memory is that of one chunk and of the gradients, and no logit is computed twice. This works
because the loss is one weighted sum, so the cotangent is one number, multiplied in at the end
(as in Liger Kernel, Hsu et al. 2024, sec. 3.2; exact, not an approximation).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fm.attention.api import default_platform
from fm.parallel.mesh import constrain_batch, mesh_shards

# Logits held at a time on a CPU, 8 MiB in float32: of a quarter to four times that, the fastest
# alone. But they add to what a step holds, and the C library maps a block of over 32 MiB anew each
# time, at 2 us a page: so few predictions are taken in four parts, of 1 MiB at least.
_HELD, _LEAST, _PARTS = 2**21, 2**18, 4
# On an accelerator, which small products leave idle: 1 GiB in float32.
_HELD_THERE = 2**28


@jax.custom_vjp
def fused_linear_cross_entropy(
    head_DV: jax.Array, h_TD: jax.Array, targets_T: jax.Array, weights_T: jax.Array
) -> jax.Array:
    """Sum over predictions of weight times -log softmax(h head)[target], in nats, float32.

    Args:
      head_DV: of any float dtype; multiplied in that of `h_TD`.
      h_TD: what the predictions are read from.
      targets_T: int, the right tokens.
      weights_T: float32; no gradient flows to them.
    """

    def body(total, chunk):
        return total + _nats(head_DV, *chunk)[0], None

    return _over_chunks(body, jnp.zeros(()), head_DV.shape[1], (h_TD, targets_T, weights_T))[0]


def _forward(head_DV, h_TD, targets_T, weights_T):
    # Where a chunk is bound by the memory its logits move through, they are kept as narrow as the
    # model's activations are; the loss alone, above, has them in float32 always.
    kept = jnp.float32 if default_platform() == "cpu" else h_TD.dtype

    def body(carry, chunk):
        total, dhead_DV = carry
        h_TD, targets_T, weights_T = chunk
        nats, exps_TV, sums_T = _nats(head_DV, h_TD, targets_T, weights_T, kept)
        slope_TV = exps_TV * (weights_T / sums_T)[:, None]
        slope_TV -= jnp.where(_right(targets_T, slope_TV.shape[1]), weights_T[:, None], 0.0)
        slope_TV = slope_TV.astype(h_TD.dtype)
        dh_TD = slope_TV @ head_DV.astype(h_TD.dtype).T
        dhead_DV += jnp.matmul(h_TD.T, slope_TV, preferred_element_type=jnp.float32)
        return (total + nats, dhead_DV), dh_TD

    start = jnp.zeros(()), jnp.zeros(head_DV.shape, jnp.float32)
    arrays = h_TD, targets_T, weights_T
    (total, dhead_DV), dh_TD = _over_chunks(body, start, head_DV.shape[1], arrays)
    return total, (dhead_DV.astype(head_DV.dtype), dh_TD)


def _backward(gradients, cotangent):
    dhead_DV, dh_TD = gradients
    dhead_DV = (dhead_DV * cotangent).astype(dhead_DV.dtype)
    return dhead_DV, (dh_TD * cotangent).astype(dh_TD.dtype), None, None


fused_linear_cross_entropy.defvjp(_forward, _backward)


def _nats(head_DV, h_TD, targets_T, weights_T, kept=jnp.float32):
    """A chunk's sum, exponentiated logits less their maximum, and the row sums of those."""
    head_DV = head_DV.astype(h_TD.dtype)
    logits_TV = jnp.matmul(h_TD, head_DV, preferred_element_type=kept).astype(jnp.float32)
    top_T1 = jnp.max(logits_TV, axis=-1, keepdims=True)
    exps_TV = jnp.exp(logits_TV - top_T1)
    sums_T = jnp.sum(exps_TV, axis=-1)
    picked_T = jnp.take_along_axis(logits_TV, targets_T[:, None], axis=-1)[:, 0]
    return jnp.sum(weights_T * (jnp.log(sums_T) + top_T1[:, 0] - picked_T)), exps_TV, sums_T


def _right(targets_T, vocab):
    """Where the right token is, [T, V]: fused into its reader, where a scatter would not be."""
    return jnp.arange(vocab)[None] == targets_T[:, None]


def _size(T: int, vocab: int) -> int:
    """Rows of a chunk, at most T: all alike, since the last one is filled up."""
    held = _HELD_THERE
    if default_platform() == "cpu":
        held = min(_HELD, max(_LEAST, vocab * -(-T // _PARTS)))
    chunks = -(-T // max(1, held // vocab))
    return -(-T // chunks)


def _over_chunks(body: Callable, start: Any, vocab: int, arrays: tuple) -> tuple[Any, Any]:
    """`lax.scan` over rows in chunks, the last one filled up with zero weights.

    What the body gives per row comes back as one array, without the filling. On a mesh every
    device has as many rows of each chunk, taken from its own.
    """
    parts = mesh_shards().batch
    T = arrays[0].shape[0] // parts
    size = _size(T, vocab)
    chunks = -(-T // size)

    def cut(x):
        whole = constrain_batch(x.reshape(parts, T, *x.shape[1:]))
        filled = jnp.pad(whole, [(0, 0), (0, chunks * size - T), *[(0, 0)] * (x.ndim - 1)])
        taken = jnp.moveaxis(filled.reshape(parts, chunks, size, *x.shape[1:]), 1, 0)
        return constrain_batch(taken.reshape(chunks, parts * size, *x.shape[1:]), axis=1)

    def joined(x):
        apart = jnp.moveaxis(x.reshape(chunks, parts, size, *x.shape[2:]), 0, 1)
        apart = apart.reshape(parts, chunks * size, *x.shape[2:])[:, :T]
        return constrain_batch(apart.reshape(parts * T, *x.shape[2:]))

    carry, rows = jax.lax.scan(body, start, jax.tree.map(cut, arrays))
    return carry, jax.tree.map(joined, rows)
