"""Every implementation by its name."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import jax

from fm.attention import cudnn, decode, mosaic_gpu, reference, splash, xla_chunked, xla_tiled
from fm.attention.mask import Mask
from fm.attention.mesh import MeshShards, mesh_shards, sharded_attention


def _never(*_) -> None:
    """The refusal of what runs everywhere."""


class Implementation(NamedTuple):
    """What a file of this folder offers.

    Attributes:
      attend: (q, k, v, *, mask, scale, softcap) -> o, called where `unsupported_reason` gives None.
      unsupported_reason: (q, k, v, mask, softcap, platform) -> why it cannot run, or None. Looks at shapes,
        dtypes and which fields the mask has, never into an array.
    """

    attend: Callable[..., jax.Array]
    unsupported_reason: Callable[..., str | None] = _never


IMPLEMENTATIONS = {
    "reference": Implementation(reference.attend),
    "chunked": Implementation(xla_chunked.attend),
    "cpu": Implementation(xla_tiled.attend),
    "decode": Implementation(decode.attend, decode.unsupported_reason),
    "cudnn": Implementation(cudnn.attend, cudnn.unsupported_reason),
    "pallas_gpu": Implementation(mosaic_gpu.attend, mosaic_gpu.unsupported_reason),
    "tpu": Implementation(splash.attend, splash.unsupported_reason),
}
# The kernels of each platform, the fastest first; elsewhere plain XLA has to do. On an H100
# `pallas_gpu` has 0.84 to 1.0 of cuDNN's rate, and takes the masks that cuDNN does not.
KERNELS_BY_PLATFORM = {"gpu": ("cudnn", "pallas_gpu"), "tpu": ("tpu",)}


# The most bytes of float32 scores for which `cpu` is taken elsewhere than on a CPU.
MAX_SCORE_BYTES = 2**30
# On a CPU `chunked` leaves out more, and is faster, from this many keys for every one in a window
# on, in sequences of at least this length.
CHUNKED_MIN_KEYS_PER_WINDOW, CHUNKED_MIN_LENGTH = 16, 8192
# As few queries as this are taken to look into a cache.
DECODE_MAX_QUERIES = 4

_log = logging.getLogger("fm.attention")

ArrayLike = jax.Array | jax.ShapeDtypeStruct


class Choice(NamedTuple):
    """A name and the reason for it, in words."""

    name: str
    reason: str


def default_platform() -> str:
    """Where arrays go by default: "cpu", "gpu" (NVIDIA), "rocm", "tpu" or a plugin's name."""
    device = jax.config.jax_default_device or jax.devices()[0]  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(device, str):
        device = jax.devices(device)[0]
    if device.platform in ("gpu", "cuda", "rocm"):
        return "rocm" if "rocm" in device.client.platform_version.lower() else "gpu"
    return device.platform


def explain_choice(
    q_BLHC: ArrayLike,
    k_BSKC: ArrayLike,
    mask: Mask | None = None,
    *,
    softcap: float | None = None,
    platform: str | None = None,
) -> Choice:
    """The implementation `attention` picks for these shapes, dtype and mask, and why.

    Logged at INFO, each distinct choice once.

    Args:
      q_BLHC: queries, or their shape and dtype.
      k_BSKC: keys, or their shape and dtype; values are like them.
      mask: everyone everyone when None.
      softcap: as for `attention`.
      platform: a platform as `platform` names it, this process's own when None.
    """
    choice = _explain(q_BLHC, k_BSKC, mask or Mask(), softcap, platform or default_platform())
    _log_once(choice)
    return choice


def choose(
    q_BLHC: ArrayLike,
    k_BSKC: ArrayLike,
    mask: Mask | None = None,
    *,
    softcap: float | None = None,
    platform: str | None = None,
) -> str:
    """The name alone of what `explain` tells."""
    return explain_choice(q_BLHC, k_BSKC, mask, softcap=softcap, platform=platform).name


