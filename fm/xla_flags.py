"""XLA flags that right and repeatable results need; set before JAX starts its first backend."""

from __future__ import annotations

import os
from importlib.metadata import entry_points

from jaxlib.version import __version_info__ as _JAXLIB

# Which operations XLA hands to YNNPACK on a CPU (openxla/xla, xla.proto).
_YNN_FLAG = "xla_cpu_experimental_ynn_fusion_type"
_YNN_IS_FAULTY = (0, 10, 2) <= _JAXLIB < (0, 12)
# Excludes kernels that add in arbitrary order, and autotuning (openxla/xla, xla.proto).
_DETERMINISM_FLAG = "xla_gpu_deterministic_ops"


def disable_ynn_fusions() -> None:
    """Adds --xla_cpu_experimental_ynn_fusion_type= to XLA_FLAGS where jaxlib's YNNPACK is faulty.

    From jaxlib 0.10.2 on XLA computes reductions on a CPU by YNNPACK. In 0.10.2 some are wrong
    without an error (jax issue 39103), in 0.10.2 and 0.11 some end the process (39257, 40412); what
    mends them entered XLA in August 2026. The empty flag keeps XLA's own reductions. A flag that
    the user has set is left alone.
    """
    if _YNN_IS_FAULTY:
        _add_unless_set(_YNN_FLAG, "")


def request_deterministic_gpu_ops() -> None:
    """Adds --xla_gpu_deterministic_ops to XLA_FLAGS if JAX has a CUDA plugin.

    By default XLA scatters by atomic additions on NVIDIA GPUs and picks kernels by timing them, so
    a resumed run would differ from an uninterrupted one. A flag that the user has set is left
    alone.
    """
    if any("cuda" in plugin.name for plugin in entry_points(group="jax_plugins")):
        _add_unless_set(_DETERMINISM_FLAG, "true")


def _add_unless_set(name: str, value: str) -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if name not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{name}={value}".strip()
