"""What a loss in nats is told in: bits per byte of text, bits per dimension of the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from fm.errors import UserError
from fm.evaluation.metrics import bits_per_byte, bits_per_dimension


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

    def from_nats(self, nats: float) -> float:
        """From nats per token."""
        return bits_per_byte(nats, self.bytes_per_token)


@dataclasses.dataclass(frozen=True)
class BitsPerDimension:
    """Of continuous pieces: for one byte of a pixel, 8 when nothing is known.

    Sound counts as if its log-mel values had 256 levels too; formats are not to be compared.
    """

    name = "bits_per_dimension"

    def from_nats(self, nats: float) -> float:
        """From nats per number of a piece in 0..1."""
        return bits_per_dimension(nats)


@dataclasses.dataclass(frozen=True)
class PerGroupUnits:
    """Of several formats trained together: each has its own, and all share the loss.

    Attributes:
      units: by group.
    """

    units: Mapping[str, BitsPerByte | BitsPerDimension]

    name = "loss"

    def from_nats(self, nats: float) -> float:
        """The loss as it is: nats of unlike pieces added up have no other unit."""
        return nats


MetricUnit = BitsPerByte | BitsPerDimension | PerGroupUnits


def to_bits(metrics: Mapping[str, float], metric_unit: MetricUnit) -> dict[str, float]:
    """A step's metrics as one figure, by the unit's name; of each group, as `GROUP/UNIT`."""
    if not isinstance(metric_unit, PerGroupUnits):
        return {metric_unit.name: primary_metric(metrics, metric_unit)}
    return {
        f"{group}/{each.name}": each.from_nats(
            metrics.get(f"{group}/next_nats", metrics[f"{group}/loss"])
        )
        for group, each in metric_unit.units.items()
    }


def group_metric_names(metric_unit: MetricUnit) -> dict[str, str]:
    """Name of the figure that tells of each group."""
    if not isinstance(metric_unit, PerGroupUnits):
        return {}
    return {group: f"{group}/{each.name}" for group, each in metric_unit.units.items()}


def primary_metric(metrics: Mapping[str, float], metric_unit: MetricUnit) -> float:
    """A step's metrics as one figure: of next-piece prediction where it has a share.

    Only that one is a likelihood; elsewhere the figure is the loss in bits, good for curves of
    one objective and for nothing else.
    """
    return metric_unit.from_nats(metrics.get("next_nats", metrics["loss"]))
