"""Which implementation to take when none is named: the fastest that is right."""

from __future__ import annotations

import functools
import logging
from typing import NamedTuple

import jax

from fm.attention.mask import Mask
from fm.attention.registry import IMPLEMENTATIONS, KERNELS

# The most bytes of float32 scores for which `cpu` is taken elsewhere than on a CPU.
HELD_LIMIT = 2**30
# On a CPU `chunked` leaves out more, and is faster, from this many keys for every one in a window
# on, in sequences of at least this length.
NARROW, LONG = 16, 8192
# As few queries as this are taken to look into a cache.
FEW_QUERIES = 4

_log = logging.getLogger("fm.attention")

Like = jax.Array | jax.ShapeDtypeStruct


class Choice(NamedTuple):
    """A name and the reason for it, in words."""

    name: str
    reason: str


def platform() -> str:
    """Where arrays go by default: "cpu", "gpu" (NVIDIA), "rocm", "tpu" or a plugin's name."""
    device = jax.config.jax_default_device or jax.devices()[0]  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(device, str):
        device = jax.devices(device)[0]
    if device.platform in ("gpu", "cuda", "rocm"):
        return "rocm" if "rocm" in device.client.platform_version.lower() else "gpu"
    return device.platform


def explain(
    q_BLHC: Like,
    k_BSKC: Like,
    mask: Mask | None = None,
    *,
    softcap: float | None = None,
    on: str | None = None,
) -> Choice:
    """The implementation `attention` picks for these shapes, dtype and mask, and why.

    Logged at INFO, each distinct choice once.

    Args:
      q_BLHC: queries, or their shape and dtype.
      k_BSKC: keys, or their shape and dtype; values are like them.
      mask: everyone everyone when None.
      softcap: as for `attention`.
      on: a platform as `platform` names it, this process's own when None.
    """
    choice = _explain(q_BLHC, k_BSKC, mask or Mask(), softcap, on or platform())
    _log_once(choice)
    return choice


def choose(
    q_BLHC: Like,
    k_BSKC: Like,
    mask: Mask | None = None,
    *,
    softcap: float | None = None,
    on: str | None = None,
) -> str:
    """The name alone of what `explain` tells."""
    return explain(q_BLHC, k_BSKC, mask, softcap=softcap, on=on).name


def _explain(q_BLHC: Like, k_BSKC: Like, mask: Mask, softcap: float | None, on: str) -> Choice:
    def refusal(name):
        return IMPLEMENTATIONS[name].refusal(q_BLHC, k_BSKC, k_BSKC, mask, softcap, on)

    B, L, H, _ = q_BLHC.shape
    S = k_BSKC.shape[1]
    if L <= FEW_QUERIES and L < S and refusal("decode") is None:
        return Choice("decode", f"{L} queries look into {S} keys")
    refused = []
    for name in KERNELS.get(on, ()):
        why = refusal(name)
        if why is None:
            return Choice(name, "; ".join([f"a kernel for {on}", *refused]))
        refused.append(f"not {name}: {why}")
    if on == "cpu":
        if min(L, S) >= LONG and _skips(mask) and (mask.window or S) * NARROW <= S:
            return Choice("chunked", f"a window of {mask.window} in {S} keys")
        return Choice("cpu", "tiles of scores stay in cache")
    held = 4 * B * H * L * S
    if held <= HELD_LIMIT:
        return Choice("cpu", "; ".join(["the scores are few enough to hold", *refused]))
    too_many = f"the scores would take more than {HELD_LIMIT / 2**30:g} GiB"
    return Choice("chunked", "; ".join([too_many, *refused]))


def _skips(mask: Mask) -> bool:
    """Whether what lies outside a window on both sides is known without looking at any array."""
    return mask.causal and mask.q_start is None and mask.prefix is None


@functools.lru_cache(maxsize=256)
def _log_once(choice: Choice) -> None:
    _log.info("attention by %s: %s", choice.name, choice.reason)
