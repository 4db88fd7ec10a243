"""The C library's allocator, told to keep what is freed: a step's scratch is touched once.

glibc maps any block over 32 MiB anew and gives it back when freed, so a step whose scratch is
larger faults in every page of it, every step (2 us each on the machine of BUILD_NOTES.md).
"""

from __future__ import annotations

import ctypes
import os
import platform

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


def kept() -> bool:
    """Whether this process keeps what is freed."""
    return _kept
