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
from fm.model.config import ModelConfig
from fm.training import log, optimizer, state, step
from fm.training.account import Account, Batch, Cost, Progress, due, finite
from fm.training.account import cost as cost_of
from fm.training.checkpoint import Checkpoints
from fm.training.interrupt import Interrupted, listening
from fm.training.joint import Asked, plain
from fm.training.optimizer import OptimizerConfig
from fm.training.run import RunConfig, Trained
from fm.training.unit import Unit


class Batches(Protocol):
    """What the loop asks of a pipeline; `fm.data.batches.Batches` has it."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]:
        """The place after the batches taken so far, JSON-able."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a place."""
        ...


def train(
    params: dict,
    batches: Batches,
    model: ModelConfig,
    objective: Asked,
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
      objective: what is predicted; of a `Joint`, in batches of its groups.
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
    config = facts(params, model, objective, rule, run, unit, identity) if out else {}
    progress = Progress()
    with contextlib.ExitStack() as closing:
        store = None
        if out is not None:
            store = Checkpoints(pathlib.Path(out) / "checkpoints", keep_every=run.keep_every)
            closing.callback(store.close)
            restored = store.restore(now, config)
            if restored is not None:
                now, progress = restored.state, Progress(**restored.progress)
                batches.set_state(progress.data)
                announce(label, progress.step, run.steps)
        first, earlier_seconds = progress.step, progress.seconds
        account = Account(run, unit, progress=progress, peak=peak, out=out)
        closing.callback(account.close)
        signalled = closing.enter_context(listening())
        bar = closing.enter_context(progress_bar(label, first, run.steps))

        def show(record: log.Record | None) -> None:
            if record is not None:
                bar.set_postfix_str(f"{record[unit.name]:.3f} {unit.name}", refresh=False)

        def check(figures: Mapping[str, float], n: int) -> None:
            if finite(figures):
                return
            last = store.latest() if store else None
            kept = (
                f"the checkpoint of step {last} is kept" if last else "there is no checkpoint yet"
            )
            raise UserError(not_finite(label, n, figures, rule, kept))

        def settle(metrics: step.Metrics, cost: Cost) -> None:
            """Reads a step's metrics, which waits for it."""
            figures = {name: float(each) for name, each in jax.device_get(metrics).items()}
            check(figures, progress.step + 1)
            show(account.count(figures, cost))
            bar.update()

        pending = None
        for n in range(first + 1, run.steps + 1):
            batch = next_batch(batches, label, n - 1, run.steps)
            dispatched = time.perf_counter()
            now, metrics = do_step(now, batch, run.seed, token_weights)
            if n == first + 1:
                progress.compile_seconds += time.perf_counter() - dispatched
                account.meter.restart()
            if pending is not None:
                settle(*pending)
            pending = metrics, cost_of(batch, model, objective)

            signal, ends = signalled(), n == run.steps
            validates = validation and (ends or due(n, run.validate_every))
            saves = ends or signal or due(n, run.checkpoint_every)
            if not (validates or saves):
                continue
            settle(*pending)
            pending = None
            with account.meter.paused():
                if validates and validation:
                    figures = validate(now["params"], validation, model, objective, token_weights)
                    check(figures, n)
                    show(account.validated(figures))
                if saves and store is not None:
                    seconds = earlier_seconds + time.perf_counter() - began
                    store.save(n, now, account.save(seconds, batches.get_state()), config)
            if signal and not ends:
                raise Interrupted(how_to_resume(label, signal, n, run.steps, out))
    spent = 0.0 if first == run.steps else time.perf_counter() - began
    return account.trained(now["params"], earlier_seconds + spent)


def validate(
    params: dict,
    batches: Sequence[Batch],
    model: ModelConfig,
    objective: Asked,
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


def facts(
    params: dict,
    model: ModelConfig,
    objective: Asked,
    rule: OptimizerConfig,
    run: RunConfig,
    unit: Unit,
    identity: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What a resumed run must share with the one it goes on from, as JSON."""
    return {
        "model": dataclasses.asdict(model),
        "objective": plain(objective),
        "optimizer": dataclasses.asdict(rule),
        "run": {"steps": run.steps, "seed": run.seed, "accumulate": run.accumulate},
        "unit": {"name": unit.name, **dataclasses.asdict(unit)},
        "start": state.params_digest(params),
        **(identity or {}),
    }


def next_batch(batches: Batches, label: str, n: int, steps: int) -> Batch:
    """The next batch, after `n` of them.

    Raises:
      UserError: there is none.
    """
    try:
        return next(batches)
    except StopIteration:
        raise UserError(
            f"{label}: the data ends after {n} batches; steps={steps} needs more epochs"
        ) from None


def announce(label: str, n: int, steps: int) -> None:
    """Says where a run goes on."""
    done = "already finished" if n == steps else "resumed"
    print(f"{label}: {done} at step {n} of {steps}", file=sys.stderr)


def progress_bar(label: str, first: int, steps: int) -> tqdm:
    """Of steps, on stderr."""
    # A file or a pipe gets a line now and then instead of ten a second.
    calm = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(total=steps, initial=first, desc=label, unit="step", mininterval=calm, leave=False)


def not_finite(
    label: str, n: int, figures: Mapping[str, float], rule: OptimizerConfig, kept: str
) -> str:
    """What to tell of a step, or a validation after it, whose loss or gradient is not finite.

    `kept` says what is left.
    """
    names = {"loss": "loss", "grad_norm": "gradient norm"}
    told = " and ".join(f"{names[key]} {figures[key]:g}" for key in names if key in figures)
    return (
        f"{label}: {told}{_diverged(figures)} at step {n} must be finite; {kept}; try a "
        f"learning_rate below {rule.learning_rate:g}"
    )


def _diverged(figures: Mapping[str, float]) -> str:
    """Which of several formats it is, as far as that can be told: by loss, else by gradient."""
    broken = [name for name, figure in figures.items() if not math.isfinite(figure)]
    groups = [name.removesuffix("/loss") for name in broken if name.endswith("/loss")]
    streams = [name.removeprefix("grad_norm/") for name in broken if name.startswith("grad_norm/")]
    return f", of {', '.join(groups or streams)}," if groups or streams else ""


def how_to_resume(label: str, signal: str, n: int, steps: int, out: pathlib.Path | None) -> str:
    """What to tell of a run stopped by a signal."""
    if out is None:
        return f"{label}: stopped by {signal} at step {n} of {steps}; nothing was saved"
    return f"{label}: stopped by {signal}, step {n} of {steps} is saved; the same command resumes"
