"""Means over the steps since the last record, and how fast they went."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.model import flops
from fm.model.config import ModelConfig
from fm.model.embeddings import modalities_in
from fm.training import metric_writer
from fm.training.config import TrainConfig, TrainResult
from fm.training.metric_units import MetricUnit, group_metric_names, to_bits
from fm.training.metric_writer import MetricRecord
from fm.training.multitask import AnyObjective, MultitaskObjective, group_batches
from fm.training.objectives import objective_rows


class MetricAverager:
    """Turns the metrics of single steps into records.

    Attributes:
      sums: of every metric since the last record, with `steps`; saved with a checkpoint, so that
        a resumed run writes the records of an unbroken one.
    """

    def __init__(self, unit: MetricUnit, peak: float | None, sums: dict[str, float] | None = None):
        """Starts with the `sums` of a checkpoint, or none; `peak` in FLOP/s, None if unknown."""
        self.sums = dict(sums or {})
        self._unit, self._peak = unit, peak
        self.restart()

    def restart(self) -> None:
        """Forgets the pace so far: compilation is not part of it."""
        self._tokens, self._flops, self._since, self._paused = 0, 0.0, time.perf_counter(), 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what happens inside out of the pace."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began

    def add(self, metrics: Mapping[str, float], tokens: int, flops: float) -> None:
        """Counts one step."""
        for name, figure in {**metrics, "steps": 1}.items():
            self.sums[name] = self.sums.get(name, 0) + figure
        self._tokens += tokens
        self._flops += flops

    def record(self, step: int, tokens: int, learning_rate: float) -> MetricRecord:
        """The record of the steps added since the last one."""
        steps = self.sums.pop("steps")
        means = {name: figure / steps for name, figure in self.sums.items()}
        means["learning_rate"] = learning_rate
        seconds = max(1e-9, time.perf_counter() - self._since - self._paused)
        pace = {
            "tokens_per_second": self._tokens / seconds,
            "gemm_utilization": self._flops / seconds / self._peak if self._peak else None,
        }
        self.sums = {}
        self.restart()
        figures = to_bits(means, self._unit) | group_token_shares(means)
        return {"kind": "train", "step": step, "tokens": tokens, **means, **figures, **pace}


def group_token_shares(means: Mapping[str, float]) -> dict[str, float]:
    """Share of the pieces each group has, as `GROUP/share`."""
    pieces = {name: figure for name, figure in means.items() if name.endswith("/pieces")}
    return {
        f"{name.removesuffix('pieces')}share": figure / sum(pieces.values())
        for name, figure in pieces.items()
    }


Batch = dict[str, Any]
MetricValues = Mapping[str, float]
Counts = Mapping[str, int | jax.Array]


@dataclasses.dataclass
class Progress:
    """What a checkpoint holds beside the state, as JSON.

    `best_loss` is the lowest loss of validation so far, `validations_since_best` the validations after it, and `log_digest`
    the digest of the records written.
    """

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    best_loss: float | None = None
    validations_since_best: int = 0
    log_digest: str = ""
    metric_sums: dict[str, float] = dataclasses.field(default_factory=dict)
    data_state: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Of one step on a batch: pieces without padding, and FLOPs by `fm.model.flops`.

    `group_tokens` are the pieces of each group of a `Joint`, as `GROUP/pieces`. Of a batch on devices
    the pieces are counted there, and the counts wait to be read.
    """

    tokens: int | jax.Array
    flops: float
    group_tokens: Counts = dataclasses.field(default_factory=dict)


