"""Executors: what the training loop asks of the trials that it steps, and that of a single trial.

`fm.training.sweep` has another, which steps many trials as one program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.stages import Compiled

from fm.model.config import ModelConfig
from fm.parallel import distributed
from fm.parallel.mesh import default_mesh
from fm.parallel.sharding import on_devices
from fm.training import optimizer, train_step
from fm.training.multitask import AnyObjective
from fm.training.objectives import Batch
from fm.training.train_state import TrainState, init_sharded_train_state
from fm.training.train_step import Metrics, TrainStepFn
from fm.training.trial import Trial, resolve_params


class TrialExecutor:
    """Base class that initializes and steps the train state of one or several trials.

    Attributes:
      trials: with their arrays placed on the mesh.
      model_config: of the model.
      objective: what to predict.
      mesh: None is the default device.
      rates_at: returns the learning rates [2] of a step, for an open-ended trial.
    """

    rates_at: Callable[[int], np.ndarray] | None = None

    def __init__(
        self,
        trials: Sequence[Trial],
        model_config: ModelConfig,
        objective: AnyObjective,
        mesh: Mesh | None,
    ):
        self.model_config, self.objective, self.mesh = model_config, objective, mesh
        self.trials = [trial if mesh is None else trial.on_mesh(mesh) for trial in trials]

    def put(self, tree: Any) -> Any:
        """Returns numbers and numpy arrays on the device, or on every device of the mesh."""
        return on_devices(tree, self.mesh)

    def init(self) -> tuple[TrainState, dict[str, Any]]:
        """Returns the initial state of all trials, and the config that resuming must share."""
        raise NotImplementedError

    def place(self, batches: Sequence[Batch | None]) -> Batch:
        """Returns the trials' batches, None for a trial that takes no step, as one on devices."""
        raise NotImplementedError

    def step(
        self, state: TrainState, n: int, batch: Batch, running: Sequence[bool]
    ) -> tuple[TrainState, Metrics]:
        """Dispatches the step after `n` steps of the running trials; consumes the state."""
        raise NotImplementedError

    def compile_step(
        self, state: TrainState, n: int, batch: Batch, running: Sequence[bool]
    ) -> Compiled:
        """Returns the program that `step` runs for these arguments; it is compiled once."""
        raise NotImplementedError

    def select(self, tree: Any, r: int) -> Any:
        """Returns the part of trial `r` of a state, parameters or metrics."""
        raise NotImplementedError


class SingleExecutor(TrialExecutor):
    """Steps one trial."""

    def init(self) -> tuple[TrainState, dict[str, Any]]:
        """Returns the initial state of the trial, and the config that resuming must share."""
        (trial,) = self.trials
        steps = trial.train_config.steps
        with default_mesh(self.mesh):
            state = init_sharded_train_state(
                resolve_params(trial.params),
                optimizer.build(trial.optimizer_config, steps),
                self.mesh,
            )
        if trial.out_dir is None:
            return state, {}
        return state, trial.run_identity(state.params, self.model_config, self.objective)

    def place(self, batches: Sequence[Batch | None]) -> Batch:
        """Returns the trial's batch on devices."""
        (batch,) = batches
        assert batch is not None
        if self.mesh is None:
            return on_devices(batch, None)
        return distributed.make_global_batch(batch, self.mesh)

    def step(
        self, state: TrainState, n: int, batch: Batch, running: Sequence[bool]
    ) -> tuple[TrainState, Metrics]:
        """Dispatches the step after `n` steps; consumes the state."""
        step, inputs = self._program(state, n, batch)
        return step(*inputs)

    def compile_step(
        self, state: TrainState, n: int, batch: Batch, running: Sequence[bool]
    ) -> Compiled:
        """Returns the program that `step` runs for these arguments."""
        step, inputs = self._program(state, n, batch)
        return step.lower(*inputs).compile()

    def _program(self, state: TrainState, n: int, batch: Batch) -> tuple[Any, tuple[Any, ...]]:
        """Returns the jitted step and its arguments."""
        (trial,) = self.trials
        inputs = state, batch, self._seed, trial.token_weights
        if self.rates_at is not None:
            return self._open_ended_step, (*inputs, self.put(self.rates_at(n)))
        return self._step, inputs

    @functools.cached_property
    def _seed(self) -> jax.Array:
        (trial,) = self.trials
        return self.put(np.uint32(trial.train_config.seed))

    @functools.cached_property
    def _open_ended_step(self) -> Callable[..., tuple[TrainState, Metrics]]:
        (trial,) = self.trials
        return train_step.make_open_ended_train_step(
            self.model_config,
            self.objective,
            trial.optimizer_config,
            trial.train_config.grad_accum_steps,
        )

    @functools.cached_property
    def _step(self) -> TrainStepFn:
        (trial,) = self.trials
        return train_step.make_train_step(
            self.model_config,
            self.objective,
            trial.optimizer_config,
            trial.train_config.steps,
            trial.train_config.grad_accum_steps,
        )

    def select(self, tree: Any, r: int) -> Any:
        """Returns the whole: there is one trial."""
        return tree
