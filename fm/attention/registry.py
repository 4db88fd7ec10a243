"""Every implementation by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from fm.attention import chunked, cpu, cudnn, decode, reference, tpu


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
    "tpu": Implementation(tpu.attend, tpu.refusal),
}
# The kernels of each platform, the fastest first; elsewhere plain XLA has to do.
KERNELS = {"gpu": ("cudnn",), "tpu": ("tpu",)}
