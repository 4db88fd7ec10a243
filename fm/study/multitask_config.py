"""What the study of one model for many tasks runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from fm.adaptation.finetune import FinetuneConfig
from fm.errors import UserError
from fm.study.config import TaskConfig, check_seeds
from fm.study.joint_pretraining import JointRecipe
from fm.study.tasks import short_name

MULTITASK_ARMS = ("scratch", "in_domain", "joint", "instruction_tuned", "classical")
MULTITASK_ABLATIONS = ("matrix", "mixture", "amount")


@dataclasses.dataclass(frozen=True)
class MultitaskConfig:
    """A study of one model for many tasks against distinct networks.

    Attributes:
      tasks: see `TaskConfig`; their budgets must be the same, for one network follows them all.
      joint: pretraining, of all formats together and of each alone: on as many rows of it.
      weights: share of each task's data in its rows, by name, in any unit.
      instruction_tuning: tuning to instructions, but for the learning rate.
      instruction_learning_rates: of that.
      max_instruction_length: the most pieces of an instruction, its input and answer.
      arms: some of `ARMS`.
      seeds: runs per cell; each draws its own labels and initialisation.
      search_seeds: settings are chosen on the first so many seeds.
      methods: ways to adapt a network with a head, see `fm.adaptation.methods.METHODS`.
      ablations: some of `STUDIES`, of other models to start from.
    """

    tasks: tuple[TaskConfig, ...]
    joint: JointRecipe
    weights: tuple[tuple[str, float], ...]
    instruction_tuning: FinetuneConfig
    instruction_learning_rates: tuple[float, ...]
    max_instruction_length: int
    arms: tuple[str, ...] = MULTITASK_ARMS
    seeds: int = 8
    search_seeds: int = 2
    methods: tuple[str, ...] = ("probe", "full")
    ablations: tuple[str, ...] = ()

    def __post_init__(self):
        check_multitask_arms(self.arms)
        check_ablations(self.ablations, self.arms)
        if len({task.label_budgets for task in self.tasks}) > 1:
            raise UserError("the tasks of one model must have the same --budgets")
        names = [short_name(task.dataset) for task in self.tasks]
        if not names or len(set(names)) < len(names):
            raise UserError(f"tasks {', '.join(names) or 'none'}: takes one or more, none twice")
        unknown = {name for name, _ in self.weights} - set(names)
        if unknown:
            raise UserError(f"--mixture: {min(unknown)} is not one of the tasks {', '.join(names)}")
        check_seeds(self.seeds)
        if not 1 <= self.search_seeds <= self.seeds:
            raise UserError(f"search_seeds={self.search_seeds} must be 1 to seeds={self.seeds}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with the name of the experiment."""
        plain = {"experiment": "unify", **json.loads(json.dumps(dataclasses.asdict(self)))}
        if not self.ablations:
            # As it was before there were any: such runs are gone on with.
            del plain["ablations"]
        return plain

    def config_hash(self) -> str:
        """Short hash of everything in it."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_multitask_arms(arms: tuple[str, ...]) -> None:
    """Raises UserError unless they are two or more of `ARMS`, none of them twice."""
    for arm in arms:
        if arm not in MULTITASK_ARMS:
            raise UserError(
                f"--arms: {arm!r} is not known; accepted are {', '.join(MULTITASK_ARMS)}"
            )
    if len(arms) < 2 or len(set(arms)) < len(arms):
        raise UserError(f"--arms={','.join(arms)}: takes two or more, none of them twice")


def check_ablations(studies: tuple[str, ...], arms: tuple[str, ...]) -> None:
    """Raises UserError unless each is one of `STUDIES`, once, and there is the arm they take."""
    for study in studies:
        if study not in MULTITASK_ABLATIONS:
            raise UserError(
                f"--studies: {study!r} is not known; accepted are {', '.join(MULTITASK_ABLATIONS)}, or none"
            )
    if len(set(studies)) < len(studies):
        raise UserError(f"--studies={','.join(studies)}: takes none of them twice")
    if studies and "joint" not in arms:
        raise UserError(f"--studies={','.join(studies)} takes the arm joint, which --arms lacks")
