"""The sizes and choices that make one model."""

from __future__ import annotations

import dataclasses
from typing import Any

from fm.errors import UserError
from fm.model.positions import RopeScaling
from fm.model.style import Style

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
      patch: numbers in one continuous piece (P); 0 for a model without images.
      axes: position axes, 1 for text and 2 for pictures (row, column).
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
    """

    depth: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    vocab: int = 0
    patch: int = 0
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

    def __post_init__(self):
        for name in ("width", "heads", "kv_heads", "hidden", "axes", "mixtures"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("depth", "vocab", "patch", "head_dim", "context"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must be at least 0")
        divisible = self.head_dim or self.width % self.heads == 0
        if not divisible or self.heads % self.kv_heads:
            raise UserError(
                f"heads={self.heads} must divide width={self.width}, and kv_heads={self.kv_heads} "
                f"must divide heads={self.heads}"
            )
        learned = self.style.positions == "learned"
        if learned and (self.axes > 1 or self.patch or not self.context):
            raise UserError(
                f"learned positions are for text and take a context: not axes={self.axes}, "
                f"patch={self.patch}, context={self.context}"
            )
        if not learned and self.head_width % (2 * self.axes):
            raise UserError(
                f"head width {self.head_width} must be a multiple of {2 * self.axes} "
                f"for rotary positions on {self.axes} axes"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"dtype={self.dtype} is not known; accepted are float32, bfloat16")

    @property
    def head_width(self) -> int:
        """Width of one head (C)."""
        return self.head_dim or self.width // self.heads

    def check_length(self, length: int) -> None:
        """That an input of so many pieces fits the context.

        Raises:
          UserError: if it does not.
        """
        if self.context and length > self.context:
            raise UserError(f"an input of {length} pieces is over the context of {self.context}")

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> ModelConfig:
        """A config from what `dataclasses.asdict` and JSON make of one."""
        fields, style = dict(plain), dict(plain.get("style", {}))
        if style.get("rope_scaling"):
            style["rope_scaling"] = RopeScaling(**style["rope_scaling"])
        fields["style"] = Style(**style)
        return cls(**fields)


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
