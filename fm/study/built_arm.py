"""What arms are built from and into: a model before adaptation, and an arm ready to adapt."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from fm.study.adaptation import Arm, ModelArm, RecipeChoiceArm
from fm.study.processing import Processor
from fm.training.config import TrainResult


@dataclasses.dataclass(frozen=True, eq=False)
class InitialModel:
    """A model before adaptation: its processor and a pretraining run per seed (none if untrained).

    Attributes:
      processor: tokenizer and layouts.
      runs: pretraining runs, one per pretraining seed; empty for fresh parameters.
      given_params: pretrained parameters of which the runs are not known, instead of runs.
    """

    processor: Processor
    runs: Sequence[TrainResult] = ()
    given_params: Sequence[dict] = ()

    @property
    def checkpoints(self) -> list[dict]:
        """Pretrained parameters."""
        return [*self.given_params, *(run.params for run in self.runs)]


@dataclasses.dataclass(frozen=True)
class PretrainingCost:
    """FLOPs and CPU seconds of pretraining with one seed."""

    flops: float
    cpu_seconds: float


@dataclasses.dataclass(frozen=True, eq=False)
class BuiltArm:
    """An arm ready to adapt, with its pretraining runs, tokenizer and input layouts.

    Attributes:
      arm: see `fm.study.adaptation.Arm`.
      processor: tokenizer and layouts of its model, if it has one.
      runs: its pretraining runs, if any, one per pretraining seed; of several recipes those of the
        first.
      description: of a published model, JSON-able.
      other_runs: pretraining runs of each further recipe.
    """

    arm: Arm
    processor: Processor | None = None
    runs: Sequence[TrainResult] = ()
    description: dict[str, Any] | None = None
    other_runs: tuple[Sequence[TrainResult], ...] = ()

    @property
    def model_arm(self) -> ModelArm | None:
        """The arm that adapts its model, of several recipes that of the first; None without one."""
        arm = self.arm
        if isinstance(arm, RecipeChoiceArm):
            arm = next(iter(arm.arms.values()))
        return arm if isinstance(arm, ModelArm) else None

    def pretraining_costs(self) -> list[PretrainingCost]:
        """Returns what each pretraining seed cost, the sum over all recipes."""
        return [
            PretrainingCost(sum(run.flops for run in runs), sum(run.cpu_seconds for run in runs))
            for runs in zip(self.runs, *self.other_runs, strict=True)
        ]
