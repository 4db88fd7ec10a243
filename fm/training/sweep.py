"""Sweeps: many trials of one model that differ in seed, learning rate or data.

On accelerators all trials are stepped as one program, vmapped over a leading axis R; on a CPU, or
with several processes, one trial after another. Each trial's folder ends as that of a single run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Compiled

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.parallel import distributed, sharding
from fm.parallel.mesh import current_mesh, default_device
from fm.progress_lines import say
from fm.training import optimizer, train_step
from fm.training.checkpoint import CheckpointStore
from fm.training.config import TrainResult
from fm.training.executor import TrialExecutor
from fm.training.failures import NotFiniteError
from fm.training.objectives import Batch, PretrainingObjective
from fm.training.optimizer import OptimizerConfig
from fm.training.train_loop import Trainer, train_trial
from fm.training.train_state import TrainState, init_sharded_train_state
from fm.training.train_step import Metrics
from fm.training.trial import Trial, resolve_params

BATCHING_MODES = ("vmap", "sequential")

# (state, n_R, batch, seeds_R, rates_R2, token_weights_RV) -> (state, metrics)
SweepStepFn = Callable[..., tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True, eq=False)
class SweepResult:
    """Results of a sweep by trial, why trials stopped, and how they were batched.

    Attributes:
      results: by trial; None for one that stopped because its loss was not finite.
      stop_reasons: by trial, the message of one that stopped, or None.
      batching: "vmap" or "sequential".
    """

    results: list[TrainResult | None]
    stop_reasons: list[str | None]
    batching: str


def sweep(
    trials: Sequence[Trial],
    model_config: ModelConfig,
    objective: PretrainingObjective,
    *,
    out_dir: pathlib.Path | None,
    batching: str | None = None,
    run_name: str = "sweep",
    gemm_flops_per_second: float | None = None,
    peak_flops: float | None = None,
) -> SweepResult:
    """Trains all trials of a sweep (resuming unfinished ones) and returns their results.

    The trials run on the current mesh and may differ in seed, learning rate or data.

    A sweep that was killed and is called again ends bitwise as if it had not been interrupted.
    Run sequentially, each trial ends bitwise as by `train`; vmapped, up to the order of summation.

    Args:
      trials: may differ in everything but the shapes of parameters and batches, whether there are
        token weights, `grad_accum_steps`, and the optimizer apart from learning rates and
        schedule.
      model_config: of the model.
      objective: what to predict.
      out_dir: for the checkpoints of vmapped trials, and of trials without a folder of their own;
        None writes none.
      batching: "vmap" or "sequential"; as the sweep was started, or by device, unless given.
      run_name: prefix of the progress bar and of messages.
      gemm_flops_per_second: measured rate of matrix products, for the logs.
      peak_flops: FLOP/s of all devices by their specification, for the logs.

    Raises:
      UserError: the trials cannot share a program; `out_dir` holds another sweep, or the same
        with another batching; otherwise as `train`.
      Interrupted: after SIGINT or SIGTERM, once saved.
    """
    shared = _shared_settings(trials)
    out_dir = None if out_dir is None else pathlib.Path(out_dir)
    if out_dir is not None:
        trials = [
            dataclasses.replace(trial, out_dir=trial.out_dir or out_dir / f"trial-{r}")
            for r, trial in enumerate(trials)
        ]
    batching = _choose_batching(trials, out_dir, batching)
    if distributed.is_lead_process():
        how = "as one vmapped program" if batching == "vmap" else "one after another"
        say(f"{run_name}: {len(trials)} trials, {how}")
    if batching == "sequential":
        return _train_sequentially(
            trials, model_config, objective, gemm_flops_per_second, peak_flops
        )
    executor = _VmappedExecutor(trials, model_config, objective, *shared, current_mesh())
    with contextlib.ExitStack() as stack:
        rates = gemm_flops_per_second, peak_flops
        trainer = Trainer(executor, out_dir, run_name, *rates, stack)
        trainer.run()
        _save_trials(trainer)
    return SweepResult(trainer.results(), trainer.stop_reasons, batching)


def _train_sequentially(
    trials: Sequence[Trial],
    model_config: ModelConfig,
    objective: PretrainingObjective,
    gemm_flops_per_second: float | None,
    peak_flops: float | None,
) -> SweepResult:
    results, stop_reasons = [], []
    for trial in trials:
        result, reason = None, None
        try:
            result = train_trial(
                trial,
                model_config,
                objective,
                gemm_flops_per_second=gemm_flops_per_second,
                peak_flops=peak_flops,
            )
        except NotFiniteError as error:
            reason = str(error)
        results.append(result)
        stop_reasons.append(reason)
    return SweepResult(results, stop_reasons, "sequential")


def _save_trials(trainer: Trainer) -> None:
    """Saves each vmapped trial in its folder, as the last checkpoint of a single run."""
    select, mesh = index_tree, trainer.executor.mesh
    if mesh is not None:  # sharded like a single run
        shapes = jax.eval_shape(index_tree, trainer.state, 0)
        select = jax.jit(index_tree, out_shardings=sharding.state_shardings(shapes, mesh))
    for r, progress in enumerate(trainer.progress()):
        trial = trainer.executor.trials[r]
        if trial.out_dir is None or trainer.stop_reasons[r] is not None:
            continue
        step = progress["step"]
        with CheckpointStore(pathlib.Path(trial.out_dir) / "checkpoints") as store:
            if store.has_step(step):
                continue
            saved = {"step": step, "trials": [progress], "stop_reasons": [None]}
            store.save(step, select(trainer.state, r), saved, trainer.config[str(r)])


def _shared_settings(trials: Sequence[Trial]) -> tuple[OptimizerConfig, int]:
    """Returns the optimizer settings and `grad_accum_steps` that all trials share.

    Raises:
      UserError: there are no trials, or they differ in what is part of the program.
    """
    if not trials:
        raise UserError("a sweep needs at least one trial")
    found = {
        (
            shared_optimizer_config(trial.optimizer_config),
            trial.train_config.grad_accum_steps,
            trial.token_weights is None,
        )
        for trial in trials
    }
    if len(found) > 1:
        raise UserError(
            "trials of a sweep may differ in seed, steps, learning rates and schedule, not in "
            f"optimizer, grad_accum_steps or use of token weights ({len(found)} kinds given)"
        )
    optimizer_config, grad_accum_steps, _ = found.pop()
    return optimizer_config, grad_accum_steps


def _choose_batching(
    trials: Sequence[Trial], out_dir: pathlib.Path | None, batching: str | None
) -> str:
    """Returns the batching asked for, else the one the sweep was started with, else by device."""
    if batching not in (None, *BATCHING_MODES):
        accepted = ", ".join(BATCHING_MODES)
        raise UserError(f"batching {batching!r} is not known; accepted are {accepted}")
    folders = [trial.out_dir for trial in trials if trial.out_dir is not None]
    started = None
    if out_dir is not None and (out_dir / "checkpoints").is_dir():
        started = "vmap"
    elif any((pathlib.Path(folder) / "checkpoints").is_dir() for folder in folders):
        started = "sequential"
    if batching and started and batching != started:
        raise UserError(f"{out_dir} holds a sweep with batching {started!r}, not {batching!r}")
    batching = batching or started
    alone = any(
        trial.train_config.is_open_ended or trial.train_config.max_seconds is not None
        for trial in trials
    )
    if batching == "vmap" and alone:
        raise UserError("trials that end when flat or by time run one by one, not vmapped")
    if batching == "vmap" and jax.process_count() > 1:
        raise UserError("a vmapped sweep takes one process")
    mesh = current_mesh()
    device = default_device() if mesh is None else mesh.devices.flat[0]
    on_accelerator = device.platform != "cpu" and jax.process_count() == 1
    vmapped = on_accelerator and len(trials) > 1 and not alone
    return batching or ("vmap" if vmapped else "sequential")


class _VmappedExecutor(TrialExecutor):
    """Program of all trials as one, stacked along a leading axis R.

    Trials keep their place: one that is finished, or whose loss is not finite, keeps its state, so
    that shapes and the other trials' bits do not change. On a mesh each trial is sharded like a
    single run.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        model_config: ModelConfig,
        objective: PretrainingObjective,
        optimizer_config: OptimizerConfig,
        grad_accum_steps: int,
        mesh: Mesh | None,
    ):
        super().__init__(trials, model_config, objective, mesh)
        self._optimizer_config, self._grad_accum_steps = optimizer_config, grad_accum_steps
        self._constants = stack_trial_inputs(self.trials)

    def init(self) -> tuple[TrainState, dict[str, Any]]:
        states, config = [], {}
        for r, trial in enumerate(self.trials):
            params = resolve_params(trial.params)
            update = optimizer.build(trial.optimizer_config, trial.train_config.steps)
            states.append(init_sharded_train_state(params, update, self.mesh))
            if trial.out_dir is not None:
                config[str(r)] = trial.run_identity(params, self.model_config, self.objective)
        return stack_states(states, self.mesh), config

    def place(self, batches: Sequence[Batch | None]) -> Batch:
        stand_in = next(batch for batch in batches if batch is not None)
        batches = [stand_in if batch is None else batch for batch in batches]
        # `length` of rows with one document each: of no use where another trial's rows are packed.
        common = set.intersection(*(set(batch) for batch in batches))
        stacked = stack_trees(
            [{key: batch[key] for key in stand_in if key in common} for batch in batches]
        )
        if self.mesh is None:
            return sharding.on_devices(stacked, None)
        return sharding.shard_batch(stacked, self.mesh, axis=1)

    def step(
        self, state: TrainState, n: int, batch: Batch, running: Sequence[bool]
    ) -> tuple[TrainState, Metrics]:
        return self._step(*self._inputs(state, n, batch, running))

    def compile_step(
        self, state: TrainState, n: int, batch: Batch, running: Sequence[bool]
    ) -> Compiled:
        step: Any = self._step
        return step.lower(*self._inputs(state, n, batch, running)).compile()

    def _inputs(
        self, state: TrainState, n: int, batch: Batch, running: Sequence[bool]
    ) -> tuple[Any, ...]:
        """Returns the arguments of the step."""
        n_R = np.where(running, n, -1).astype(np.int32)
        seeds_R, weights_RV, rates_SR2 = self._constants
        n_R, seeds_R, rates_R2 = self.put((n_R, seeds_R, rates_SR2[n]))
        return state, n_R, batch, seeds_R, rates_R2, weights_RV

    def select(self, tree: Any, r: int) -> Any:
        return index_tree(tree, r)

    @functools.cached_property
    def _step(self) -> SweepStepFn:
        return make_sweep_step(
            self.model_config, self.objective, self._optimizer_config, self._grad_accum_steps
        )


