"""One step of many runs as one program: the members stacked, [R, ...], what differs is data.

Seeds, learning rates and token weights enter as arrays, so all members share one compiled
program, whose bits do not depend on who else is still running: a member that has stopped keeps
its place and its state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from fm import files
from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.parallel import mesh as meshes
from fm.parallel import sharding
from fm.training import failures, optimizer, train_loop, train_state, train_step
from fm.training.checkpoint import CheckpointStore
from fm.training.config import TrainConfig, TrainResult
from fm.training.failures import (
    interrupted_message,
    latest_checkpoint_message,
    report_out_of_memory,
    save_last_state,
    save_on_failure,
)
from fm.training.metric_units import MetricUnit
from fm.training.objectives import Objective
from fm.training.optimizer import OptimizerConfig
from fm.training.progress import (
    Batch,
    MetricValues,
    Progress,
    ProgressTracker,
    StepCost,
    is_due,
    is_finite,
    step_cost,
)
from fm.training.signals import Interrupted, catch_termination_signals
from fm.training.train_loop import BatchIterator, next_batch, validate
from fm.training.train_state import TrainState
from fm.training.train_step import Metrics

BATCHING_MODES = ("vmap", "map")
# A way is timed over about this long, so many times in turns.
_TURN_SECONDS, _TURNS = 0.1, 5

# (states, n_R, batches, seeds_R, rates_R2, token_weights_RV) -> (states, metrics)
SweepStepFn = Callable[..., tuple[TrainState, Metrics]]


@functools.lru_cache(maxsize=64)
def make_sweep_step(
    model_config: ModelConfig,
    objective: Objective,
    optimizer_config: OptimizerConfig,
    grad_accum_steps: int = 1,
    batching: str = "vmap",
) -> SweepStepFn:
    """The compiled step of all members; equal arguments give the same function.

    Args:
      model_config: architecture.
      objective: what is predicted.
      optimizer_config: optimiser; its rates and schedule are not read, use `shared` to share programs.
      grad_accum_steps: as for `fm.training.train_step.make_train_step`.
      batching: "vmap" batches every operation over the members; "map" takes one member after another
        inside the program, each in its place in the stack.

    Returns:
      step(states, n_R, batches, seeds_R, rates_R2, token_weights_RV) -> (states, metrics). The
      given states, of `fm.training.train_state` with a leading R, are consumed. A member takes the step
      if it has done n steps (-1 for one that rests) and its loss and gradient are finite; any
      other keeps its state to the bit, so one that missed a step stays where it is. `rates_R2`
      are the learning rates of this step: of the layer kernels, and of embeddings and heads under
      Muon. Metrics are float32 [R].

    Raises:
      UserError: an unknown way.
    """
    check_batching(batching)

    def of_one(state, n, batch, seed, rates_2, token_weights_V):
        update = optimizer.build_from_schedules(
            optimizer_config, lambda _: rates_2[0], lambda _: rates_2[1]
        ).update
        metrics, gradient = train_step.compute_gradient(
            state, batch, seed, model_config, objective, token_weights_V, grad_accum_steps
        )
        metrics["learning_rate"] = rates_2[0]
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        moves = (state["step"] == n) & finite
        after = jax.lax.cond(
            moves,
            lambda state: train_step.apply_gradient(state, gradient, update),
            lambda state: state,
            state,
        )
        return after, metrics

    def in_turn(states, *data):
        # Carried, the stack is changed in place; as inputs and outputs of `lax.map` it would be
        # copied every step (0.84x against one run after another instead of 1.07x, images).
        def body(states, r):
            state, one = jax.tree.map(lambda leaf: leaf[r], (states, data))
            after, metrics = of_one(state, *one)
            put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=r, axis=0)
            return jax.tree.map(put, states, after), metrics

        return jax.lax.scan(body, states, jnp.arange(len(states["step"])))

    return jax.jit(jax.vmap(of_one) if batching == "vmap" else in_turn, donate_argnums=0)


def check_batching(way: str) -> None:
    """Raises UserError for an unknown way."""
    if way not in BATCHING_MODES:
        raise UserError(f"way {way!r} is not known; accepted are {', '.join(BATCHING_MODES)}")


def shared_optimizer_config(rule: OptimizerConfig) -> OptimizerConfig:
    """The rule with all that enters as data left out: equal for members of one program."""
    return dataclasses.replace(
        rule, learning_rate=1.0, adam_learning_rate=1.0, schedule="cosine", warmup=0.0
    )


def learning_rates(rule: OptimizerConfig, steps: int, length: int) -> np.ndarray:
    """Learning rates of a run's steps, float32 [length, 2], zero past the end.

    Columns: of the layer kernels, and of embeddings and heads under Muon.
    """
    peaks = rule.learning_rate, rule.adam_learning_rate
    columns = [
        optimizer.learning_rate_schedule(rule, peak, steps)(jnp.arange(length)) for peak in peaks
    ]
    return np.where(np.arange(length)[:, None] < steps, np.stack(columns, -1), 0.0).astype(
        np.float32
    )


def stack_trees(trees: Sequence[Any]) -> Any:
    """Trees of one structure as one, every leaf with a leading R; of numpy where they are."""

    def leaves(*each):
        return np.stack(each) if isinstance(each[0], np.ndarray) else jnp.stack(each)

    return jax.tree.map(leaves, *trees)


def index_tree(states: Any, r: int) -> Any:
    """One member's part of a stack."""
    return jax.tree.map(lambda leaf: leaf[r], states)


