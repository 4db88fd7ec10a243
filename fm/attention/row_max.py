"""The maximum of every row, as a softmax subtracts it: vectorized on a CPU, with the same bits.

XLA:CPU reduces the last axis number by number, in windows of 32. That took a quarter of attention's
forward pass at training shapes.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fm.parallel.mesh import default_device

# float32 numbers in a vector register (AVX-512), and how many of a row are compared in one loop:
# each is a load in the loop's body.
_VECTOR, _UNROLLED = 16, 512


def row_max(x: jax.Array) -> jax.Array:
    """Returns the maximum over the last axis, which is kept with size 1; NaN if one is NaN."""
    if default_device().platform != "cpu":
        # There a reduction of rows is one kernel, or a part of one.
        return jnp.max(x, axis=-1, keepdims=True)
    width = math.gcd(x.shape[-1], _UNROLLED)
    if width < x.shape[-1]:
        x = jnp.max(x.reshape(*x.shape[:-1], -1, width), axis=-2)
    # Halves, since XLA would merge a second reduction with the first.
    while x.shape[-1] > _VECTOR and x.shape[-1] % 2 == 0:
        x = jnp.maximum(*jnp.split(x, 2, axis=-1))
    return jnp.max(x, axis=-1, keepdims=True)
