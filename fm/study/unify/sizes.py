"""Parameters a user keeps for each task: of a network that reads its format, and of its head."""

from __future__ import annotations

from typing import Any

import jax

from fm.model.config import CONTINUOUS, ModelConfig
from fm.model.transformer import init
from fm.study.adaptation import Arm, Network
from fm.study.entities import TagNetwork
from fm.study.tasks import Task
from fm.study.unify.follower import Followed
from fm.transfer.finetune import init_head

Row = dict[str, Any]
_STREAM = {"text": "token"}
_PARTS = ("embedding", "head", "bias")


def row(task: Task, arm: Arm) -> Row:
    """What is kept of a network of the task's own, and of its head by the way it was adapted.

    What predicts pieces of other formats, or any where the task is not to write, is not needed.
    """
    if isinstance(arm, Followed):
        model = arm.follower.model
        return {
            "task": task.name,
            "network": parameters(model, (task.modality,), writes=True),
            "heads": {"instruct": 0},
        }
    network = arm.network if isinstance(arm, TagNetwork) else arm
    assert isinstance(network, Network), "classical arms keep no network"
    model, reading = network.model, network.recipe.finetune.reading
    head = init_head(network.rows, model, network.classes, reading)
    width = head["kernel"].shape[0] * len(reading.read_depths(model.depth))
    # A logistic regression has one vector for two classes.
    vectors = 1 if network.classes == 2 else network.classes
    return {
        "task": task.name,
        "network": parameters(model, (task.modality,), writes=False),
        "heads": {
            "full": sum(leaf.size for leaf in jax.tree.leaves(head)),
            "probe": (width + 1) * vectors,
        },
    }


def whole(model: ModelConfig) -> Row:
    """What is kept of one network that reads every format and writes."""
    formats = ("text", *(name for name, _ in model.continuous))
    return {"task": None, "network": parameters(model, formats, writes=True), "heads": {}}


def parameters(model: ModelConfig, formats: tuple[str, ...], *, writes: bool) -> int:
    """Of a network without the streams of other formats and what predicts their pieces.

    Args:
      model: architecture.
      formats: that it reads.
      writes: whether it answers in text.
    """
    tree = jax.eval_shape(lambda: init(jax.random.key(0), model))
    embeddings = {f"{_STREAM.get(name, name)}_embedding" for name in formats}
    every = {f"{name}_{part}" for name in ("token", *CONTINUOUS) for part in _PARTS}
    idle = every - embeddings - ({"token_head"} if writes else set())
    streams = {name: leaf for name, leaf in tree["streams"].items() if name not in idle}
    return sum(leaf.size for leaf in jax.tree.leaves({**tree, "streams": streams}))