def seconds_per_step(
    steps: dict[str, SweepStepFn], states: TrainState, n_R: np.ndarray, *data: Any
) -> dict[str, float]:
    """Median seconds of a step by each way, warm, in turns; the states stay as they are.

    Args:
      steps: by way.
      states: where the members are.
      n_R: steps done, -1 for a member that rests.
      *data: the other arguments of a step.
    """
    now = {way: jax.tree.map(jnp.copy, states) for way in steps}
    done = dict.fromkeys(steps, n_R)

    def run(way: str, calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            now[way], metrics = steps[way](now[way], done[way], *data)
            jax.block_until_ready(metrics)
            done[way] = np.where(n_R < 0, n_R, done[way] + 1)
        return (time.perf_counter() - began) / calls

    for way in steps:
        run(way, 1)
    once = max(run(way, 1) for way in steps)
    calls = max(1, min(100, math.floor(_TURN_SECONDS / once)))
    turns = [{way: run(way, calls) for way in steps} for _ in range(_TURNS)]
    return {way: statistics.median(turn[way] for turn in turns) for way in steps}


Constants = tuple[np.ndarray, jax.Array | None, np.ndarray]  # see `constants`


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One run of a grid: what `fm.training.train_loop.train` takes, meaning the same.

    Members may differ in all of it but for the shapes of parameters and batches, whether there
    are token weights, and, of `optimizer_config` and `train_config`, what is neither a learning rate, a schedule, a
    seed, a number of steps nor a cadence.
    """

    params: train_loop.ParamsOrInit
    batches: BatchIterator
    optimizer_config: OptimizerConfig
    train_config: TrainConfig
    metric_unit: MetricUnit
    out_dir: pathlib.Path | None = None
    token_weights: jax.Array | None = None
    validation: Sequence[Batch] = ()
    run_name: str = "train"
    identity: Mapping[str, Any] | None = None

    def run_identity(self, model: ModelConfig, objective: Objective) -> dict[str, Any]:
        """What a resumed run must share: the same as of a separate run."""
        return train_loop.run_identity(
            train_loop.resolve_params(self.params),
            model,
            objective,
            self.optimizer_config,
            self.train_config,
            self.metric_unit,
            self.identity,
        )


class TrialSet:
    """The members of a grid.

    Attributes:
      stopped: by member, why it stopped early, or None. Once stopped, a member stays so.
    """

    def __init__(
        self,
        grid: Sequence[Trial],
        model: ModelConfig,
        objective: Objective,
        *,
        progress: Sequence[dict[str, Any]] | None,
        stopped: Sequence[str | None] | None,
        peak: float | None,
    ):
        """Goes on from the `progress` and the `stopped` of a checkpoint, or from the start."""
        self._grid, self._model, self._objective = grid, model, objective
        self.stopped = list(stopped or [None] * len(grid))
        self._accounts: list[ProgressTracker] = []
        self._seconds: list[float] = []
        for r, one in enumerate(grid):
            past = Progress(**progress[r]) if progress else Progress()
            if progress:
                one.batches.set_state(past.data_state)
            self._accounts.append(
                ProgressTracker(
                    one.train_config, one.metric_unit, progress=past, peak=peak, out=one.out_dir
                )
            )
            self._seconds.append(past.seconds)

    def running(self, n: int) -> list[bool]:
        """By member, whether it takes a step after `n` of them."""
        return [
            stopped is None and n < one.train_config.steps
            for one, stopped in zip(self._grid, self.stopped, strict=True)
        ]

    def take(self, n: int) -> tuple[Batch, list[StepCost | None]]:
        """The next batch of each member after `n` steps, stacked, and the cost of its step.

        Who does not run takes no batch of its own but a stand-in, at no cost.

        Raises:
          UserError: the data of a member ends, or stalls.
        """
        taken = [
            _batch(one, n) if runs else None
            for one, runs in zip(self._grid, self.running(n), strict=True)
        ]
        stand_in = next(batch for batch in taken if batch is not None)
        costs = [
            None if batch is None else step_cost(batch, self._model, self._objective)
            for batch in taken
        ]
        return stack_trees([stand_in if batch is None else batch for batch in taken]), costs

    def started(self, seconds: float) -> None:
        """Notes that compiling is done, each member's share of it having taken `seconds`."""
        for account in self._accounts:
            account.record_compile_time(seconds)

    def settle(
        self, metrics: Metrics, batches: Batch, costs: Sequence[StepCost | None]
    ) -> list[float]:
        """Counts a step of all members from its metrics, [R]; stops whose are not finite.

        The batches, as `take` gave them, are there to keep what a member broke on.

        Returns:
          The figure of every record that was due.
        """
        read = jax.device_get(metrics)
        records = []
        for r, spent in enumerate(costs):
            # One that stopped may have been sent one more step before that was known.
            if spent is None or self.stopped[r] is not None:
                continue
            one, account = self._grid[r], self._accounts[r]
            figures = {name: float(each[r]) for name, each in read.items()}
            if is_finite(figures):
                records.append((one.metric_unit.name, account.add_step(figures, spent)))
            else:
                self._stop(r, account.progress.step + 1, figures, index_tree(batches, r))
        return [record[unit] for unit, record in records if record is not None]

    def validates(self, n: int) -> list[int]:
        """The members whose validation is due after `n` steps."""
        return [
            r
            for r, one in enumerate(self._grid)
            if one.validation and self.stopped[r] is None and n <= one.train_config.steps
            if n == one.train_config.steps or is_due(n, one.train_config.validate_every)
        ]

    def validate(self, states: TrainState, n: int) -> None:
        """Records the validation of the members it is due for; stops whose is not finite.

        The metrics of all steps so far must have been settled.
        """
        for r in self.validates(n):
            one, params = self._grid[r], index_tree(states["params"], r)
            figures = validate(
                params, one.validation, self._model, self._objective, one.token_weights
            )
            if is_finite(figures):
                self._accounts[r].add_validation(figures)
            else:
                self._stop(r, n, figures)

    def _stop(self, r: int, n: int, figures: MetricValues, batch: Batch | None = None) -> None:
        one, kept = self._grid[r], "this member stays where it was"
        if batch is not None and one.out_dir is not None:
            kept += f", {failures.save_bad_batch(batch, pathlib.Path(one.out_dir), n)}"
        self.stopped[r] = failures.not_finite_message(
            one.run_name, n, figures, one.optimizer_config, kept
        )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves what happens inside out of the pace."""
        with contextlib.ExitStack() as pauses:
            for account in self._accounts:
                pauses.enter_context(account.averager.paused())
            yield

    def places(self) -> list[dict[str, Any]]:
        """Where each member is in its data."""
        return [one.batches.get_state() for one in self._grid]

    def save(self, seconds: float, places: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The progress of every member, of whom each took `seconds` more; logs on disk."""
        return [
            account.snapshot(earlier + seconds, place)
            for account, earlier, place in zip(self._accounts, self._seconds, places, strict=True)
        ]

    def leave(self, states: TrainState, seconds: float) -> list[TrainResult]:
        """The outcome of every member; in its own folder, the checkpoint of a separate run.

        A member that stopped early leaves none.
        """
        progress = self.save(seconds, self.places())
        for r, one in enumerate(self._grid):
            if one.out_dir is None or self.stopped[r] is not None:
                continue
            with contextlib.closing(
                CheckpointStore(pathlib.Path(one.out_dir) / "checkpoints")
            ) as store:
                if not store.has_step(one.train_config.steps):
                    config = one.run_identity(self._model, self._objective)
                    store.save(one.train_config.steps, index_tree(states, r), progress[r], config)
        return [
            account.result(index_tree(states["params"], r), progress[r]["seconds"])
            for r, account in enumerate(self._accounts)
        ]

    def close(self) -> None:
        """Closes the logs."""
        for account in self._accounts:
            account.close()


def _batch(one: Trial, n: int) -> Batch:
    """A member's next batch, after `n` of them."""
    try:
        return next_batch(one.batches, n, one.train_config)
    except UserError as error:
        raise UserError(f"{one.run_name}: {error}") from error


def trial_constants(grid: Sequence[Trial]) -> Constants:
    """What stays the same from step to step: seeds [R], token weights [R, V] or None, and the
    learning rates of all steps [S, R, 2]."""
    steps = max(one.train_config.steps for one in grid)
    seeds_R = np.array([one.train_config.seed for one in grid], np.uint32)
    weights = [one.token_weights for one in grid]
    rates = [learning_rates(one.optimizer_config, one.train_config.steps, steps) for one in grid]
    return seeds_R, None if weights[0] is None else stack_trees(weights), np.stack(rates, axis=1)


_WAY = "way.json"


@dataclasses.dataclass
class SweepProgress:
    """What a checkpoint holds beside the stack, as JSON; members as of `fm.training.progress`."""

    step: int = 0
    way: str | None = None
    seconds_per_step: dict[str, float] = dataclasses.field(default_factory=dict)
    members: list[dict[str, Any]] | None = None
    stopped: list[str | None] | None = None


@dataclasses.dataclass(frozen=True)
class _Taken:
    """A step of all members whose metrics have not been read."""

    metrics: Metrics
    batches: Batch
    costs: list[StepCost | None]


@dataclasses.dataclass(kw_only=True)
class SweepTrainer:
    """What a grid has at hand, and where it is.

    Attributes:
      rule: what the members' have in common, as is `accumulate`.
      steps: of the longest run.
      checkpoint_every: of the one that asks most often.
      states: the members', stacked, after the last step taken; a step consumes them.
      constants: of the members.
      roster: of the steps read.
      progress: of the last checkpoint; its way is chosen here where it is not given.
      store: of checkpoints, if any are written, of a grid with this `config`.
      out: folder of the grid, if it has one.
      mesh: devices the states lie on; None is the default one.
      signalled: name of the signal that came, if one did.
      bar: of steps.
      share: seconds since this process began, of one member.
    """

    label: str
    model: ModelConfig
    objective: Objective
    rule: OptimizerConfig
    accumulate: int
    steps: int
    checkpoint_every: int
    states: TrainState
    constants: Constants
    roster: TrialSet
    progress: SweepProgress
    store: CheckpointStore | None
    config: dict[str, Any]
    out: pathlib.Path | None
    mesh: Mesh | None
    signalled: Callable[[], str | None]
    bar: tqdm
    share: Callable[[], float]
    _pending: _Taken | None = None
    _step: SweepStepFn | None = None

    def train(self) -> None:
        """Takes the steps that are left.

        Raises:
          UserError: see `fm.training.sweep.sweep`.
          Interrupted: after a signal, once saved.
        """
        n = self.progress.step
        while any(self.roster.running(n)):
            begins, taken = self._step is None, self._take(n)
            if begins:
                self.roster.started(self.share())
            n += 1
            self._settle()
            self._pending = taken
            signal = self.signalled()
            saves = signal or n == self.steps or is_due(n, self.checkpoint_every)
            if not (saves or self.roster.validates(n)):
                continue
            self._settle()
            with self.roster.paused():
                self.roster.validate(self.states, n)
                if saves:
                    self._save(n, self.roster.places())
            if signal and n < self.steps:
                raise Interrupted(interrupted_message(self.label, signal, n, self.steps, self.out))

    def _take(self, n: int) -> _Taken:
        """Dispatches the step after `n` of them."""
        places = self.roster.places()
        with save_on_failure(self.label, n + 1, lambda: self._rescue(n, places)):
            batches, costs = self.roster.take(n)
            n_R = np.where(self.roster.running(n), n, -1).astype(np.int32)
            placed = batches
            if self.mesh is not None:
                placed = sharding.shard_batch(batches, self.mesh, axis=1)
            seeds_R, weights_RV, rates_SR2 = self.constants
            data = n_R, placed, seeds_R, rates_SR2[n], weights_RV
            if self._step is None:
                self._step = self._compiled(*data)
            self.states, metrics = self._step(self.states, *data)
        return _Taken(metrics, batches, costs)

    def _compiled(self, *data: Any) -> SweepStepFn:
        """The step by the way there is, or by the faster one, which is kept."""
        ways = (self.progress.way,) if self.progress.way else BATCHING_MODES
        programs = {
            way: make_sweep_step(self.model, self.objective, self.rule, self.accumulate, way)
            for way in ways
        }
        if self.progress.way is None:
            timings = seconds_per_step(programs, self.states, *data)
            self.progress.seconds_per_step = timings
            self.progress.way = min(timings, key=timings.__getitem__)
            if self.out is not None:
                files.write_checked_json(pathlib.Path(self.out) / _WAY, self.progress.way)
        return programs[self.progress.way]

    def _settle(self) -> None:
        """Reads the metrics of the step that waits, if one does: this waits for it."""
        if self._pending is None:
            return
        taken, self._pending = self._pending, None
        figures = self.roster.settle(taken.metrics, taken.batches, taken.costs)
        self.bar.update()
        if figures:
            self.bar.set_postfix_str(f"{min(figures):.3f} to {max(figures):.3f}", refresh=False)

    def _save(self, n: int, places: list[dict[str, Any]]) -> None:
        """The `n` steps read, which must be all there are, and the places in the data then."""
        if self.store is None:
            return
        self.progress.step, self.progress.stopped = n, self.roster.stopped
        self.progress.members = self.roster.save(self.share(), places)
        self.store.save(n, self.states, dataclasses.asdict(self.progress), self.config)

    def _rescue(self, n: int, places: list[dict[str, Any]]) -> str:
        """Saves the `n` steps before one that could not be taken; what is kept."""
        return save_last_state(
            self.store, self.states, n, self._settle, lambda: self._save(n, places)
        )


def saved_batching(out: pathlib.Path | None) -> str | None:
    """The way of a run that was killed before its first checkpoint; None where none was chosen."""
    path = None if out is None else pathlib.Path(out) / _WAY
    if path is None or not path.exists():
        return None
    return files.read_checked_json(path)


@dataclasses.dataclass(frozen=True, eq=False)
class SweepResult:
    """The outcome of a grid.

    Attributes:
      results: by member. Seconds are shared out evenly; one that stopped early has fewer `steps`
        and the parameters of its last good one.
      stop_reasons: by member, why it stopped early, or None.
      batching: see `fm.training.sweep.make_sweep_step`.
      seconds_per_step: by way, as measured; empty where the way was given.
    """

    results: list[TrainResult]
    stop_reasons: list[str | None]
    batching: str
    seconds_per_step: dict[str, float]


def sweep(
    trials: Sequence[Trial],
    model_config: ModelConfig,
    objective: Objective,
    *,
    out_dir: pathlib.Path | None,
    batching: str | None = None,
    run_name: str = "grid",
    gemm_flops_per_second: float | None = None,
) -> SweepResult:
    """Trains all members, or goes on, or says that it is done; on the mesh of `meshes.over`.

    A grid that was killed and is called again ends as if unbroken, to the bit: the way, once
    chosen, is kept in `out_dir`/way.json before the first step, and is part of the checkpoint.

    Args:
      trials: see `Member`.
      model_config: architecture.
      objective: what is predicted.
      out_dir: folder for the checkpoint of the stack; None writes none.
      batching: "vmap" or "map"; the faster by measurement if not given.
      run_name: in front of the progress bar and of messages.
      gemm_flops_per_second: measured rate of matrix products, FLOP/s, for the logs' share of it.

    Raises:
      UserError: members that cannot share a program; an unknown way; `out_dir` holds another grid,
        or the same by another way; the data of a member ends early or stalls, or memory runs
        out (what was done is saved, as of one run); there are several processes; the mesh does
        not divide the model; a checkpoint cannot be written.
      Interrupted: after SIGINT or SIGTERM, once saved.
    """
    began, mesh = time.perf_counter(), meshes.current_mesh()
    if jax.process_count() > 1:
        raise UserError(f"{run_name}: a grid of runs takes one process; take one run at a time")
    rule, accumulate = _common(trials)
    if batching is not None:
        check_batching(batching)
    steps = max(one.train_config.steps for one in trials)
    params = [train_loop.resolve_params(one.params) for one in trials]
    trials = [
        dataclasses.replace(one, params=made) for one, made in zip(trials, params, strict=True)
    ]
    states = stack_trees(
        [
            train_state.init_train_state(
                made, optimizer.build(one.optimizer_config, one.train_config.steps)
            )
            for one, made in zip(trials, params, strict=True)
        ]
    )
    progress = SweepProgress()

    def share() -> float:
        return (time.perf_counter() - began) / len(trials)

    with contextlib.ExitStack() as closing:
        if mesh is not None:
            closing.enter_context(jax.set_mesh(mesh))
            states = sharding.shard_stacked_states(states, mesh)
            trials = [_on(mesh, one) for one in trials]
        store, config = None, {}
        if out_dir is not None:
            config = {
                str(r): one.run_identity(model_config, objective) for r, one in enumerate(trials)
            }
            store = closing.enter_context(CheckpointStore(pathlib.Path(out_dir) / "checkpoints"))
            restored = store.restore(states, config)
            if restored is not None:
                states, progress = restored.state, SweepProgress(**restored.progress)
                finished = progress.step == steps
                failures.announce_resume(run_name, progress.step, steps, finished=finished)
                if batching not in (None, progress.way):
                    raise UserError(
                        f"{out_dir} holds a grid run by {progress.way!r}, not {batching!r}"
                    )
        progress.way, first = progress.way or batching or saved_batching(out_dir), progress.step
        roster = TrialSet(
            trials,
            model_config,
            objective,
            progress=progress.members,
            stopped=progress.stopped,
            peak=gemm_flops_per_second,
        )
        closing.callback(roster.close)
        runs = any(roster.running(first))
        trainer = SweepTrainer(
            label=run_name,
            model=model_config,
            objective=objective,
            rule=rule,
            accumulate=accumulate,
            steps=steps,
            checkpoint_every=min(one.train_config.checkpoint_every for one in trials),
            states=states,
            constants=trial_constants(trials),
            roster=roster,
            progress=progress,
            store=store,
            config=config,
            out=out_dir,
            mesh=mesh,
            signalled=closing.enter_context(catch_termination_signals()),
            bar=closing.enter_context(failures.progress_bar(run_name, first, steps)),
            share=share,
        )
        closing.enter_context(
            report_out_of_memory(run_name, lambda: latest_checkpoint_message(store))
        )
        trainer.train()
        states = trainer.states
        if mesh is not None:
            states = jax.tree.map(lambda leaf: jnp.asarray(jax.device_get(leaf)), states)
        trained = roster.leave(states, share() if runs else 0.0)
    return SweepResult(trained, roster.stopped, progress.way or "", progress.seconds_per_step)


def _on(mesh: Mesh, one: Trial) -> Trial:
    """A member whose held-out batches and token weights lie on the mesh."""
    weights = one.token_weights
    return dataclasses.replace(
        one,
        token_weights=None if weights is None else sharding.replicate(weights, mesh),
        validation=[sharding.shard_batch(each, mesh) for each in one.validation],
    )


def _common(grid: Sequence[Trial]) -> tuple[OptimizerConfig, int]:
    """The rule and the parts of a batch that all members share.

    Raises:
      UserError: there are none, or they differ in what is part of the program.
    """
    if not grid:
        raise UserError("a grid takes at least one member")
    if any(one.train_config.early_stopping_patience for one in grid):
        raise UserError("early_stop is for one run at a time, a grid's members run to their end")
    found = {
        (
            shared_optimizer_config(one.optimizer_config),
            one.train_config.grad_accum_steps,
            one.token_weights is None,
        )
        for one in grid
    }
    if len(found) > 1:
        raise UserError(
            "members of a grid may differ in seed, steps, learning rates and schedule, not in "
            f"{len(found)} kinds of optimiser, accumulate or use of token weights"
        )
    rule, accumulate, _ = found.pop()
    return rule, accumulate
