"""A run under way: each step dispatched before the one before it is read, and stopping well."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.training import broken, log, processes, step
from fm.training.account import Account, Batch, Cost, due, finite
from fm.training.account import cost as cost_of
from fm.training.checkpoint import Checkpoints
from fm.training.feeding import Batches, next_batch
from fm.training.interrupt import Interrupted
from fm.training.joint import Asked
from fm.training.keeping import held, keeping, rescued
from fm.training.optimizer import OptimizerConfig
from fm.training.run import RunConfig
from fm.training.state import State
from fm.training.telling import how_to_resume, not_finite
from fm.training.unit import Unit


@dataclasses.dataclass(frozen=True)
class _Taken:
    """A step whose metrics have not been read.

    `batch` are this process's rows, `seconds` those until it was dispatched, and `vote` counts the
    processes to which a signal came.
    """

    metrics: step.Metrics
    batch: Batch
    cost: Cost
    seconds: float
    vote: jax.Array | None


@dataclasses.dataclass(kw_only=True)
class Trainer:
    """What a run has at hand, and where it is.

    Attributes:
      state: after the last step taken; a step consumes it.
      batches: of this process.
      account: of the steps read.
      store: of checkpoints, if any are written, of a run with this `config`.
      unit: what the bar is told in.
      out: folder of the run, if it has one.
      mesh: devices `state`, `validation` and `token_weights` lie on; None is the default one.
      signalled: name of the signal that came, if one did.
      bar: of steps.
      began: when this process did, by `time.perf_counter`.
      earlier: seconds spent before that.
    """

    label: str
    model: ModelConfig
    objective: Asked
    rule: OptimizerConfig
    run: RunConfig
    unit: Unit
    state: State
    batches: Batches
    validation: Sequence[Batch] | None
    token_weights: jax.Array | None
    account: Account
    store: Checkpoints | None
    config: dict[str, Any]
    out: pathlib.Path | None
    mesh: Mesh | None
    signalled: Callable[[], str | None]
    bar: tqdm
    began: float
    earlier: float
    _pending: _Taken | None = None
    _voted: str | None = None

    def train(self) -> None:
        """Takes the steps that are left.

        Raises:
          UserError: see `fm.training.loop.train`.
          Interrupted: after a signal, once saved.
        """
        if self.account.finished:
            return
        run = self.run
        do_step = step.train_step(self.model, self.objective, self.rule, run.steps, run.accumulate)
        first = self.account.progress.step + 1
        for n in range(first, self.run.steps + 1):
            taken = self._take(n, do_step)
            if n == first:
                self.account.compiled(taken.seconds)
            self._settle()
            self._pending = taken
            signal, ends = self._signal(), n == self.run.steps
            validates = self.validation and (ends or due(n, self.run.validate_every))
            saves = due(n, self.run.checkpoint_every)
            if not (validates or saves or ends or signal):
                continue
            self._settle()
            with self.account.meter.paused():
                if validates:
                    self._validate(n)
                    ends = self.account.finished
                if saves or ends or signal:
                    self._save(self.batches.get_state())
            if ends:
                return
            if signal:
                raise Interrupted(how_to_resume(self.label, signal, n, self.run.steps, self.out))

    def _take(self, n: int, do_step: step.Step) -> _Taken:
        """Dispatches step `n`."""
        place = self.batches.get_state()
        with keeping(self.label, n, lambda: self._rescue(n, place)):
            batch = own = next_batch(self.batches, n - 1, self.run)
            if self.mesh is not None:
                batch = processes.joined(own, self.mesh)
            began = time.perf_counter()
            self.state, metrics = do_step(self.state, batch, self.run.seed, self.token_weights)
        seconds, vote = time.perf_counter() - began, None
        if _several() and self.mesh is not None:
            vote = processes.votes(self.signalled() is not None, self.mesh)
        return _Taken(metrics, own, cost_of(batch, self.model, self.objective), seconds, vote)

    def _settle(self) -> None:
        """Reads the metrics of the step that waits, if one does: this waits for it."""
        if self._pending is None:
            return
        taken, self._pending = self._pending, None
        if taken.vote is not None and int(taken.vote):
            self._voted = self.signalled() or "a signal to another process"
        figures = {name: float(each) for name, each in jax.device_get(taken.metrics).items()}
        self._check(figures, self.account.progress.step + 1, taken.batch)
        self._show(self.account.count(figures, taken.cost))
        self.bar.update()

    def _signal(self) -> str | None:
        """The signal to stop at; of several processes, that of the step whose votes were read."""
        return self._voted if _several() else self.signalled()

    def _validate(self, n: int) -> None:
        assert self.validation
        held_out = self.validation, self.model, self.objective, self.token_weights
        figures = validate(self.state["params"], *held_out)
        self._check(figures, n)
        self._show(self.account.validated(figures))

    def _check(self, figures: Mapping[str, float], n: int, batch: Batch | None = None) -> None:
        if finite(figures):
            return
        kept = held(self.store)
        if batch is not None and self.out is not None and processes.first():
            kept += f", {broken.keep(batch, pathlib.Path(self.out), n)}"
        raise UserError(not_finite(self.label, n, figures, self.rule, kept))

    def _show(self, record: log.Record | None) -> None:
        name = self.unit.name
        if record is not None:
            self.bar.set_postfix_str(f"{record[name]:.3f} {name}", refresh=False)

    def _save(self, place: dict[str, Any]) -> None:
        """The steps read, which must be all there are, and the place in the data after them."""
        if self.store is None:
            return
        progress = self.account.save(self.earlier + time.perf_counter() - self.began, place)
        self.store.save(progress["step"], self.state, progress, self.config)

    def _rescue(self, n: int, place: dict[str, Any]) -> str:
        """Saves the steps before `n`, which could not be taken; what is kept."""
        # Of several processes the others wait for this one in the step.
        if self.store is not None and _several():
            return held(self.store)
        return rescued(self.store, self.state, n - 1, self._settle, lambda: self._save(place))


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


def _several() -> bool:
    return jax.process_count() > 1
