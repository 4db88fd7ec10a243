"""Peers we compare with: written by us against their public interface, installed as extras."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

PEERS = ("torch", "jax", "transformers", "none")
# The package each peer needs and the extra that installs it; JAX is always there.
_NEEDS = {"torch": ("torch", "torch"), "transformers": ("transformers", "transformers")}


def unavailable_reason(peer: str) -> str | None:
    """Returns why a peer (compared library) cannot be measured; None if it can."""
    package, extra = _NEEDS.get(peer, (None, None))
    if package is None or importlib.util.find_spec(package) is not None:
        return None
    return f"not installed: pip install -e .[{extra}]"


def is_other_library(peer: str) -> bool:
    """Returns whether a peer is not JAX, and is timed in a process of its own."""
    return peer in _NEEDS


def package_versions() -> dict[str, str]:
    """Returns the versions of the installed peer packages, by name."""
    return {
        package: importlib.metadata.version(package)
        for package, _ in _NEEDS.values()
        if importlib.util.find_spec(package) is not None
    }


def torch_device_info() -> dict[str, Any]:
    """Returns PyTorch's device and number of threads; empty if PyTorch is not installed."""
    if unavailable_reason("torch") is not None:
        return {}
    from fm.benchmark.peers import pytorch

    return {"torch": pytorch.device(), "torch_threads": pytorch.torch.get_num_threads()}