class ProgressTracker:
    """Counts steps as their metrics are read.

    Attributes:
      progress: of the steps counted.
      averager: of the steps since the last record.
    """

    def __init__(
        self,
        run: TrainConfig,
        unit: MetricUnit,
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
        self.averager = MetricAverager(unit, peak, progress.metric_sums)
        self._run, self._unit = run, unit
        self._journal = (
            None
            if out is None
            else metric_writer.MetricWriter(out, progress.step, progress.log_digest)
        )
        self._records = [] if self._journal is None else self._journal.records

    @property
    def finished(self) -> bool:
        """Whether all steps of the run are done, or it has stopped early."""
        early = self._run.early_stopping_patience
        stopped = early is not None and self.progress.validations_since_best >= early
        return stopped or self.progress.step == self._run.steps

    def record_compile_time(self, seconds: float) -> None:
        """Notes that the first step took so long to compile: that is not part of the pace."""
        self.progress.compile_seconds += seconds
        self.averager.restart()

    def add_step(self, figures: MetricValues, cost: StepCost) -> metric_writer.MetricRecord | None:
        """Adds a step; the record, where one is due."""
        figures = {**figures, **{name: int(count) for name, count in cost.group_tokens.items()}}
        learning_rate, tokens = figures.pop("learning_rate"), int(cost.tokens)
        self.averager.add(figures, tokens, cost.flops)
        self.progress.step += 1
        self.progress.tokens += tokens
        self.progress.flops += cost.flops
        if not (is_due(self.progress.step, self._run.log_every) or self.finished):
            return None
        return self._keep(
            self.averager.record(self.progress.step, self.progress.tokens, learning_rate)
        )

    def add_validation(self, figures: MetricValues) -> metric_writer.MetricRecord:
        """Adds a record of validation."""
        best, loss = self.progress.best_loss, figures["loss"]
        if best is None or loss < best:
            self.progress.best_loss, self.progress.validations_since_best = loss, 0
        else:
            self.progress.validations_since_best += 1
        place = {"step": self.progress.step, "tokens": self.progress.tokens}
        return self._keep(
            {"kind": "validation", **place, **figures, **to_bits(figures, self._unit)}
        )

    def snapshot(self, seconds: float, data: dict[str, Any]) -> dict[str, Any]:
        """The progress as JSON, with what was spent and the place in the data; log on disk."""
        if self._journal is not None:
            self._journal.flush()
            self.progress.log_digest = self._journal.digest
        self.progress.metric_sums, self.progress.data_state = self.averager.sums, data
        self.progress.seconds = seconds
        return dataclasses.asdict(self.progress)

    def result(self, params: dict, seconds: float) -> TrainResult:
        """The outcome of the steps counted."""
        return TrainResult(
            params=params,
            curve=metric_writer.learning_curve(
                self._records, self._unit.name, group_metric_names(self._unit)
            ),
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

    def _keep(self, record: metric_writer.MetricRecord) -> metric_writer.MetricRecord:
        self._records.append(record)
        if self._journal is not None:
            self._journal.write(record)
        return record


def is_due(n: int, every: int | None) -> bool:
    """Whether what happens `every` so many steps, or never, happens at step `n`."""
    return every is not None and n % every == 0


def is_finite(figures: MetricValues) -> bool:
    """Whether a step's loss and gradient norm, or a validation's loss, are to go on from."""
    return math.isfinite(figures["loss"]) and math.isfinite(figures.get("grad_norm", 0.0))


def step_cost(batch: Batch, model_config: ModelConfig, objective: AnyObjective) -> StepCost:
    """Of a training step on the batch."""
    total, pieces = 0.0, {}
    for lead, rows, each in group_batches(batch, objective):
        B, L = rows["segments"].shape
        streams = modalities_in(rows, model_config)
        led = "tokens" not in streams and "modality" not in rows
        for name, at in objective_rows(each, B).items():
            length, predictions = flops.sequence_cost(
                name, L, mask_ratio=each.mask_ratio, has_start_patch=led
            )
            one = flops.train_flops(
                model_config, length, num_predictions=predictions, modalities=streams
            )
            total += (at.stop - at.start) * one
        segments = rows["segments"]
        numpy = isinstance(segments, np.ndarray)
        pieces[f"{lead}pieces"] = np.count_nonzero(segments) if numpy else _filled(segments)
    return StepCost(
        sum(pieces.values()), total, pieces if isinstance(objective, MultitaskObjective) else {}
    )


@jax.jit
def _filled(segments: jax.Array) -> jax.Array:
    # Of a batch no process holds whole; under a mesh the count is everyone's.
    return jnp.count_nonzero(segments)
