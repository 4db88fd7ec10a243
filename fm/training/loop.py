"""The loop round the step: cadence, curves, checkpoints, and stopping well."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.training import broken, log, optimizer, processes, sharding, state, step
from fm.training.account import Account, Batch, Cost, Progress, due, finite
from fm.training.account import cost as cost_of
from fm.training.checkpoint import Checkpoints
from fm.training.interrupt import Interrupted, listening
from fm.training.joint import Asked, plain
from fm.training.keeping import alive, keeping, last_one, told_if_out_of_memory
from fm.training.optimizer import OptimizerConfig
from fm.training.patience import waiting
from fm.training.run import RunConfig, Trained
from fm.training.telling import announce, how_to_resume, not_finite, progress_bar
from fm.training.unit import Unit

# Parameters, or what makes them: then the run alone holds them.
Start = dict | Callable[[], dict]


class Batches(Protocol):
    """What the loop asks of a pipeline; `fm.data.batches.Batches` has it."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]:
        """The place after the batches taken so far, JSON-able."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a place."""
        ...

    def part(self, index: int, count: int) -> Batches:
        """The same batches, of each the `index`-th of `count` equal blocks of rows."""
        ...


def train(
    params: Start,
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
    mesh: Mesh | None = None,
) -> Trained:
    """Trains, or goes on training, or says that it is done.

    Step n is dispatched before the metrics of step n - 1 are read. A run that was killed and is
    called again ends as if unbroken, to the bit.

    Args:
      params: to start from; left untouched. What makes them is called under `sharding.over`.
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
      mesh: devices to spread over, of `fm.training.sharding`; that of `sharding.over` unless given,
        else the default device. A run may go on with another. Of several processes each calls this
        with the same arguments, and reads its own rows of the batches; a signal to one of them
        stops all.

    Raises:
      UserError: `out` holds a run with another config; the data ends early or stalls (all steps
        so far are saved then, but for a run of several processes); memory runs out (so they are if
        it does before a step begins); the loss or the gradient stops being finite (the last good
        checkpoint stays, and the batch is kept); a checkpoint cannot be written; the mesh does not
        divide the model, or the rows of a batch among several processes.
      OSError: the log cannot be written; names it.
      Interrupted: after SIGINT or SIGTERM, once saved.
    """
    began, mesh = time.perf_counter(), mesh or sharding.chosen()
    several = jax.process_count() > 1
    if several and mesh is None:
        raise UserError(
            f"{label}: {jax.process_count()} processes train on a mesh over all devices"
        )
    writes = out if processes.first() else None
    do_step = step.train_step(model, objective, rule, run.steps, run.accumulate)
    with sharding.over(mesh):
        now = sharding.start(made(params), optimizer.build(rule, run.steps), mesh)
    config = facts(now["params"], model, objective, rule, run, unit, identity) if out else {}
    progress = Progress()
    with contextlib.ExitStack() as closing:
        if mesh is not None:
            closing.enter_context(jax.set_mesh(mesh))
            batches = batches.part(*processes.part(mesh))
            validation = validation and [sharding.shard_batch(each, mesh) for each in validation]
            if token_weights is not None:
                token_weights = sharding.replicate(token_weights, mesh)
        store = None
        if out is not None:
            folder = pathlib.Path(out) / "checkpoints"
            store = closing.enter_context(Checkpoints(folder, keep_every=run.keep_every))
            restored = store.restore(now, config)
            if restored is not None:
                now, progress = restored.state, Progress(**restored.progress)
                batches.set_state(progress.data)
        first, earlier_seconds = progress.step, progress.seconds
        account = Account(run, unit, progress=progress, peak=peak, out=writes)
        closing.callback(account.close)
        if first:
            announce(label, first, run.steps, finished=account.finished)
        last = first if account.finished else run.steps
        signalled = closing.enter_context(listening())
        bar = closing.enter_context(progress_bar(label, first, run.steps))

        def show(record: log.Record | None) -> None:
            if record is not None:
                bar.set_postfix_str(f"{record[unit.name]:.3f} {unit.name}", refresh=False)

        def held() -> str:
            return last_one(store.latest() if store else None)

        def check(figures: Mapping[str, float], n: int, batch: Batch | None = None) -> None:
            if finite(figures):
                return
            kept = held()
            if batch is not None and writes is not None:
                kept += f", {broken.keep(batch, pathlib.Path(writes), n)}"
            raise UserError(not_finite(label, n, figures, rule, kept))

        def settle(metrics: step.Metrics, batch: Batch, cost: Cost, vote: jax.Array | None) -> None:
            """Reads a step's metrics, which waits for it."""
            nonlocal stop
            if vote is not None:
                stop = (signalled() or "a signal to another process") if int(vote) else None
            figures = {name: float(each) for name, each in jax.device_get(metrics).items()}
            check(figures, progress.step + 1, batch)
            show(account.count(figures, cost))
            bar.update()

        def save(place: dict[str, Any]) -> None:
            """Of the steps settled, which are all there are."""
            assert store is not None
            seconds = earlier_seconds + time.perf_counter() - began
            store.save(progress.step, now, account.save(seconds, place), config)

        def rescue(place: dict[str, Any]) -> str:
            """Saves what was done before a step that could not be taken."""
            nonlocal pending
            if store is None:
                return "nothing was saved"
            # Of several processes the others wait for this one in the step.
            if several or n == 1 or not alive(now):
                return held()
            if pending is not None:
                unsettled, pending = pending, None
                settle(*unsettled)
            if progress.step != store.latest():
                save(place)
            store.wait()
            return f"step {progress.step} is saved, and the same command goes on from there"

        pending, stop = None, None
        closing.enter_context(processes.ending_together(label))
        closing.enter_context(told_if_out_of_memory(label, held))
        for n in range(first + 1, last + 1):
            place = batches.get_state()
            with keeping(label, n, lambda place=place: rescue(place)):
                batch = own = next_batch(batches, n - 1, run)
                if mesh is not None:
                    batch = processes.joined(own, mesh)
                dispatched = time.perf_counter()
                now, metrics = do_step(now, batch, run.seed, token_weights)
            if n == first + 1:
                progress.compile_seconds += time.perf_counter() - dispatched
                account.meter.restart()
            if pending is not None:
                settle(*pending)
            # Of several processes all stop after the same step, that whose votes are read.
            vote = (
                processes.votes(signalled() is not None, mesh)
                if several and mesh is not None
                else None
            )
            pending = metrics, own, cost_of(batch, model, objective), vote

            signal, ends = stop if several else signalled(), n == run.steps
            validates = validation and (ends or due(n, run.validate_every))
            saves = due(n, run.checkpoint_every)
            if not (validates or saves or ends or signal):
                continue
            settle(*pending)
            pending = None
            with account.meter.paused():
                if validates and validation:
                    figures = validate(now["params"], validation, model, objective, token_weights)
                    check(figures, n)
                    show(account.validated(figures))
                    ends = account.finished
                if store is not None and (saves or ends or signal):
                    save(batches.get_state())
            if ends:
                break
            if signal:
                raise Interrupted(how_to_resume(label, signal, n, run.steps, out))
    spent = 0.0 if first == last else time.perf_counter() - began
    after = now["params"] if mesh is None else jax.tree.map(state.whole, now["params"])
    return account.trained(after, earlier_seconds + spent)


def made(start: Start) -> dict:
    """The parameters."""
    return start if isinstance(start, dict) else start()


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
        "run": {
            **{"steps": run.steps, "seed": run.seed, "accumulate": run.accumulate},
            **({"early_stop": run.early_stop} if run.early_stop else {}),
        },
        "unit": {"name": unit.name, **dataclasses.asdict(unit)},
        "start": state.params_digest(params),
        **(identity or {}),
    }


def next_batch(batches: Batches, n: int, run: RunConfig) -> Batch:
    """The next batch, after `n` of them.

    Raises:
      UserError: there is none, or none that comes within the run's patience.
    """
    stalled = f"the data stalls, no batch in {run.patience:g} s after {n} of them"
    try:
        with waiting(run.patience, stalled):
            return next(batches)
    except StopIteration:
        raise UserError(
            f"the data ends after {n} batches; steps={run.steps} needs more epochs"
        ) from None
