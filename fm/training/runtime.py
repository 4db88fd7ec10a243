"""Process-wide memory settings and the measured matrix-product rate."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import time

import jax
import jax.numpy as jnp

# Parameters of mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MALLOC_VARIABLES = (
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "GLIBC_TUNABLES",
)

_keep_freed_memory_succeeded = False


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory in the process, to avoid page faults at every step.

    The size of the process then stays at its peak.

    By default glibc maps every block over 32 MiB anew and returns it when freed, so a step with
    larger scratch memory faults in all its pages again (2 us each on the machine of
    BUILD_NOTES.md). Does nothing under another C library, or if the user has tuned the allocator
    by environment variables.
    """
    global _keep_freed_memory_succeeded
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _MALLOC_VARIABLES):
        return
    libc = ctypes.CDLL(None)
    _keep_freed_memory_succeeded = bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
    )


def keep_freed_memory_succeeded() -> bool:
    """Returns whether `keep_freed_memory` made glibc keep freed memory in this process."""
    return _keep_freed_memory_succeeded


@functools.cache
def gemm_flops_per_second(dtype: str, size: int = 1024, repeats: int = 5) -> float:
    """Returns the measured FLOP/s of a square matrix product on the default device.

    Returns the best of `repeats` timings; takes about 0.1 s on a CPU. Other load on the machine
    lowers the result.
    """
    a = jnp.ones((size, size), dtype)
    matmul = jax.jit(jnp.matmul)
    matmul(a, a).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        matmul(a, a).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best
