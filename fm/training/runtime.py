"""Process-wide memory settings, memory in use, and the measured matrix-product rate."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import platform
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from fm.parallel.mesh import default_device

# Parameters of mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MALLOC_VARIABLES = (
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "GLIBC_TUNABLES",
)

# Least time of a chain of matrix products: calling it and waiting for it take under 0.1 ms.
_GEMM_SECONDS, _MAX_GEMM_CHAIN = 0.05, 4096

_keep_freed_memory_succeeded = False


def keep_freed_memory() -> None:
    """Makes the process keep freed memory, to avoid page faults at every step.

    The size of the process then stays at its peak. To be called before JAX first uses the CPU.

    By default glibc maps every block over 32 MiB anew and returns it when freed, so a step with
    larger scratch memory faults in all its pages again. On a virtual machine whose host takes back
    free memory, that took up to 1.1 s of a step of 2.4 s (BUILD_NOTES.md, 2026-12-01). Blocks over
    64 MiB that another thread than the first asks for are mapped anew in any case; programs on a
    CPU therefore run in the thread that calls them, which makes no batch meanwhile.

    The allocator's settings are left alone under another C library, and if the user has tuned it
    by environment variables.
    """
    global _keep_freed_memory_succeeded
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _MALLOC_VARIABLES):
        return
    libc = ctypes.CDLL(None)
    _keep_freed_memory_succeeded = bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
    )


def keep_freed_memory_succeeded() -> bool:
    """Returns whether `keep_freed_memory` made glibc keep freed memory in this process."""
    return _keep_freed_memory_succeeded


def memory_in_use() -> dict[str, float | None]:
    """Returns the memory in use: `device_memory_bytes` and `process_memory_bytes`.

    The first is the peak of the fullest of this process' devices, where they tell it; the second
    the resident memory of the process, on a CPU.
    """
    platform = default_device().platform
    if platform == "cpu":
        used = float(psutil.Process().memory_info().rss)
        return {"device_memory_bytes": None, "process_memory_bytes": used}
    stats = [device.memory_stats() or {} for device in jax.local_devices(backend=platform)]
    peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    peak = float(max(peaks)) if peaks else None
    return {"device_memory_bytes": peak, "process_memory_bytes": None}


def gemm_flops_per_second(dtype: str, size: int | None = None, repeats: int = 5) -> float:
    """Returns the measured FLOP/s of square matrix products on the default device.

    Times a chain of products in one program, so long that calling it and waiting for it do not
    count, and returns the best of `repeats` timings. Takes under a second on a CPU. Other load on
    the machine lowers the result.

    Args:
      dtype: of the matrices.
      size: their rows and columns; by platform and dtype unless given.
      repeats: number of timings.
    """
    device = default_device()
    return _measure_gemm(device, dtype, size or gemm_size(device.platform, dtype), repeats)


def gemm_size(platform: str, dtype: str) -> int:
    """Returns the rows and columns of square matrices whose product keeps a device busy."""
    if platform == "cpu":
        return 1024
    return 8192 if jnp.dtype(dtype).itemsize <= 2 else 4096


@functools.cache
def _measure_gemm(device: Any, dtype: str, size: int, repeats: int) -> float:
    # Scaled so that a product with it neither grows nor shrinks; of random numbers, since zeros and
    # ones take a GPU less power and so run at a higher clock.
    matrix = np.random.default_rng(0).normal(size=(size, size), scale=size**-0.5)
    a = jax.device_put(jnp.asarray(matrix, dtype), device)
    length, seconds = 1, _best_seconds(a, 1, repeats)
    # The first timing counts the call as well, so the chain may have to be made longer again.
    while seconds < _GEMM_SECONDS and length < _MAX_GEMM_CHAIN:
        length = min(_MAX_GEMM_CHAIN, math.ceil(1.5 * length * _GEMM_SECONDS / seconds))
        seconds = _best_seconds(a, length, repeats)
    return 2.0 * size**3 * length / seconds


def _best_seconds(a: jax.Array, length: int, repeats: int) -> float:
    """Returns the least time of one call that multiplies by `a` for `length` times in a row."""
    _multiply_chain(a, length).block_until_ready()
    timings = []
    for _ in range(repeats):
        began = time.perf_counter()
        _multiply_chain(a, length).block_until_ready()
        timings.append(time.perf_counter() - began)
    return min(timings)


# A fixed number of turns: for an unknown one the host would wait for each on a GPU.
@functools.partial(jax.jit, static_argnums=1)
def _multiply_chain(a: jax.Array, length: int) -> jax.Array:
    return jax.lax.fori_loop(0, length, lambda _, product: product @ a, a)
