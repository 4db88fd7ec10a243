"""Where a study ran: versions, device, flags."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import jax

from fm.training import allocator

_PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint grain tensorflow-datasets tokenizers scikit-learn numpy"
)


def versions() -> dict[str, str]:
    """Python and the packages a result depends on."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES.split()}
    return {"python": platform.python_version(), "fm": importlib.metadata.version("fm")} | found


def device() -> dict[str, Any]:
    """The accelerator, the host's cores, and whether freed memory is kept (see `allocator`)."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "freed_memory_kept": allocator.kept(),
    }


def xla_flags() -> str:
    """The XLA flags in force."""
    return os.environ.get("XLA_FLAGS", "")
