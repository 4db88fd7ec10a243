"""Published specifications of accelerators, to plan with."""

from __future__ import annotations

import dataclasses
from typing import Any

from fm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published specification of an accelerator: FLOP/s, memory and interconnect bandwidths.

    Attributes:
      name: as `--chip` takes it.
      peak_flops: of dense matrix products, FLOP/s.
      memory_bytes: of the device.
      dtype: of the products.
      fast_network_size: devices within one fast network: a server of GPUs, a pod of TPUs.
      link_bandwidth: bytes/s one way that one device sends in a collective within it; for a torus
        along one axis, both directions round.
      network_bandwidth: bytes/s one way of one device to others; 0 if there is no other network.
      source: of the figures.
    """

    name: str
    peak_flops: float
    memory_bytes: float
    dtype: str
    fast_network_size: int
    link_bandwidth: float
    network_bandwidth: float
    source: str


# NVIDIA and Google publish the sum of both directions of a link; here each is one way, half of it.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("h100", 989.4e12, 80e9, "bfloat16", 8, 450e9, 50e9,
             "NVIDIA H100 SXM data sheet (dense; NVLink 900 GB/s both ways), DGX H100: 400 Gb/s "
             "of InfiniBand a GPU"),
        Chip("a100", 312e12, 80e9, "bfloat16", 8, 300e9, 25e9,
             "NVIDIA A100 80GB SXM data sheet (dense; NVLink 600 GB/s both ways), DGX A100: "
             "200 Gb/s of InfiniBand a GPU"),
        Chip("v5e", 197e12, 16e9, "bfloat16", 256, 100e9, 0.0,
             "Google Cloud TPU v5e documentation (400 GB/s both ways over 2 axes)"),
        Chip("v5p", 459e12, 95e9, "bfloat16", 8960, 200e9, 0.0,
             "Google Cloud TPU v5p documentation (1200 GB/s both ways over 3 axes)"),
        Chip("v4", 275e12, 32e9, "bfloat16", 4096, 100e9, 0.0,
             "Google Cloud TPU v4 documentation; Jouppi et al. 2023 (6 links of 50 GB/s)"),
        Chip("cpu", 0.37e12, 16e9, "float32", 1, 0.0, 0.0,
             "two cores of an AMD EPYC (Zen 5), measured: fm benchmark --suite=matmul"),
    )
}  # fmt: skip
# How `jax.Device.device_kind` begins, in lower case without spaces and "tpu". An H100 on PCIe is
# slower than the one of the table, and an H200 is that one with more memory.
_DEVICE_KINDS = {
    "h100": ("nvidiah10080gbhbm3", "nvidiah200"),
    "a100": ("nvidiaa100",),
    "v5e": ("v5lite", "v5e"),
    "v5p": ("v5p", "v5"),
    "v4": ("v4",),
}
# The rest is used by the runtime and lost to fragmentation.
USABLE_MEMORY_FRACTION = 0.92


def device_peak_flops(device: Any, dtype: str) -> float | None:
    """Returns the FLOP/s of a `jax.Device` by its specification; None if it is not in the table.

    None also for products of another dtype than the table's, and for a CPU, whose figure in the
    table was measured.
    """
    kind = device.device_kind.lower().replace(" ", "").replace("tpu", "")
    for chip in CHIPS.values():
        kinds = _DEVICE_KINDS.get(chip.name, ())
        if dtype == chip.dtype and any(kind.startswith(each) for each in kinds):
            return chip.peak_flops
    return None


def get_chip(name: str) -> Chip:
    """Returns the specification of the chip with the given name.

    Raises:
      UserError: it is not known.
    """
    if name not in CHIPS:
        raise UserError(f"chip {name!r} is not known; accepted are {', '.join(CHIPS)}")
    return CHIPS[name]
