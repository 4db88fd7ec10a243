"""What a loss in nats is told in: bits per byte of text, bits per dimension of a picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from fm.errors import UserError
from fm.evaluation.bits import bits_per_dimension


@dataclasses.dataclass(frozen=True)
class BitsPerByte:
    """Of text: comparable between tokenizers.

    Attributes:
      bytes_per_token: UTF-8 bytes of the corpus over its tokens.
    """

    bytes_per_token: float

    name = "bits_per_byte"

    def __post_init__(self):
        if not self.bytes_per_token > 0:
            raise UserError(f"bytes_per_token={self.bytes_per_token} must be above 0")

    def of(self, nats: float) -> float:
        """From nats per token."""
        return nats / self.bytes_per_token / math.log(2)


@dataclasses.dataclass(frozen=True)
class BitsPerDimension:
    """Of pictures: for one byte of one pixel, 8 when nothing is known."""

    name = "bits_per_dimension"

    def of(self, nats: float) -> float:
        """From nats per number of a patch in 0..1."""
        return bits_per_dimension(nats)


Unit = BitsPerByte | BitsPerDimension


def value(metrics: Mapping[str, float], unit: Unit) -> float:
    """A step's metrics as one figure: of next-piece prediction where it has a share.

    Only that one is a likelihood; elsewhere the figure is the loss in bits, good for curves of
    one objective and for nothing else.
    """
    return unit.of(metrics.get("next_nats", metrics["loss"]))
