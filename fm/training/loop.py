"""The loop round the step: cadence, curves, checkpoints, and stopping well."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from tqdm import tqdm

from fm.errors import UserError
from fm.model import flops
from fm.model.config import ModelConfig
from fm.training import log, optimizer, state, step
from fm.training.checkpoint import Checkpoints
from fm.training.interrupt import Interrupted, listening
from fm.training.meter import Meter
from fm.training.objectives import Objective, rows_of
from fm.training.optimizer import OptimizerConfig
from fm.training.run import RunConfig, Trained
from fm.training.unit import Unit, value

Batch = dict[str, np.ndarray]


class Batches(Protocol):
    """What the loop asks of a pipeline; `fm.data.batches.Batches` has it."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]:
        """The place after the batches taken so far, JSON-able."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a place."""
        ...


@dataclasses.dataclass
class _Progress:
    """What a checkpoint holds beside the state, as JSON."""

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    data: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Pending:
    """A step under way, its metrics not yet read."""

    step: int
    batch_tokens: int
    batch_flops: float
    tokens: int
    metrics: step.Metrics


def train(
    params: dict,
    batches: Batches,
    model: ModelConfig,
    objective: Objective,
    rule: OptimizerConfig,
    run: RunConfig,
    *,
    out: pathlib.Path | None,
    unit: Unit,
    token_weights: jax.Array | None = None,
    validation: Sequence[Batch] | None = None,
    label: str = "train",
    peak: float | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Trained:
    """Trains, or goes on training, or says that it is done.

    Step n is dispatched before the metrics of step n - 1 are read. A run that was killed and is
    called again ends as if unbroken, to the bit.

    Args:
      params: to start from; left untouched.
      batches: the data; its place is saved and set.
      model: architecture.
      objective: what is predicted.
      rule: optimiser and schedule.
      run: length and cadence.
      out: folder for checkpoints and metrics; None writes nothing.
      unit: what the curve is told in.
      token_weights: [V], for the bag objective.
      validation: batches held out; each weighs the same, and hides the same pieces every time.
      label: in front of the progress bar and of messages.
      peak: measured rate of matrix products, FLOP/s, for the log's share of it.
      identity: more JSON-able facts, such as the names of the data, that a resumed run must share.

    Raises:
      UserError: `out` holds a run with another config; the data ends early; the loss or the
        gradient stops being finite (the last good checkpoint stays).
      Interrupted: after SIGINT or SIGTERM, once saved.
    """
    began = time.perf_counter()
    do_step = step.train_step(model, objective, rule, run.steps, run.accumulate)
    now = state.init(params, optimizer.build(rule, run.steps))
    progress = _Progress()
    config = {
        "model": dataclasses.asdict(model),
        "objective": dataclasses.asdict(objective),
        "optimizer": dataclasses.asdict(rule),
        "run": {"steps": run.steps, "seed": run.seed, "accumulate": run.accumulate},
        "unit": {"name": unit.name, **dataclasses.asdict(unit)},
        "start": state.params_digest(params) if out else "",
        **(identity or {}),
    }
    records: list[log.Record] = []
    with contextlib.ExitStack() as closing:
        store = journal = None
        if out is not None:
            store = Checkpoints(pathlib.Path(out) / "checkpoints")
            closing.callback(store.close)
            restored = store.restore(now, config)
            if restored is not None:
                now, progress = restored.state, _Progress(**restored.progress)
                batches.set_state(progress.data)
                done = "already finished" if progress.step == run.steps else "resumed"
                print(f"{label}: {done} at step {progress.step} of {run.steps}", file=sys.stderr)
            journal = log.MetricLog(pathlib.Path(out), progress.step)
            closing.callback(journal.close)
            records = journal.kept
        first, earlier_seconds = progress.step, progress.seconds
        signalled = closing.enter_context(listening())
        bar = closing.enter_context(_bar(label, first, run.steps))
        meter = Meter(unit, peak, progress.sums)

        def keep(record: log.Record) -> None:
            records.append(record)
            bar.set_postfix_str(f"{record[unit.name]:.3f} {unit.name}", refresh=False)
            if journal is not None:
                journal.write(record)

        def settle(past: _Pending) -> None:
            """Reads a step's metrics, which waits for it."""
            figures = {name: float(each) for name, each in jax.device_get(past.metrics).items()}
            if not (math.isfinite(figures["loss"]) and math.isfinite(figures["grad_norm"])):
                raise UserError(_not_finite(label, past.step, figures, rule, store))
            learning_rate = figures.pop("learning_rate")
            meter.add(figures, past.batch_tokens, past.batch_flops)
            bar.update()
            if past.step % run.log_every == 0 or past.step == run.steps:
                keep(meter.record(past.step, past.tokens, learning_rate))

        pending = None
        while progress.step < run.steps:
            batch = _next(batches, label, progress.step, run.steps)
            dispatched = time.perf_counter()
            now, metrics = do_step(now, batch, run.seed, token_weights)
            if progress.step == first:
                progress.compile_seconds += time.perf_counter() - dispatched
                meter.restart()
            if pending is not None:
                settle(pending)
            tokens, spent = (
                int(np.count_nonzero(batch["segments"])),
                _flops(batch, model, objective),
            )
            progress.step += 1
            progress.tokens += tokens
            progress.flops += spent
            pending = _Pending(progress.step, tokens, spent, progress.tokens, metrics)

            signal = signalled()
            ends = progress.step == run.steps
            validates = validation and (ends or _due(progress.step, run.validate_every))
            saves = ends or signal or _due(progress.step, run.checkpoint_every)
            if not (validates or saves):
                continue
            settle(pending)
            pending = None
            with meter.paused():
                if validates and validation:
                    figures = validate(now["params"], validation, model, objective, token_weights)
                    figure = {unit.name: value(figures, unit)}
                    place = {"step": progress.step, "tokens": progress.tokens}
                    keep({"kind": "validation", **place, **figures, **figure})
                if saves and store is not None and journal is not None:
                    journal.flush()
                    progress.sums, progress.data = meter.sums, batches.get_state()
                    progress.seconds = earlier_seconds + time.perf_counter() - began
                    store.save(progress.step, now, dataclasses.asdict(progress), config)
            if signal and not ends:
                raise Interrupted(_how_to_resume(label, signal, progress.step, run.steps, out))
    seconds = (
        progress.seconds if first == run.steps else (earlier_seconds + time.perf_counter() - began)
    )
    return Trained(
        params=now["params"],
        curve=log.curve(records, unit.name),
        seconds=seconds,
        compile_seconds=progress.compile_seconds,
        flops=progress.flops,
        steps=progress.step,
        tokens=progress.tokens,
    )


def validate(
    params: dict,
    batches: Sequence[Batch],
    model: ModelConfig,
    objective: Objective,
    token_weights: jax.Array | None = None,
) -> dict[str, float]:
    """Mean over batches of `loss` and of each objective's nats; hides the same pieces each time.

    Raises:
      ValueError: no batches.
    """
    if not batches:
        raise ValueError("validation needs one batch or more")
    evaluate = step.evaluate(model, objective)
    every = [evaluate(params, batch, n, token_weights) for n, batch in enumerate(batches)]
    every = jax.device_get(every)
    return {name: float(np.mean([each[name] for each in every])) for name in every[0]}


def _flops(batch: Batch, model: ModelConfig, objective: Objective) -> float:
    B, L = batch["segments"].shape
    total, patches = 0.0, "patches" in batch
    for name, rows in rows_of(objective, B).items():
        length, predictions = flops.cost(name, L, hide=objective.hide, patches=patches)
        each = flops.train_flops(model, length, predictions=predictions, patches=patches)
        total += (rows.stop - rows.start) * each
    return total


def _due(n: int, every: int | None) -> bool:
    return every is not None and n % every == 0


def _next(batches: Batches, label: str, n: int, steps: int) -> Batch:
    try:
        return next(batches)
    except StopIteration:
        raise UserError(
            f"{label}: the data ends after {n} batches; steps={steps} needs more epochs"
        ) from None


def _bar(label: str, first: int, steps: int) -> tqdm:
    # A file or a pipe gets a line now and then instead of ten a second.
    calm = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(total=steps, initial=first, desc=label, unit="step", mininterval=calm, leave=False)


def _not_finite(
    label: str, n: int, figures: dict[str, float], rule: OptimizerConfig, store: Checkpoints | None
) -> str:
    last = store.latest() if store else None
    kept = f"the checkpoint of step {last} is kept" if last else "there is no checkpoint yet"
    return (
        f"{label}: loss {figures['loss']:g} and gradient norm {figures['grad_norm']:g} at step {n}"
        f" must be finite; {kept}; try a learning_rate below {rule.learning_rate:g}"
    )


def _how_to_resume(label: str, signal: str, n: int, steps: int, out: pathlib.Path | None) -> str:
    if out is None:
        return f"{label}: stopped by {signal} at step {n} of {steps}; nothing was saved"
    return f"{label}: stopped by {signal}, step {n} of {steps} is saved; the same command resumes"
