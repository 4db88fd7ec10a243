"""The C library's allocator, told to keep what is freed: a step's scratch is touched once.

glibc maps any block over 32 MiB anew and gives it back when freed, so a step whose scratch is
larger faults in every page of it, every step (2 us each on the machine of BUILD_NOTES.md).
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import time
from importlib.metadata import entry_points

import jax
import jax.numpy as jnp

# From malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_OWN = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")

_kept = False


def keep_freed_memory() -> None:
    """Keeps freed memory in the process, whose size is then that of its peak.

    Nothing is changed under another C library than glibc, or where the user has tuned the
    allocator by the environment; `kept` says which it was.
    """
    global _kept
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _OWN):
        return
    libc = ctypes.CDLL(None)
    _kept = bool(libc.mallopt(_MMAP_MAX, 0)) and bool(libc.mallopt(_TRIM_THRESHOLD, -1))


def keeps_freed_memory() -> bool:
    """Whether this process keeps what is freed."""
    return _kept


# Leaves out what adds in any order, and the picking by time (openxla/xla, xla.proto).
_FLAG = "xla_gpu_deterministic_ops"


def request_deterministic_gpu_ops() -> None:
    """Sets the flag, in `XLA_FLAGS`, where JAX has a plugin for NVIDIA GPUs.

    Before JAX is used for anything else. A user who has set it either way is left alone.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if _FLAG not in given and _nvidia():
        os.environ["XLA_FLAGS"] = f"{given} --{_FLAG}=true".strip()


def _nvidia() -> bool:
    return any("cuda" in plugin.name for plugin in entry_points(group="jax_plugins"))


@functools.cache
def gemm_flops_per_second(dtype: str, size: int = 1024, repeats: int = 5) -> float:
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
