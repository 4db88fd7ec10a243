"""What training asks of its data: the next batch in time, and its place among them."""

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
from tqdm import tqdm

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.parallel import distributed, sharding
from fm.parallel import mesh as meshes
from fm.training import failures, metric_writer, optimizer, train_state, train_step
from fm.training.checkpoint import CheckpointStore
from fm.training.config import TrainConfig, TrainResult
from fm.training.failures import (
    announce_resume,
    interrupted_message,
    latest_checkpoint_message,
    not_finite_message,
    progress_bar,
    report_out_of_memory,
    save_last_state,
    save_on_failure,
)
from fm.training.metric_units import MetricUnit
from fm.training.multitask import AnyObjective, to_dict
from fm.training.optimizer import OptimizerConfig
from fm.training.progress import Batch, Progress, ProgressTracker, StepCost, is_due, is_finite
from fm.training.progress import step_cost as cost_of
from fm.training.signals import Interrupted, catch_termination_signals, time_limit
from fm.training.train_state import TrainState


class BatchIterator(Protocol):
    """A pipeline; `fm.data.batches.Batches` is one."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]:
        """The place after the batches taken so far, JSON-able."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a place."""
        ...

    def shard(self, index: int, count: int) -> BatchIterator:
        """The same batches, of each the `index`-th of `count` equal blocks of rows."""
        ...


def next_batch(batches: BatchIterator, num_taken: int, train_config: TrainConfig) -> Batch:
    """The next batch, after `num_taken` of them.

    Raises:
      UserError: there is none, or none that comes within the run's patience.
    """
    stalled = f"the data stalls, no batch in {train_config.batch_timeout_seconds:g} s after {num_taken} of them"
    try:
        with time_limit(train_config.batch_timeout_seconds, stalled):
            return next(batches)
    except StopIteration:
        raise UserError(
            f"the data ends after {num_taken} batches; steps={train_config.steps} needs more epochs"
        ) from None