@functools.lru_cache(maxsize=64)
def make_sweep_step(
    model_config: ModelConfig,
    objective: PretrainingObjective,
    optimizer_config: OptimizerConfig,
    grad_accum_steps: int = 1,
) -> SweepStepFn:
    """Returns the jitted train step of all trials at once, cached by its arguments.

    Args:
      model_config: of the model.
      objective: what to predict.
      optimizer_config: its learning rates and schedule are not used; `shared_optimizer_config`
        makes configs that differ in them share a program.
      grad_accum_steps: as for `train_step.make_train_step`.

    Returns:
      step(state, n_R, batch, seeds_R, rates_R2, token_weights_RV) -> (state, metrics), which
      consumes the given state (a `TrainState` with a leading R). A trial takes the step if it has
      done n steps (-1 for one that rests) and its loss and gradient are finite; otherwise its
      state stays bitwise the same, so one that missed a step rests from then on. `rates_R2` are
      this step's learning rates, see `learning_rates`. Metrics are float32 [R].
    """

    def step_one(state, n, batch, seed, rates_2, token_weights_V):
        update = optimizer.build_from_schedules(
            optimizer_config, lambda _: rates_2[0], lambda _: rates_2[1]
        ).update
        metrics, gradient = train_step.compute_gradient(
            state, batch, seed, model_config, objective, token_weights_V, grad_accum_steps
        )
        metrics["learning_rate"] = rates_2[0]
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        state = jax.lax.cond(
            (state.step == n) & finite,
            lambda state: train_step.apply_gradient(state, gradient, update),
            lambda state: state,
            state,
        )
        return state, metrics

    return jax.jit(jax.vmap(step_one), donate_argnums=0)


