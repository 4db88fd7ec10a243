"""The rate of plain matrix products here: what a share of peak is a share of."""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp


@functools.cache
def gemm_rate(dtype: str, size: int = 1024, repeats: int = 5) -> float:
    """Best measured FLOP/s of a square matrix product in this dtype on this device.

    Takes about a tenth of a second on a CPU; a busy machine gives a low figure.
    """
    a = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best
