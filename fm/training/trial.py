"""`Trial`: everything that one training run needs."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from fm.config_io import to_plain
from fm.model.config import ModelConfig
from fm.parallel import sharding
from fm.training import multitask
from fm.training.config import TrainConfig
from fm.training.metric_units import MetricUnit
from fm.training.multitask import AnyObjective
from fm.training.objectives import Batch
from fm.training.optimizer import OptimizerConfig
from fm.training.train_state import params_digest

# Parameters, or a function that makes them, so that the caller keeps no copy in memory.
ParamsOrInit = dict | Callable[[], dict]


class BatchIterator(Protocol):
    """Protocol of an iterator over batches whose position can be saved and restored."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the batches taken so far, as JSON."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a saved position."""
        ...

    def shard(self, index: int, count: int) -> BatchIterator:
        """Returns an iterator over the `index`-th of `count` equal blocks of rows of each batch."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """Everything one training run needs: parameters, data, optimizer, schedule and folders.

    Attributes:
      params: initial parameters (left unchanged), or a function that makes them, called under the
        mesh.
      batches: training data; its position is saved and restored.
      optimizer_config: optimizer and schedule.
      train_config: length, seed and intervals.
      metric_unit: unit of the logged loss.
      out_dir: for checkpoints and metrics; None writes nothing.
      token_weights: [V], needed for the bag-of-words objective.
      validation: held-out batches of equal weight, masked the same way every time.
      run_name: prefix of the progress bar and of messages.
      identity: more facts as JSON that a resumed run must share, such as data set names.
    """

    params: ParamsOrInit
    batches: BatchIterator
    optimizer_config: OptimizerConfig
    train_config: TrainConfig
    metric_unit: MetricUnit
    out_dir: pathlib.Path | None = None
    token_weights: jax.Array | None = None
    validation: Sequence[Batch] = ()
    run_name: str = "train"
    identity: Mapping[str, Any] | None = None

    def run_identity(
        self, params: dict, model_config: ModelConfig, objective: AnyObjective
    ) -> dict[str, Any]:
        """Returns what a resumed run must share, as JSON, for initial parameters `params`."""
        config = self.train_config
        run: dict[str, Any] = {
            "steps": config.steps,
            "seed": config.seed,
            "grad_accum_steps": config.grad_accum_steps,
        }
        if config.early_stopping_patience:
            run["early_stopping_patience"] = config.early_stopping_patience
        for name in ("min_improvement", "max_seconds", "warmup_steps"):
            if getattr(config, name):
                run[name] = getattr(config, name)
        if config.extended_from:
            run["extended_from"] = list(config.extended_from)
        return {
            "model": to_plain(model_config),
            "objective": multitask.to_dict(objective),
            "optimizer": to_plain(self.optimizer_config),
            "run": run,
            "unit": {"name": self.metric_unit.name, **dataclasses.asdict(self.metric_unit)},
            "start": params_digest(params),
            **(self.identity or {}),
        }

    def on_mesh(self, mesh: Mesh) -> Trial:
        """Returns the trial with its token weights and validation batches on the mesh."""
        weights = self.token_weights
        return dataclasses.replace(
            self,
            token_weights=None if weights is None else sharding.replicate(weights, mesh),
            validation=[sharding.shard_batch(batch, mesh) for batch in self.validation],
        )


def resolve_params(params: ParamsOrInit) -> dict:
    """Returns the parameters, calling `params` first if it is a function that makes them."""
    return params if isinstance(params, dict) else params()
