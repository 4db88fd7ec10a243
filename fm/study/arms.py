"""The registry of a study's arms. To add an arm, pass its `ArmSpec` to `register_arm`.

An arm is a way to solve a task from labeled examples, named after what its model was pretrained
on. Everything else (labels, trials, test items) is the same for all arms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from fm.adaptation.methods import METHODS
from fm.errors import UserError
from fm.study.arm_spec import PUBLISHED_DATA, ArmContext, ArmSpec
from fm.study.built_arm import BuiltArm
from fm.study.built_in_arms import BUILT_IN
from fm.study.task import Task

# The arm that label efficiency and compute cost are measured against.
REFERENCE_ARM = "scratch"
# Arms of fm 0.1, and what they are called now.
RENAMED_ARMS = {
    "self": "in_domain",
    "upstream": "out_of_domain",
    "imported": "published",
    "instructed": "instruction_tuned",
}

ARMS: dict[str, ArmSpec] = {}


def register_arm(spec: ArmSpec) -> None:
    """Adds an arm to the registry, or replaces the one with the same name."""
    ARMS[spec.name] = spec


def arm_spec(name: str) -> ArmSpec:
    """Returns the registered `ArmSpec` with this name.

    Raises:
      UserError: there is none of that name.
    """
    if name not in ARMS:
        raise UserError(f"--arms: {name!r} is not an arm; must be some of {', '.join(ARMS)}")
    return ARMS[name]


def arm_names(experiment: str) -> tuple[str, ...]:
    """Returns the names of the arms available in an experiment, in display order."""
    return tuple(spec.name for spec in ARMS.values() if experiment in spec.experiments)


def check_arms(names: Sequence[str], experiment: str, methods: Sequence[str]) -> None:
    """Raises UserError if an arm is not in the experiment or supports none of the methods.

    Raises:
      UserError: an arm is unknown to the experiment, or supports none of the adaptation methods.
    """
    for name in names:
        if RENAMED_ARMS.get(name) in arm_names(experiment) and name not in ARMS:
            raise UserError(f"--arms: {name!r} is now called {RENAMED_ARMS[name]!r}")
        if name not in arm_names(experiment):
            raise UserError(
                f"--arms: {name!r} is not an arm of {experiment}; must be some of "
                f"{', '.join(arm_names(experiment))}"
            )
    own = [name for name in names if not ARMS[name].follows_prompts]
    if own and all(METHODS[method].published_models_only for method in methods):
        raise UserError(
            f"--adapt={','.join(methods)}: {', '.join(own)} cannot follow prompts; add probe, full "
            "or lora, or leave them out of --arms"
        )


def arms_without_text(names: Sequence[str], modalities: Collection[str]) -> list[str]:
    """Returns the arms that need a task of text, if none of the tasks' modalities is."""
    return [] if "text" in modalities else [name for name in names if arm_spec(name).needs_text]


def check_arms_have_text(names: Sequence[str], modalities: Collection[str]) -> None:
    """Raises UserError if an arm needs a task of text and there is none."""
    if lacking := arms_without_text(names, modalities):
        raise UserError(
            f"--arms: {', '.join(lacking)} reads instructions, which are text, and no task is; add "
            f"a task of text, or leave {', '.join(lacking)} out"
        )


def rivals_of(name: str) -> tuple[str, ...]:
    """Returns the arms that an arm is compared with, by default all without pretraining."""
    rivals = ARMS[name].rivals
    if rivals is not None:
        return rivals
    return tuple(spec.name for spec in ARMS.values() if not spec.pretrained and spec.name != name)


def describe_arm(name: str) -> dict[str, Any]:
    """Returns what reports need to name, explain and draw an arm, JSON-able."""
    spec = ARMS[name]
    fields = {key: getattr(spec, key) for key in ("name", "title", "description")}
    corpus = (spec.corpus or PUBLISHED_DATA) if spec.pretrained else None
    about = {"rivals": rivals_of(name), "pretrained_on": corpus}
    return fields | about | dataclasses.asdict(spec.style)


def comparison_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns (arm, rival) pairs: each named arm with each of its rivals named."""
    return [
        (name, rival)
        for rival in ARMS
        for name in names
        if rival in names and rival in rivals_of(name)
    ]


def build_arms(task: Task, context: ArmContext, names: Sequence[str]) -> dict[str, BuiltArm]:
    """Builds the named arms of a task by name; pretrains or loads their models."""
    return {name: arm_spec(name).build(task, context) for name in names}


for _spec in BUILT_IN:
    register_arm(_spec)
