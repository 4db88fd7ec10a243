"""`attention`, the registry of its implementations and the rule that selects one."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from fm.attention import (
    cudnn,
    decode,
    mosaic_gpu,
    pallas_triton,
    reference,
    splash,
    tokamax,
    xla_chunked,
    xla_tiled,
)
from fm.attention.mask import Mask
from fm.errors import UserError
from fm.parallel.mesh import BATCH_AXES, TENSOR_AXIS, default_device, mesh_shard_counts
from fm.progress_lines import say

# Off CPU, xla_tiled runs while its float32 scores take no more bytes than this.
MAX_SCORE_BYTES = 2**30
# On CPU, xla_chunked runs sequences of at least 8192 tokens whose window is at most 1/16 of the
# keys. Measured at 8192 tokens, head_dim 64, speed over xla_tiled forward / forward + backward: a
# window of 1024 gives 0.90 / 0.90, of 256 gives 1.34 / 1.67 (causal without a window 0.64 / 0.52).
CHUNKED_MIN_LENGTH, CHUNKED_MIN_KEYS_PER_WINDOW = 8192, 16
# Up to this many queries against more keys is decoding with a cache.
DECODE_MAX_QUERIES = 4

_log = logging.getLogger("fm.attention")

ArrayLike = jax.Array | jax.ShapeDtypeStruct


def _always_supported(*_) -> None:
    """The `unsupported_reason` of an implementation that runs everything everywhere."""


@dataclasses.dataclass(frozen=True)
class Implementation:
    """An attention implementation: its function, and a check of which inputs it supports.

    Attributes:
      attend: (q, k, v, *, mask, scale, softcap) -> o.
      unsupported_reason: (q, k, v, mask, softcap, platform) -> why `attend` cannot run this, or
        None if it can. Reads shapes, dtypes and which mask fields are set, never array values.
    """

    attend: Callable[..., jax.Array]
    unsupported_reason: Callable[..., str | None] = _always_supported


IMPLEMENTATIONS = {
    "reference": Implementation(reference.attend),
    "xla_chunked": Implementation(xla_chunked.attend),
    "xla_tiled": Implementation(xla_tiled.attend),
    "decode": Implementation(decode.attend),
    "cudnn": Implementation(cudnn.attend, cudnn.unsupported_reason),
    "mosaic_gpu": Implementation(mosaic_gpu.attend, mosaic_gpu.unsupported_reason),
    "tokamax": Implementation(tokamax.attend, tokamax.unsupported_reason),
    "pallas_triton": Implementation(pallas_triton.attend, pallas_triton.unsupported_reason),
    "splash": Implementation(splash.attend, splash.unsupported_reason),
}
# Kernels by platform, fastest first; other platforms run plain XLA. On an H100 mosaic_gpu reaches
# 0.84 to 1.0 of cuDNN's rate, and supports the masks that cuDNN does not; the last two, for other
# GPUs, have not been timed.
KERNELS_BY_PLATFORM = {
    "gpu": ("cudnn", "mosaic_gpu", "tokamax", "pallas_triton"),
    "tpu": ("splash",),
}
_RENAMED = {
    "cpu": "xla_tiled",
    "chunked": "xla_chunked",
    "tpu": "splash",
    "pallas_gpu": "mosaic_gpu",
}


class Choice(NamedTuple):
    """The name of the selected attention implementation and the reason for the selection."""

    name: str
    reason: str


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
    """Returns scaled dot-product attention, o_BLHC (Vaswani et al. 2017, eq. 1).

    Query head h reads key/value head ``h // (H // K)``. A query that sees no key gives zeros, in
    value and gradient. Under a mesh each device attends for its own batch rows and heads.

    Args:
      q_BLHC: queries.
      k_BSKC: keys; K divides H.
      v_BSKC: values.
      mask: which keys each query sees; all of them when None.
      scale: factor on the scores; ``1/sqrt(C)`` when None.
      softcap: if given, scores become ``softcap * tanh(scores / softcap)``.
      implementation: a name in `IMPLEMENTATIONS`; that of `select_implementation` when None.

    Returns:
      o_BLHC, in the dtype of the queries.

    Raises:
      ValueError: the shapes do not match.
      UserError: the mesh does not divide the batch or the heads.
      NotImplementedError: the named implementation does not exist or does not support this case.
    """
    if k_BSKC.shape != v_BSKC.shape or q_BLHC.shape[-1] != k_BSKC.shape[-1]:
        raise ValueError(
            "attention takes keys and values of the same shape and one head dimension, "
            f"not q {q_BLHC.shape}, k {k_BSKC.shape}, v {v_BSKC.shape}"
        )
    if q_BLHC.shape[2] % k_BSKC.shape[2]:
        raise ValueError(f"{k_BSKC.shape[2]} key heads do not divide {q_BLHC.shape[2]} query heads")
    mask = mask or Mask()
    if mesh_shard_counts() != (1, 1):
        return _sharded(
            functools.partial(
                attention, scale=scale, softcap=softcap, implementation=implementation
            ),
            q_BLHC,
            k_BSKC,
            v_BSKC,
            mask,
        )
    name = implementation or select_implementation(q_BLHC, k_BSKC, mask, softcap=softcap)
    if name not in IMPLEMENTATIONS:
        raise NotImplementedError(unknown_implementation_message(name))
    chosen = IMPLEMENTATIONS[name]
    reason = chosen.unsupported_reason(q_BLHC, k_BSKC, v_BSKC, mask, softcap, default_platform())
    if reason is not None:
        raise NotImplementedError(f"attention implementation {name!r} cannot run this: {reason}")
    scale = 1.0 / math.sqrt(q_BLHC.shape[-1]) if scale is None else scale
    return chosen.attend(q_BLHC, k_BSKC, v_BSKC, mask=mask, scale=scale, softcap=softcap)


def select_implementation(
    q_BLHC: ArrayLike,
    k_BSKC: ArrayLike,
    mask: Mask | None = None,
    *,
    softcap: float | None = None,
    platform: str | None = None,
) -> str:
    """Returns the name of the fastest attention implementation that supports these inputs.

    Args:
      q_BLHC: queries, or their shape and dtype.
      k_BSKC: keys, or their shape and dtype; values are assumed to match.
      mask: as for `attention`.
      softcap: as for `attention`.
      platform: as `default_platform` names it, this process's own when None.
    """
    return explain_choice(q_BLHC, k_BSKC, mask, softcap=softcap, platform=platform).name


choose = select_implementation


def explain_choice(
    q_BLHC: ArrayLike,
    k_BSKC: ArrayLike,
    mask: Mask | None = None,
    *,
    softcap: float | None = None,
    platform: str | None = None,
) -> Choice:
    """Returns the selected implementation with the reason, and logs each distinct choice once.

    The first time that attention on an accelerator has to run without a kernel, a line on stderr
    says so.
    """
    platform = platform or default_platform()
    choice = _select(q_BLHC, k_BSKC, mask or Mask(), softcap, platform)
    _log_once(choice)
    if platform != "cpu" and choice.name in _PLAIN_XLA:
        _warn_once(platform, choice)
    return choice


def default_platform() -> str:
    """Returns JAX's default platform: "cpu", "gpu" (NVIDIA), "rocm", "tpu" or a plugin's name."""
    device = default_device()
    if device.platform in ("gpu", "cuda", "rocm"):
        return "rocm" if "rocm" in device.client.platform_version.lower() else "gpu"
    return device.platform


def unknown_implementation_message(name: str) -> str:
    """Returns the error message for an attention implementation that is not registered."""
    if name in _RENAMED:
        return f"attention implementation {name!r} is now called {_RENAMED[name]!r}"
    return f"no attention implementation {name!r}; there are {', '.join(IMPLEMENTATIONS)}"


def _select(
    q_BLHC: ArrayLike, k_BSKC: ArrayLike, mask: Mask, softcap: float | None, platform: str
) -> Choice:
    def unsupported(name):
        return IMPLEMENTATIONS[name].unsupported_reason(
            q_BLHC, k_BSKC, k_BSKC, mask, softcap, platform
        )

    B, L, H, _ = q_BLHC.shape
    S = k_BSKC.shape[1]
    if L <= DECODE_MAX_QUERIES and L < S:
        return Choice("decode", f"decoding with {S} cached keys")
    skipped = []
    for name in KERNELS_BY_PLATFORM.get(platform, ()):
        reason = unsupported(name)
        if reason is None:
            return Choice(name, "; ".join([f"a kernel for {platform}", *skipped]))
        skipped.append(f"not {name}: {reason}")
    if platform == "cpu":
        # The mask skips keys on both sides of the window without reading an array.
        ahead = 0 if mask.causal and mask.prefix is None else mask.window_right
        if mask.window is not None and ahead is not None and mask.q_start is None:
            seen = mask.window + ahead
            narrow = seen * CHUNKED_MIN_KEYS_PER_WINDOW <= S
            if min(L, S) >= CHUNKED_MIN_LENGTH and narrow:
                return Choice("xla_chunked", f"a window of {seen} in {S} keys")
        return Choice("xla_tiled", "tiles of scores stay in cache")
    if 4 * B * H * L * S <= MAX_SCORE_BYTES:
        return Choice("xla_tiled", "; ".join(["the scores fit in memory", *skipped]))
    reason = f"the scores would take more than {MAX_SCORE_BYTES / 2**30:g} GiB"
    return Choice("xla_chunked", "; ".join([reason, *skipped]))


_PLAIN_XLA = ("xla_tiled", "xla_chunked")
_warned: set[str] = set()


def _warn_once(platform: str, choice: Choice) -> None:
    """Says on stderr, once in a process for each platform, that attention has no kernel."""
    if platform not in _warned:
        _warned.add(platform)
        say(f"warning: attention on {platform} runs as plain XLA ({choice.name}): {choice.reason}")


@functools.lru_cache(maxsize=256)
def _log_once(choice: Choice) -> None:
    _log.info("attention by %s: %s", choice.name, choice.reason)


def _sharded(
    attend: Callable[..., jax.Array],
    q_BLHC: jax.Array,
    k_BSKC: jax.Array,
    v_BSKC: jax.Array,
    mask: Mask,
) -> jax.Array:
    """Runs `attend` on each device's own batch rows and heads, without communication.

    Kernels that XLA cannot partition run this way too. Key heads are repeated where the mesh
    splits heads further than there are key heads.
    """
    shards = mesh_shard_counts()
    (B, _, H, _), K = q_BLHC.shape, k_BSKC.shape[2]
    for name, size, parts in (("rows", B, shards.batch), ("query heads", H, shards.heads)):
        if size % parts:
            raise UserError(f"attention over {size} {name} cannot be split over {parts} devices")
    repeats = next(n for n in range(1, H // K + 1) if not (H // K % n or n * K % shards.heads))
    if repeats > 1:
        k_BSKC, v_BSKC = (jnp.repeat(x, repeats, axis=2) for x in (k_BSKC, v_BSKC))
    mask = jax.tree.map(lambda x: jnp.broadcast_to(x, (B, *x.shape[1:])), mask)
    spec = P(BATCH_AXES, None, TENSOR_AXIS, None)
    # check_vma=False: it rejects loops whose carry starts from a constant, as those here do.
    local = jax.shard_map(
        lambda q, k, v, mask: attend(q, k, v, mask=mask),
        in_specs=(spec, spec, spec, P(BATCH_AXES)),
        out_specs=spec,
        check_vma=False,
    )
    return local(q_BLHC, k_BSKC, v_BSKC, mask)
