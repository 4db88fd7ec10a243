"""The sizes and choices that make one model."""

from __future__ import annotations

import dataclasses
from typing import Any

from fm.errors import UserError
from fm.model.plain import read
from fm.model.style import Style

# Streams of continuous pieces a model may have.
CONTINUOUS = ("image", "audio", "video")
# What a layer may keep for its backward pass, from all to the least.
REMAT = ("none", "dots", "attention", "full")
_DIAL = {"nano": 1, "micro": 2, "tiny": 4, "small": 6, "base": 12}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture of one transformer.

    Attributes:
      depth: number of layers (N).
      width: residual width (D).
      heads: query heads (H).
      kv_heads: key/value heads (K); divides `heads`.
      hidden: feed-forward width (F).
      vocab: tokens of the discrete stream (V); 0 for a model without text.
      continuous: streams of continuous pieces, each with the numbers in one piece (P), such as
        (("image", 16), ("audio", 80)).
      axes: position axes (A): 1 for text and sound, 2 for pictures (row, column), 3 for clips
        (time, row, column) and for all of them in one model.
      mixtures: components of the Gaussian-mixture head (M).
      rope_base: base of the rotary frequencies.
      norm_eps: added to the mean square in RMSNorm.
      scan: run the layers as one `lax.scan` (quick to compile) or unrolled (faster on a CPU).
      dtype: what activations and matrix products are computed in; parameters stay float32 in
        training (to read a model they may be bfloat16, in half the memory).
      attention: implementation name, or None for the fastest that is right.
      head_dim: width of one head (C) where it is not width / heads; 0 where it is.
      context: the longest input, in pieces; 0 for no limit.
      style: what the layers are made of.
      remat: what a layer keeps for its backward pass: all of it ("none"), products with kernels
        ("dots"), what attention reads and gives ("attention"), or its input alone ("full"). But
        for "none" the layers run as a scan.
    """

    depth: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    vocab: int = 0
    continuous: tuple[tuple[str, int], ...] = ()
    axes: int = 1
    mixtures: int = 4
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6
    scan: bool = False
    dtype: str = "float32"
    attention: str | None = None
    head_dim: int = 0
    context: int = 0
    style: Style = dataclasses.field(default_factory=Style)
    remat: str = "none"

    def __post_init__(self):
        for name in ("width", "heads", "kv_heads", "hidden", "axes", "mixtures"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("depth", "vocab", "head_dim", "context"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must be at least 0")
        names = [name for name, _ in self.continuous]
        known = len(set(names)) == len(names) and set(names) <= set(CONTINUOUS)
        if not known or any(size < 1 for _, size in self.continuous):
            raise UserError(
                f"continuous={self.continuous} takes each of {', '.join(CONTINUOUS)} at most once, "
                "with the numbers in a piece, at least 1"
            )
        divisible = self.head_dim or self.width % self.heads == 0
        if not divisible or self.heads % self.kv_heads:
            raise UserError(
                f"heads={self.heads} must divide width={self.width}, and kv_heads={self.kv_heads} "
                f"must divide heads={self.heads}"
            )
        learned = self.style.positions == "learned"
        if learned and (self.axes > 1 or self.continuous or not self.context):
            raise UserError(
                f"learned positions are for text and take a context: not axes={self.axes}, "
                f"continuous={self.continuous}, context={self.context}"
            )
        if not learned and (self.head_width % 2 or self.head_width < 2 * self.axes):
            raise UserError(
                f"head width {self.head_width} must be even and at least {2 * self.axes} "
                f"for rotary positions on {self.axes} axes"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"dtype={self.dtype} is not known; accepted are float32, bfloat16")
        if self.remat not in REMAT:
            raise UserError(f"remat={self.remat} is not known; accepted are {', '.join(REMAT)}")

    @property
    def head_width(self) -> int:
        """Width of one head (C)."""
        return self.head_dim or self.width // self.heads

    @property
    def scanned(self) -> bool:
        """Whether the layers run as a scan.

        Of unrolled ones XLA:CPU computes everything again as soon as it can, not as late, and
        holds as much as if all had been kept.
        """
        return self.scan or self.remat != "none"

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams: "tokens" first, if there are any, then the continuous ones."""
        return ("tokens",) * bool(self.vocab) + tuple(name for name, _ in self.continuous)

    def piece(self, stream: str) -> int:
        """Numbers in one piece (P) of a continuous stream."""
        return dict(self.continuous)[stream]

    def check_length(self, length: int) -> None:
        """That an input of so many pieces fits the context.

        Raises:
          UserError: if it does not.
        """
        if self.context and length > self.context:
            raise UserError(f"an input of {length} pieces is over the context of {self.context}")

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> ModelConfig:
        """A config from what `dataclasses.asdict` and JSON make of one.

        Raises:
          UserError: a value is of the wrong kind, or the model of another version of this.
        """
        return read(cls, plain, "a model")


def sized(size: str, **overrides) -> ModelConfig:
    """A model from one dial: depth N gives width 32 N (64 at least), heads of 32 to 64.

    Args:
      size: one of nano, micro, tiny, small, base.
      **overrides: any field of `ModelConfig`.

    Raises:
      UserError: if the size is not on the dial.
    """
    if size not in _DIAL:
        raise UserError(f"size {size!r} is not known; accepted are {', '.join(_DIAL)}")
    depth = overrides.pop("depth", _DIAL[size])
    width = overrides.pop("width", max(64, (64 if depth > 4 else 32) * depth))
    heads = overrides.pop("heads", max(1, width // (64 if width >= 384 else 32)))
    derived = {"kv_heads": heads, "hidden": 4 * width, **overrides}
    return ModelConfig(depth=depth, width=width, heads=heads, **derived)
