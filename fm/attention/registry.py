"""Every implementation by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from fm.attention import chunked, cpu, cudnn, decode, pallas_gpu, reference, tpu


def _never(*_) -> None:
    """The refusal of what runs everywhere."""


class Implementation(NamedTuple):
    """What a file of this folder offers.

    Attributes:
      attend: (q, k, v, *, mask, scale, softcap) -> o, called where `refusal` gives None.
      refusal: (q, k, v, mask, softcap, platform) -> why it cannot run, or None. Looks at shapes,
        dtypes and which fields the mask has, never into an array.
    """

    attend: Callable[..., jax.Array]
    refusal: Callable[..., str | None] = _never


IMPLEMENTATIONS = {
    "reference": Implementation(reference.attend),
    "chunked": Implementation(chunked.attend),
    "cpu": Implementation(cpu.attend),
    "decode": Implementation(decode.attend, decode.refusal),
    "cudnn": Implementation(cudnn.attend, cudnn.refusal),
    "pallas_gpu": Implementation(pallas_gpu.attend, pallas_gpu.refusal),
    "tpu": Implementation(tpu.attend, tpu.refusal),
}
# The kernels of each platform, the fastest first; elsewhere plain XLA has to do. On an H100
# `pallas_gpu` has 0.84 to 1.0 of cuDNN's rate, and takes the masks that cuDNN does not.
KERNELS = {"gpu": ("cudnn", "pallas_gpu"), "tpu": ("tpu",)}