@dataclasses.dataclass(frozen=True)
class _Taken:
    """A step whose metrics have not been read.

    `batch` are this process's rows, `seconds` those until it was dispatched, and `vote` counts the
    processes to which a signal came.
    """

    metrics: train_step.Metrics
    batch: Batch
    cost: StepCost
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
    objective: AnyObjective
    rule: OptimizerConfig
    run: TrainConfig
    unit: MetricUnit
    state: TrainState
    batches: BatchIterator
    validation: Sequence[Batch] | None
    token_weights: jax.Array | None
    account: ProgressTracker
    store: CheckpointStore | None
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
          UserError: see `fm.training.train_loop.train`.
          Interrupted: after a signal, once saved.
        """
        if self.account.finished:
            return
        run = self.run
        do_step = train_step.make_train_step(
            self.model, self.objective, self.rule, run.steps, run.grad_accum_steps
        )
        first = self.account.progress.step + 1
        for n in range(first, self.run.steps + 1):
            taken = self._take(n, do_step)
            if n == first:
                self.account.record_compile_time(taken.seconds)
            self._settle()
            self._pending = taken
            signal, ends = self._signal(), n == self.run.steps
            validates = self.validation and (ends or is_due(n, self.run.validate_every))
            saves = is_due(n, self.run.checkpoint_every)
            if not (validates or saves or ends or signal):
                continue
            self._settle()
            with self.account.averager.paused():
                if validates:
                    self._validate(n)
                    ends = self.account.finished
                if saves or ends or signal:
                    self._save(self.batches.get_state())
            if ends:
                return
            if signal:
                raise Interrupted(
                    interrupted_message(self.label, signal, n, self.run.steps, self.out)
                )

    def _take(self, n: int, do_step: train_step.TrainStepFn) -> _Taken:
        """Dispatches step `n`."""
        place = self.batches.get_state()
        with save_on_failure(self.label, n, lambda: self._rescue(n, place)):
            batch = own = next_batch(self.batches, n - 1, self.run)
            if self.mesh is not None:
                batch = distributed.make_global_batch(own, self.mesh)
            began = time.perf_counter()
            self.state, metrics = do_step(self.state, batch, self.run.seed, self.token_weights)
        seconds, vote = time.perf_counter() - began, None
        if _several() and self.mesh is not None:
            vote = distributed.any_process_signalled(self.signalled() is not None, self.mesh)
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
        self._show(self.account.add_step(figures, taken.cost))
        self.bar.update()

    def _signal(self) -> str | None:
        """The signal to stop at; of several processes, that of the step whose votes were read."""
        return self._voted if _several() else self.signalled()

    def _validate(self, n: int) -> None:
        assert self.validation
        held_out = self.validation, self.model, self.objective, self.token_weights
        figures = validate(self.state["params"], *held_out)
        self._check(figures, n)
        self._show(self.account.add_validation(figures))

    def _check(self, figures: Mapping[str, float], n: int, batch: Batch | None = None) -> None:
        if is_finite(figures):
            return
        kept = latest_checkpoint_message(self.store)
        if batch is not None and self.out is not None and distributed.is_lead_process():
            kept += f", {failures.save_bad_batch(batch, pathlib.Path(self.out), n)}"
        raise UserError(not_finite_message(self.label, n, figures, self.rule, kept))

    def _show(self, record: metric_writer.MetricRecord | None) -> None:
        name = self.unit.name
        if record is not None:
            self.bar.set_postfix_str(f"{record[name]:.3f} {name}", refresh=False)

    def _save(self, place: dict[str, Any]) -> None:
        """The steps read, which must be all there are, and the place in the data after them."""
        if self.store is None:
            return
        progress = self.account.snapshot(self.earlier + time.perf_counter() - self.began, place)
        self.store.save(progress["step"], self.state, progress, self.config)

    def _rescue(self, n: int, place: dict[str, Any]) -> str:
        """Saves the steps before `n`, which could not be taken; what is kept."""
        # Of several processes the others wait for this one in the step.
        if self.store is not None and _several():
            return latest_checkpoint_message(self.store)
        return save_last_state(
            self.store, self.state, n - 1, self._settle, lambda: self._save(place)
        )


def validate(
    params: dict,
    batches: Sequence[Batch],
    model_config: ModelConfig,
    objective: AnyObjective,
    token_weights: jax.Array | None = None,
) -> dict[str, float]:
    """Mean over batches of `loss` and of each objective's nats; hides the same pieces each time.

    Raises:
      ValueError: no batches.
    """
    if not batches:
        raise ValueError("validation needs one batch or more")
    evaluate = train_step.make_eval_step(model_config, objective)
    every = [evaluate(params, batch, n, token_weights) for n, batch in enumerate(batches)]
    every = jax.device_get(every)
    return {name: float(np.mean([each[name] for each in every])) for name in every[0]}


def _several() -> bool:
    return jax.process_count() > 1


# Parameters, or what makes them: then the run alone holds them.
ParamsOrInit = dict | Callable[[], dict]


def train(
    params: ParamsOrInit,
    batches: BatchIterator,
    model_config: ModelConfig,
    objective: AnyObjective,
    optimizer_config: OptimizerConfig,
    train_config: TrainConfig,
    *,
    out_dir: pathlib.Path | None,
    metric_unit: MetricUnit,
    token_weights: jax.Array | None = None,
    validation: Sequence[Batch] | None = None,
    run_name: str = "train",
    gemm_flops_per_second: float | None = None,
    identity: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
) -> TrainResult:
    """Trains, or goes on training, or says that it is done.

    Step n is dispatched before the metrics of step n - 1 are read. A run that was killed and is
    called again ends as if unbroken, to the bit.

    Args:
      params: to start from; left untouched. What makes them is called under `meshes.over`.
      batches: the data; its place is saved and set.
      model_config: architecture.
      objective: what is predicted; of a `Joint`, in batches of its groups.
      optimizer_config: optimiser and schedule.
      train_config: length and cadence.
      out_dir: folder for checkpoints and metrics; None writes nothing.
      metric_unit: what the curve is told in.
      token_weights: [V], for the bag objective.
      validation: batches held out; each weighs the same, and hides the same pieces every time.
      run_name: in front of the progress bar and of messages.
      gemm_flops_per_second: measured rate of matrix products, FLOP/s, for the log's share of it.
      identity: more JSON-able facts, such as the names of the data, that a resumed run must share.
      mesh: devices to spread over, of `fm.parallel.mesh`; that of `meshes.over` unless given,
        else the default device. A run may go on with another. Of several processes each calls this
        with the same arguments, and reads its own rows of the batches; a signal to one of them
        stops all.

    Raises:
      UserError: `out_dir` holds a run with another config; the data ends early or stalls (all steps
        so far are saved then, but for a run of several processes); memory runs out (so they are if
        it does before a step begins); the loss or the gradient stops being finite (the last good
        checkpoint stays, and the batch is kept); a checkpoint cannot be written; the mesh does not
        divide the model, or the rows of a batch among several processes.
      OSError: the log cannot be written; names it.
      Interrupted: after SIGINT or SIGTERM, once saved.
    """
    began, mesh = time.perf_counter(), mesh or meshes.current_mesh()
    if jax.process_count() > 1 and mesh is None:
        raise UserError(
            f"{run_name}: {jax.process_count()} processes train on a mesh over all devices"
        )
    with meshes.use_mesh(mesh):
        now = train_state.create_train_state(
            resolve_params(params), optimizer.build(optimizer_config, train_config.steps), mesh
        )
    config = (
        run_identity(
            now["params"],
            model_config,
            objective,
            optimizer_config,
            train_config,
            metric_unit,
            identity,
        )
        if out_dir
        else {}
    )
    progress, store = Progress(), None
    with contextlib.ExitStack() as closing:
        if mesh is not None:
            closing.enter_context(jax.set_mesh(mesh))
            batches = batches.shard(*distributed.local_slice(mesh))
            validation = validation and [sharding.shard_batch(each, mesh) for each in validation]
            if token_weights is not None:
                token_weights = sharding.replicate(token_weights, mesh)
        if out_dir is not None:
            folder = pathlib.Path(out_dir) / "checkpoints"
            store = closing.enter_context(
                CheckpointStore(folder, keep_period=train_config.keep_period)
            )
            restored = store.restore(now, config)
            if restored is not None:
                now, progress = restored.state, Progress(**restored.progress)
                batches.set_state(progress.data_state)
        earlier, first = progress.seconds, progress.step
        writes = out_dir if distributed.is_lead_process() else None
        account = ProgressTracker(
            train_config, metric_unit, progress=progress, peak=gemm_flops_per_second, out=writes
        )
        closing.callback(account.close)
        if first:
            announce_resume(run_name, first, train_config.steps, finished=account.finished)
        trainer = Trainer(
            label=run_name,
            model=model_config,
            objective=objective,
            rule=optimizer_config,
            run=train_config,
            unit=metric_unit,
            state=now,
            batches=batches,
            validation=validation,
            token_weights=token_weights,
            account=account,
            store=store,
            config=config,
            out=out_dir,
            mesh=mesh,
            signalled=closing.enter_context(catch_termination_signals()),
            bar=closing.enter_context(progress_bar(run_name, first, train_config.steps)),
            began=began,
            earlier=earlier,
        )
        closing.enter_context(distributed.exit_if_peer_lost(run_name))
        closing.enter_context(
            report_out_of_memory(run_name, lambda: latest_checkpoint_message(store))
        )
        trainer.train()
    spent = 0.0 if progress.step == first else time.perf_counter() - began
    after = trainer.state["params"]
    if mesh is not None:
        after = jax.tree.map(train_state.gather_to_host, after)
    return account.result(after, earlier + spent)


def resolve_params(params: ParamsOrInit) -> dict:
    """The parameters."""
    return params if isinstance(params, dict) else params()


def run_identity(
    params: dict,
    model_config: ModelConfig,
    objective: AnyObjective,
    optimizer_config: OptimizerConfig,
    train_config: TrainConfig,
    metric_unit: MetricUnit,
    identity: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What a resumed run must share with the one it goes on from, as JSON."""
    return {
        "model": dataclasses.asdict(model_config),
        "objective": to_dict(objective),
        "optimizer": dataclasses.asdict(optimizer_config),
        "run": {
            **{
                "steps": train_config.steps,
                "seed": train_config.seed,
                "accumulate": train_config.grad_accum_steps,
            },
            **(
                {"early_stop": train_config.early_stopping_patience}
                if train_config.early_stopping_patience
                else {}
            ),
        },
        "unit": {"name": metric_unit.name, **dataclasses.asdict(metric_unit)},
        "start": train_state.params_digest(params),
        **(identity or {}),
    }
