"""Progress of one run: counters, averaged metrics, log records.

A training record holds, of the steps since the one before, the means of the metrics and `TIMINGS`:

- `tokens_per_second`, without padding, and `step_seconds`, of one step;
- `data_wait`, the share of the time that the loop waited for batches;
- `mfu`, the model FLOPs utilization of a chip whose specification is known: the FLOPs that the
  model takes (`fm.model.flops`; Chowdhery et al. 2022, appendix B) over what the chip can do;
- `hfu`, the hardware FLOPs utilization: the FLOPs of the program as XLA optimized it, with what
  rematerialization computes again. XLA counts every operation of the program, but what a custom
  kernel does not at all, and the body of a loop (layers as a scan) once; so the model's FLOPs are
  used where they are larger;
- `gemm_utilization`, the model's FLOPs over the rate of matrix products measured on this device;
- `device_memory_bytes`, the peak of the fullest device since the process began, where the device
  tells it, and `process_memory_bytes`, the resident memory of this process, on a CPU.

None is in a record where it is not known; of the step that was compiled nothing is timed.
"""

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
from jax.stages import Compiled

from fm.model import flops
from fm.model.config import ModelConfig
from fm.model.embeddings import modalities_in
from fm.progress_lines import say
from fm.training.config import COOLDOWN_SHARE, TrainConfig, TrainResult
from fm.training.metric_units import MetricUnit, metric_names_by_group, to_bits
from fm.training.metric_writer import MetricRecord, MetricWriter, learning_curve
from fm.training.multitask import AnyObjective, MultitaskObjective, group_batches
from fm.training.objectives import Batch, objective_rows
from fm.training.runtime import memory_in_use

MetricValues = Mapping[str, float]
TIMINGS = (
    *("tokens_per_second", "step_seconds", "data_wait", "mfu", "hfu", "gemm_utilization"),
    *("device_memory_bytes", "process_memory_bytes"),
)


@dataclasses.dataclass
class ProgressCounters:
    """Counters of a training run (steps, tokens, FLOPs, time), saved in every checkpoint.

    Attributes:
      step: steps done.
      tokens: tokens and patches seen.
      flops: of all steps.
      seconds: wall time over all resumptions.
      cpu_seconds: CPU time of the process over all resumptions.
      compile_seconds: part of `seconds` spent compiling.
      best_loss: lowest validation loss so far.
      validations_since_best: validations after that one.
      log_digest: digest of the log records written.
      metric_sums: sums of the metrics since the last log record, with their number as `steps`;
        saved so that a resumed run writes the same records.
      data_state: position in the data.
      stopped_because: "flat", "time" or "steps" once it is decided that the run ends, see
        `TrainResult`.
      cooldown_from: step from which the learning rate of an open-ended run falls.
    """

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    compile_seconds: float = 0.0
    best_loss: float | None = None
    validations_since_best: int = 0
    log_digest: str = ""
    metric_sums: dict[str, float] = dataclasses.field(default_factory=dict)
    data_state: dict[str, Any] = dataclasses.field(default_factory=dict)
    stopped_because: str | None = None
    cooldown_from: int | None = None


@dataclasses.dataclass(frozen=True)
class StepCost:
    """Tokens and FLOPs of one training step on a batch.

    Attributes:
      tokens: tokens and patches without padding. For arrays on devices this is computed there and
        read later.
      flops: counted by `fm.model.flops`.
      group_tokens: tokens of each group as `GROUP/num_tokens`, for several groups.
    """

    tokens: int | jax.Array
    flops: float
    group_tokens: Mapping[str, int | jax.Array] = dataclasses.field(default_factory=dict)


def step_cost(batch: Batch, model_config: ModelConfig, objective: AnyObjective) -> StepCost:
    """Returns the number of unpadded tokens and the FLOPs of a training step on the batch."""
    total, tokens = 0.0, {}
    for prefix, group_batch, group_objective in group_batches(batch, objective):
        segments = group_batch["segments"]
        B, L = segments.shape
        modalities = modalities_in(group_batch, model_config)
        has_start_patch = "tokens" not in modalities and "modality" not in group_batch
        for name, rows in objective_rows(group_objective, B).items():
            length, num_predictions = flops.input_and_prediction_counts(
                name, L, mask_ratio=group_objective.mask_ratio, has_start_patch=has_start_patch
            )
            per_row = flops.train_flops(
                model_config, length, num_predictions=num_predictions, modalities=modalities
            )
            total += (rows.stop - rows.start) * per_row
        count = np.count_nonzero if isinstance(segments, np.ndarray) else _count_nonzero
        tokens[f"{prefix}num_tokens"] = count(segments)
    is_multitask = isinstance(objective, MultitaskObjective)
    return StepCost(sum(tokens.values()), total, tokens if is_multitask else {})


