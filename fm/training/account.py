"""What one run has done so far: its counts, its curve, its log on disk."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.model import flops
from fm.model.config import ModelConfig
from fm.model.streams import streams_of
from fm.training import log
from fm.training.joint import Asked, Joint, parts
from fm.training.meter import Meter
from fm.training.objectives import rows_of
from fm.training.run import RunConfig, Trained
from fm.training.unit import Unit, groups_of, told

Batch = dict[str, Any]
Figures = Mapping[str, float]
Counts = Mapping[str, int | jax.Array]


@dataclasses.dataclass
class Progress:
    """What a checkpoint holds beside the state, as JSON.

    `best` is the lowest loss of validation so far, `since_best` the validations after it, and `log`
    the digest of the records written.
    """

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    best: float | None = None
    since_best: int = 0
    log: str = ""
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    data: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one step on a batch: pieces without padding, and FLOPs by `fm.model.flops`.

    `groups` are the pieces of each group of a `Joint`, as `GROUP/pieces`. Of a batch on devices
    the pieces are counted there, and the counts wait to be read.
    """

    tokens: int | jax.Array
    flops: float
    groups: Counts = dataclasses.field(default_factory=dict)


class Account:
    """Counts steps as their metrics are read.

    Attributes:
      progress: of the steps counted.
      meter: of the steps since the last record.
    """

    def __init__(
        self,
        run: RunConfig,
        unit: Unit,
        *,
        progress: Progress,
        peak: float | None,
        out: pathlib.Path | None,
    ):
        """Goes on from `progress`, and with the log in `out`, which `close` closes.

        Raises:
          UserError: the log is damaged.
        """
        self.progress = progress
        self.meter = Meter(unit, peak, progress.sums)
        self._run, self._unit = run, unit
        self._journal = None if out is None else log.MetricLog(out, progress.step, progress.log)
        self._records = [] if self._journal is None else self._journal.kept

    @property
    def finished(self) -> bool:
        """Whether all steps of the run are done, or it has stopped early."""
        early = self._run.early_stop
        stopped = early is not None and self.progress.since_best >= early
        return stopped or self.progress.step == self._run.steps

    def compiled(self, seconds: float) -> None:
        """Notes that the first step took so long to compile: that is not part of the pace."""
        self.progress.compile_seconds += seconds
        self.meter.restart()

    def count(self, figures: Figures, cost: Cost) -> log.Record | None:
        """Adds a step; the record, where one is due."""
        figures = {**figures, **{name: int(count) for name, count in cost.groups.items()}}
        learning_rate, tokens = figures.pop("learning_rate"), int(cost.tokens)
        self.meter.add(figures, tokens, cost.flops)
        self.progress.step += 1
        self.progress.tokens += tokens
        self.progress.flops += cost.flops
        if not (due(self.progress.step, self._run.log_every) or self.finished):
            return None
        return self._keep(
            self.meter.record(self.progress.step, self.progress.tokens, learning_rate)
        )

    def validated(self, figures: Figures) -> log.Record:
        """Adds a record of validation."""
        best, loss = self.progress.best, figures["loss"]
        if best is None or loss < best:
            self.progress.best, self.progress.since_best = loss, 0
        else:
            self.progress.since_best += 1
        place = {"step": self.progress.step, "tokens": self.progress.tokens}
        return self._keep({"kind": "validation", **place, **figures, **told(figures, self._unit)})

    def save(self, seconds: float, data: dict[str, Any]) -> dict[str, Any]:
        """The progress as JSON, with what was spent and the place in the data; log on disk."""
        if self._journal is not None:
            self._journal.flush()
            self.progress.log = self._journal.digest
        self.progress.sums, self.progress.data = self.meter.sums, data
        self.progress.seconds = seconds
        return dataclasses.asdict(self.progress)

    def trained(self, params: dict, seconds: float) -> Trained:
        """The outcome of the steps counted."""
        return Trained(
            params=params,
            curve=log.curve(self._records, self._unit.name, groups_of(self._unit)),
            seconds=seconds,
            compile_seconds=self.progress.compile_seconds,
            flops=self.progress.flops,
            steps=self.progress.step,
            tokens=self.progress.tokens,
        )

    def close(self) -> None:
        """Closes the log."""
        if self._journal is not None:
            self._journal.close()

    def _keep(self, record: log.Record) -> log.Record:
        self._records.append(record)
        if self._journal is not None:
            self._journal.write(record)
        return record


def due(n: int, every: int | None) -> bool:
    """Whether what happens `every` so many steps, or never, happens at step `n`."""
    return every is not None and n % every == 0


def finite(figures: Figures) -> bool:
    """Whether a step's loss and gradient norm, or a validation's loss, are to go on from."""
    return math.isfinite(figures["loss"]) and math.isfinite(figures.get("grad_norm", 0.0))


def cost(batch: Batch, model: ModelConfig, objective: Asked) -> Cost:
    """Of a training step on the batch."""
    total, pieces = 0.0, {}
    for lead, rows, each in parts(batch, objective):
        B, L = rows["segments"].shape
        streams = streams_of(rows, model)
        led = "tokens" not in streams and "modality" not in rows
        for name, at in rows_of(each, B).items():
            length, predictions = flops.cost(name, L, hide=each.hide, led=led)
            one = flops.train_flops(model, length, predictions=predictions, streams=streams)
            total += (at.stop - at.start) * one
        segments = rows["segments"]
        numpy = isinstance(segments, np.ndarray)
        pieces[f"{lead}pieces"] = np.count_nonzero(segments) if numpy else _filled(segments)
    return Cost(sum(pieces.values()), total, pieces if isinstance(objective, Joint) else {})


@jax.jit
def _filled(segments: jax.Array) -> jax.Array:
    # Of a batch no process holds whole; under a mesh the count is everyone's.
    return jnp.count_nonzero(segments)