def _explain(
    q_BLHC: ArrayLike, k_BSKC: ArrayLike, mask: Mask, softcap: float | None, on: str
) -> Choice:
    def refusal(name):
        return IMPLEMENTATIONS[name].unsupported_reason(q_BLHC, k_BSKC, k_BSKC, mask, softcap, on)

    B, L, H, _ = q_BLHC.shape
    S = k_BSKC.shape[1]
    if L <= DECODE_MAX_QUERIES and L < S and refusal("decode") is None:
        return Choice("decode", f"{L} queries look into {S} keys")
    refused = []
    for name in KERNELS_BY_PLATFORM.get(on, ()):
        why = refusal(name)
        if why is None:
            return Choice(name, "; ".join([f"a kernel for {on}", *refused]))
        refused.append(f"not {name}: {why}")
    if on == "cpu":
        if (
            min(L, S) >= CHUNKED_MIN_LENGTH
            and _skips(mask)
            and (mask.window or S) * CHUNKED_MIN_KEYS_PER_WINDOW <= S
        ):
            return Choice("chunked", f"a window of {mask.window} in {S} keys")
        return Choice("cpu", "tiles of scores stay in cache")
    held = 4 * B * H * L * S
    if held <= MAX_SCORE_BYTES:
        return Choice("cpu", "; ".join(["the scores are few enough to hold", *refused]))
    too_many = f"the scores would take more than {MAX_SCORE_BYTES / 2**30:g} GiB"
    return Choice("chunked", "; ".join([too_many, *refused]))


def _skips(mask: Mask) -> bool:
    """Whether what lies outside a window on both sides is known without looking at any array."""
    return mask.causal and mask.q_start is None and mask.prefix is None


@functools.lru_cache(maxsize=256)
def _log_once(choice: Choice) -> None:
    _log.info("attention by %s: %s", choice.name, choice.reason)


def attention(
    q_BLHC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKC: jax.Array,
    *,
    mask: Mask | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Scaled dot-product attention.

    Head h reads key head ``h // (H // K)``. Rows that see no key give zeros, in value and
    gradient. Under a mesh each device attends for its own rows and heads (`fm.attention.mesh`).

    Args:
      q_BLHC: queries.
      k_BSKC: keys; K divides H.
      v_BSKC: values.
      mask: who sees whom; everyone everyone when None.
      scale: multiplies the scores, ``1/sqrt(C)`` when None.
      softcap: scores become ``softcap * tanh(scores / softcap)`` when given.
      implementation: a name, or None for the one `choose` picks.

    Returns:
      o_BLHC, in the dtype of the queries.

    Raises:
      ValueError: if shapes do not fit together.
      UserError: if a mesh does not divide the rows or heads.
      NotImplementedError: if the named implementation does not exist or cannot run this case.
    """
    if k_BSKC.shape != v_BSKC.shape or q_BLHC.shape[-1] != k_BSKC.shape[-1]:
        raise ValueError(
            f"attention takes k and v of one shape and one head width, not q {q_BLHC.shape}, "
            f"k {k_BSKC.shape}, v {v_BSKC.shape}"
        )
    if q_BLHC.shape[2] % k_BSKC.shape[2]:
        raise ValueError(f"{k_BSKC.shape[2]} key heads do not divide {q_BLHC.shape[2]} query heads")
    mask = mask or Mask()
    if mesh_shards() != MeshShards():
        return sharded_attention(
            lambda q, k, v, mask: attention(
                q, k, v, mask=mask, scale=scale, softcap=softcap, implementation=implementation
            ),
            q_BLHC,
            k_BSKC,
            v_BSKC,
            mask,
        )
    name = implementation or choose(q_BLHC, k_BSKC, mask, softcap=softcap)
    if name not in IMPLEMENTATIONS:
        raise NotImplementedError(
            f"no attention implementation {name!r}; there are {', '.join(IMPLEMENTATIONS)}"
        )
    chosen = IMPLEMENTATIONS[name]
    refused = chosen.unsupported_reason(q_BLHC, k_BSKC, v_BSKC, mask, softcap, default_platform())
    if refused is not None:
        raise NotImplementedError(f"attention implementation {name!r} cannot run this: {refused}")
    scale = 1.0 / math.sqrt(q_BLHC.shape[-1]) if scale is None else scale
    return chosen.attend(q_BLHC, k_BSKC, v_BSKC, mask=mask, scale=scale, softcap=softcap)