def program_flops(compiled: Compiled) -> float:
    """Returns the FLOPs of one device's part of a compiled program; 0 if XLA does not tell.

    These are XLA's count for the optimized program: every multiplication and addition, elementwise
    work too, but of a loop's body once, and of a custom kernel nothing.
    """
    analysis = compiled.cost_analysis()
    found = analysis[0] if isinstance(analysis, list) else analysis
    return float((found or {}).get("flops", 0.0))


# No single process may hold the whole batch; under a mesh every process gets the global count.
_count_nonzero = jax.jit(jnp.count_nonzero)


class ProgressTracker:
    """Progress of a run: counts steps, tokens and FLOPs, and logs mean metrics and throughput.

    Attributes:
      progress: after the steps counted.
      program_flops: of one step by the optimized program, on all devices; 0 if not known.
    """

    def __init__(
        self,
        train_config: TrainConfig,
        metric_unit: MetricUnit,
        *,
        progress: ProgressCounters,
        gemm_flops_per_second: float | None,
        out_dir: pathlib.Path | None,
        peak_flops: float | None = None,
    ):
        """Continues from `progress` and the log in `out_dir`; `close` closes the log.

        Args:
          train_config: of the run.
          metric_unit: of the logged loss.
          progress: so far.
          gemm_flops_per_second: measured rate of matrix products.
          out_dir: of the log; None writes none.
          peak_flops: FLOP/s of all devices by their specification, None if it is not known.

        Raises:
          UserError: the log is damaged.
        """
        self.progress = progress
        self._train_config, self._metric_unit = train_config, metric_unit
        self._gemm_flops_per_second, self._peak_flops = gemm_flops_per_second, peak_flops
        self.program_flops = 0.0
        self._writer = out_dir and MetricWriter(out_dir, progress.step, progress.log_digest)
        self._records = self._writer.records if self._writer else []
        self._restart_timing()

    @property
    def finished(self) -> bool:
        """Whether the run has done all its steps or has stopped early."""
        stopped_early = self._is_flat or self.progress.stopped_because is not None
        ended = self.progress.step >= self.total_steps
        return ended if self._train_config.is_open_ended else stopped_early or ended

    @property
    def total_steps(self) -> int:
        """The number of steps of the run, as far as it is decided."""
        start = self.progress.cooldown_from
        if start is None:
            return self._train_config.steps
        cooldown = max(1, round(start * COOLDOWN_SHARE / (1 - COOLDOWN_SHARE)))
        return min(self._train_config.steps, start + cooldown)

    @property
    def _is_flat(self) -> bool:
        patience = self._train_config.early_stopping_patience
        return patience is not None and self.progress.validations_since_best >= patience

    def decide_end(self, seconds: float) -> None:
        """Decides whether the run ends, or an open-ended one begins to; all steps must be counted.

        Args:
          seconds: wall time of the run so far.
        """
        config, progress = self._train_config, self.progress
        if progress.stopped_because is not None or (self.finished and not self._is_flat):
            return
        share = 1 - COOLDOWN_SHARE if config.is_open_ended else 1.0
        if self._is_flat:
            progress.stopped_because = "flat"
        elif config.max_seconds is not None and seconds >= share * config.max_seconds:
            progress.stopped_because = "time"
        elif config.is_open_ended and progress.step >= config.last_cooldown_start:
            progress.stopped_because = "steps"
        if progress.stopped_because is not None and config.is_open_ended:
            progress.cooldown_from = progress.step

    def _restart_timing(self) -> None:
        self._tokens, self._flops, self._since, self._paused = 0, 0.0, time.perf_counter(), 0.0
        self._steps, self._waited, self._compiled = 0, 0.0, False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the block from the logged throughput."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began

    def record_wait(self, seconds: float) -> None:
        """Adds to the time that the loop waited for a batch."""
        self._waited += seconds

    def record_compile_time(self, seconds: float) -> None:
        """Adds to the compile time and leaves the step that was compiled out of the throughput."""
        self.progress.compile_seconds += seconds
        self._compiled = True

    def add_step(self, metrics: MetricValues, cost: StepCost) -> MetricRecord | None:
        """Counts a step; returns the log record if one is due."""
        metrics = {**metrics, **{name: int(count) for name, count in cost.group_tokens.items()}}
        learning_rate, tokens = metrics.pop("learning_rate"), int(cost.tokens)
        progress = self.progress
        for name, value in {**metrics, "steps": 1}.items():
            progress.metric_sums[name] = progress.metric_sums.get(name, 0) + value
        progress.step += 1
        progress.tokens += tokens
        progress.flops += cost.flops
        if self._compiled:  # part of this step ran while it was compiled
            self._restart_timing()
        else:
            self._steps += 1
            self._tokens += tokens
            self._flops += cost.flops
        if not (is_due(progress.step, self._train_config.log_every) or self.finished):
            return None
        return self._write(self._average(learning_rate))

    def _average(self, learning_rate: float) -> MetricRecord:
        """Returns the record of the steps since the last one, and starts over."""
        progress = self.progress
        steps = progress.metric_sums.pop("steps")
        means = {name: value / steps for name, value in progress.metric_sums.items()}
        means["learning_rate"] = learning_rate
        seconds = max(1e-9, time.perf_counter() - self._since - self._paused)
        throughput: dict[str, float | None] = dict.fromkeys(TIMINGS)
        throughput |= memory_in_use()
        if self._tokens > 0:
            throughput["tokens_per_second"] = self._tokens / seconds
            throughput["step_seconds"] = seconds / self._steps
            throughput["data_wait"] = min(1.0, self._waited / seconds)
            if self._gemm_flops_per_second:
                utilization = self._flops / seconds / self._gemm_flops_per_second
                throughput["gemm_utilization"] = utilization
            if self._peak_flops:
                executed = max(self._flops, self._steps * self.program_flops)
                throughput["mfu"] = self._flops / seconds / self._peak_flops
                throughput["hfu"] = executed / seconds / self._peak_flops
        progress.metric_sums = {}
        self._restart_timing()
        counts = {"kind": "train", "step": progress.step, "tokens": progress.tokens}
        converted = to_bits(means, self._metric_unit) | _group_token_shares(means)
        return {**counts, **means, **converted, **throughput}

    def add_validation(self, metrics: MetricValues) -> MetricRecord:
        """Logs a validation and updates the early-stopping counter."""
        progress, loss = self.progress, metrics["loss"]
        best, margin = progress.best_loss, self._train_config.min_improvement
        if best is None or loss < best - margin * abs(best):
            progress.best_loss, progress.validations_since_best = loss, 0
        else:
            progress.validations_since_best += 1
        record = {"kind": "validation", "step": progress.step, "tokens": progress.tokens}
        return self._write({**record, **metrics, **to_bits(metrics, self._metric_unit)})

    def snapshot(
        self, seconds: float, cpu_seconds: float, data_state: dict[str, Any]
    ) -> dict[str, Any]:
        """Flushes the log and returns the progress as JSON, with both times and data position."""
        if self._writer is not None:
            self._writer.flush()
            self.progress.log_digest = self._writer.digest
        self.progress.seconds, self.progress.cpu_seconds = seconds, cpu_seconds
        self.progress.data_state = data_state
        return dataclasses.asdict(self.progress)

    def result(self, params: dict, seconds: float, cpu_seconds: float) -> TrainResult:
        """Returns the `TrainResult` of the steps counted: curve, time, FLOPs and tokens."""
        return TrainResult(
            params=params,
            curve=learning_curve(
                self._records, self._metric_unit.name, metric_names_by_group(self._metric_unit)
            ),
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            compile_seconds=self.progress.compile_seconds,
            flops=self.progress.flops,
            steps=self.progress.step,
            tokens=self.progress.tokens,
            stopped_because=self.progress.stopped_because or "steps",
        )

    def close(self) -> None:
        """Closes the log."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, record: MetricRecord) -> MetricRecord:
        self._records.append(record)
        if self._writer is not None:
            self._writer.write(record)
        return record


def _group_token_shares(means: MetricValues) -> dict[str, float]:
    """Returns each group's share of the tokens as `GROUP/share`."""
    tokens = {name: value for name, value in means.items() if name.endswith("/num_tokens")}
    return {
        f"{name.removesuffix('num_tokens')}share": value / sum(tokens.values())
        for name, value in tokens.items()
    }


def is_due(step: int, every: int | None) -> bool:
    """Returns whether `step` is a multiple of `every`; never if `every` is None."""
    return every is not None and step % every == 0


def is_finite(metrics: MetricValues) -> bool:
    """Returns whether the loss in `metrics`, and the gradient norm if present, are finite."""
    return math.isfinite(metrics["loss"]) and math.isfinite(metrics.get("grad_norm", 0.0))


def announce_resume(run_name: str, step: int, steps: int, *, finished: bool) -> None:
    """Says on stderr from which step a run resumes, or that it has already finished."""
    say(f"{run_name}: {'already finished' if finished else 'resumed'} at step {step} of {steps}")
