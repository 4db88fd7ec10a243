"""The same bits every time on an NVIDIA GPU, which by default adds in whatever order it gets to.

There XLA scatters by atomic additions and picks kernels by timing them, so that a run killed and
gone on with is not the unbroken one. On CPUs and TPUs nothing of the kind happens.
"""

from __future__ import annotations

import os
from importlib.metadata import entry_points

# Leaves out what adds in any order, and the picking by time (openxla/xla, xla.proto).
_FLAG = "xla_gpu_deterministic_ops"


def same_bits() -> None:
    """Sets the flag, in `XLA_FLAGS`, where JAX has a plugin for NVIDIA GPUs.

    Before JAX is used for anything else. A user who has set it either way is left alone.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if _FLAG not in given and _nvidia():
        os.environ["XLA_FLAGS"] = f"{given} --{_FLAG}=true".strip()


def _nvidia() -> bool:
    return any("cuda" in plugin.name for plugin in entry_points(group="jax_plugins"))
