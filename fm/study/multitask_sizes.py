"""Parameters a user keeps for each task: of a network that reads its format, and of its head."""

from __future__ import annotations

from typing import Any

import jax

from fm.model.config import CONTINUOUS_MODALITIES, ModelConfig
from fm.model.transformer import init
from fm.study.adaptation import Arm, ModelArm
from fm.study.multitask_instructions import InstructionTunedArm
from fm.study.tasks import Task

Row = dict[str, Any]
_STREAM = {"text": "token"}
_PARTS = ("embedding", "head", "bias")


def size_row(task: Task, arm: Arm) -> Row:
    """What is kept of a network of the task's own, and of its head by the way it was adapted.

    What predicts pieces of other formats, or any where the task is not to write, is not needed.
    """
    if isinstance(arm, InstructionTunedArm):
        model = arm.models.model
        return {
            "task": task.name,
            "network": count_parameters(model, (task.modality,), writes=True),
            "heads": {"instruct": 0},
        }
    assert isinstance(arm, ModelArm), "classical arms keep no network"
    return {
        "task": task.name,
        "network": count_parameters(arm.model.model_config, (task.modality,), writes=False),
        "heads": {
            method.name: method.num_task_params(arm.model) for method in arm.supported_methods()
        },
    }


def shared_model_size_row(model: ModelConfig) -> Row:
    """What is kept of one network that reads every format and writes."""
    formats = ("text", *(name for name, _ in model.patch_dims))
    return {"task": None, "network": count_parameters(model, formats, writes=True), "heads": {}}


def count_parameters(model: ModelConfig, formats: tuple[str, ...], *, writes: bool) -> int:
    """Of a network without the streams of other formats and what predicts their pieces.

    Args:
      model: architecture.
      formats: that it reads.
      writes: whether it answers in text.
    """
    tree = jax.eval_shape(lambda: init(jax.random.key(0), model))
    embeddings = {f"{_STREAM.get(name, name)}_embedding" for name in formats}
    every = {f"{name}_{part}" for name in ("token", *CONTINUOUS_MODALITIES) for part in _PARTS}
    idle = every - embeddings - ({"token_head"} if writes else set())
    streams = {name: leaf for name, leaf in tree["streams"].items() if name not in idle}
    return sum(leaf.size for leaf in jax.tree.leaves({**tree, "streams": streams}))