def shared_optimizer_config(optimizer_config: OptimizerConfig) -> OptimizerConfig:
    """Returns the config without learning rates and schedule, so that trials share a program."""
    return dataclasses.replace(
        optimizer_config,
        learning_rate=1.0,
        adam_learning_rate=1.0,
        schedule="cosine",
        warmup=0.0,
        warmup_steps=None,
    )


def learning_rates(optimizer_config: OptimizerConfig, steps: int, length: int) -> np.ndarray:
    """Returns each step's main and Adam learning rates, float32 [length, 2], 0 from `steps` on.

    Columns: of the layer kernels, and of embeddings and heads under Muon.
    """
    peaks = optimizer_config.learning_rate, optimizer_config.adam_learning_rate
    columns = [
        optimizer.learning_rate_schedule(optimizer_config, peak, steps)(jnp.arange(length))
        for peak in peaks
    ]
    rates = np.where(np.arange(length)[:, None] < steps, np.stack(columns, -1), 0.0)
    return rates.astype(np.float32)


def stack_trial_inputs(
    trials: Sequence[Trial],
) -> tuple[np.ndarray, jax.Array | None, np.ndarray]:
    """Returns R trials' seeds [R], token weights [R, V] or None, learning rates [steps, R, 2]."""
    steps = max(trial.train_config.steps for trial in trials)
    seeds_R = np.array([trial.train_config.seed for trial in trials], np.uint32)
    weights = [trial.token_weights for trial in trials]
    rates = [
        learning_rates(trial.optimizer_config, trial.train_config.steps, steps) for trial in trials
    ]
    weights_RV = None if weights[0] is None else stack_trees(weights)
    return seeds_R, weights_RV, np.stack(rates, axis=1)


def stack_trees(trees: Sequence[Any]) -> Any:
    """Returns pytrees of one structure stacked along a new leading axis; numpy stays numpy."""

    def stack(*leaves):
        return np.stack(leaves) if isinstance(leaves[0], np.ndarray) else jnp.stack(leaves)

    return jax.tree.map(stack, *trees)


def stack_states(states: Sequence[TrainState], mesh: Mesh | None) -> TrainState:
    """Returns train states stacked along a new leading axis, on a mesh sharded as they are."""
    if mesh is None:
        return stack_trees(states)
    shardings = sharding.stacked_state_shardings(states[0], mesh)
    return jax.jit(stack_trees, out_shardings=shardings)(states)


def index_tree(tree: Any, r: int) -> Any:
    """Returns the pytree with every leaf indexed by `r` along its leading axis."""
    return jax.tree.map(lambda leaf: leaf[r], tree)
