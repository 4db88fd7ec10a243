"""What a loss in nats is told in: bits per byte of text, bits per dimension of the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from fm.errors import UserError
from fm.evaluation.bits import bits_per_byte, bits_per_dimension


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
        return bits_per_byte(nats, self.bytes_per_token)


@dataclasses.dataclass(frozen=True)
class BitsPerDimension:
    """Of continuous pieces: for one byte of a pixel, 8 when nothing is known.

    Sound counts as if its log-mel values had 256 levels too; formats are not to be compared.
    """

    name = "bits_per_dimension"

    def of(self, nats: float) -> float:
        """From nats per number of a piece in 0..1."""
        return bits_per_dimension(nats)


@dataclasses.dataclass(frozen=True)
class Each:
    """Of several formats trained together: each has its own, and all share the loss.

    Attributes:
      units: by group.
    """

    units: Mapping[str, BitsPerByte | BitsPerDimension]

    name = "loss"

    def of(self, nats: float) -> float:
        """The loss as it is: nats of unlike pieces added up have no other unit."""
        return nats


Unit = BitsPerByte | BitsPerDimension | Each


def told(metrics: Mapping[str, float], unit: Unit) -> dict[str, float]:
    """A step's metrics as one figure, by the unit's name; of each group, as `GROUP/UNIT`."""
    if not isinstance(unit, Each):
        return {unit.name: value(metrics, unit)}
    return {
        f"{group}/{each.name}": each.of(metrics.get(f"{group}/next_nats", metrics[f"{group}/loss"]))
        for group, each in unit.units.items()
    }


def groups_of(unit: Unit) -> dict[str, str]:
    """Name of the figure that tells of each group."""
    if not isinstance(unit, Each):
        return {}
    return {group: f"{group}/{each.name}" for group, each in unit.units.items()}


def value(metrics: Mapping[str, float], unit: Unit) -> float:
    """A step's metrics as one figure: of next-piece prediction where it has a share.

    Only that one is a likelihood; elsewhere the figure is the loss in bits, good for curves of
    one objective and for nothing else.
    """
    return unit.of(metrics.get("next_nats", metrics["loss"]))
