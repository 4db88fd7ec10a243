"""Units of the logged loss: bits per byte of text, bits per dimension of continuous data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from fm.errors import UserError
from fm.evaluation.metrics import bits_per_byte, bits_per_dimension


@dataclasses.dataclass(frozen=True)
class BitsPerByte:
    """Unit of the loss on text: bits per UTF-8 byte, comparable between tokenizers.

    Attributes:
      bytes_per_token: UTF-8 bytes of the corpus divided by its number of tokens.
    """

    bytes_per_token: float

    name = "bits_per_byte"

    def __post_init__(self):
        if not self.bytes_per_token > 0:
            raise UserError(f"bytes_per_token={self.bytes_per_token} must be above 0")

    def from_nats(self, nats: float) -> float:
        """Converts nats per token."""
        return bits_per_byte(nats, self.bytes_per_token)


@dataclasses.dataclass(frozen=True)
class BitsPerDimension:
    """Unit of the loss on patches: bits per 8-bit value; a uniform prediction has 8.

    Audio is counted as if its log-mel values had 256 levels; modalities are not comparable.
    """

    name = "bits_per_dimension"

    def from_nats(self, nats: float) -> float:
        """Converts nats per number of a patch with values in 0..1."""
        return bits_per_dimension(nats)


@dataclasses.dataclass(frozen=True)
class PerGroupUnits:
    """Units of a multitask run's losses: one for each group; the total loss stays in nats.

    Attributes:
      units: unit by group name.
    """

    units: Mapping[str, BitsPerByte | BitsPerDimension]

    name = "loss"

    def from_nats(self, nats: float) -> float:
        """Returns the loss unchanged: summed nats of different modalities have no other unit."""
        return nats


MetricUnit = BitsPerByte | BitsPerDimension | PerGroupUnits


def to_bits(metrics: Mapping[str, float], metric_unit: MetricUnit) -> dict[str, float]:
    """Returns step metrics' loss converted from nats, keyed by unit (`GROUP/UNIT` if multitask)."""
    if not isinstance(metric_unit, PerGroupUnits):
        return {metric_unit.name: primary_loss(metrics, metric_unit)}
    return {
        f"{group}/{unit.name}": unit.from_nats(
            metrics.get(f"{group}/causal_lm_nats", metrics[f"{group}/loss"])
        )
        for group, unit in metric_unit.units.items()
    }


def metric_names_by_group(metric_unit: MetricUnit) -> dict[str, str]:
    """Returns each group's metric name, e.g. `text/bits_per_byte`; {} for a single objective."""
    if not isinstance(metric_unit, PerGroupUnits):
        return {}
    return {group: f"{group}/{unit.name}" for group, unit in metric_unit.units.items()}


def primary_loss(metrics: Mapping[str, float], metric_unit: MetricUnit) -> float:
    """Returns the causal LM loss (total loss if absent), converted from nats to a metric unit.

    Only the causal LM loss is a likelihood; the total is comparable only within one objective.
    """
    return metric_unit.from_nats(metrics.get("causal_lm_nats", metrics["loss"]))
