"""The arm with the published model that a task's config names, whatever the modality."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from fm.errors import UserError
from fm.study.adaptation import ModelArm
from fm.study.config import PublishedEncoderConfig
from fm.study.head_task_types import HeadTaskType
from fm.study.published_arm import build_published_arm
from fm.study.published_encoder_arm import (
    PublishedEncoderTaskModel,
    build_published_encoder_arm,
    shrunk_inputs_line,
)
from fm.study.task import Task


def load_published_arm(task: Task, methods: Sequence[str], *, trainable: bool = False) -> ModelArm:
    """Returns an arm with the published pretrained model that a task's config names.

    Args:
      task: the task.
      methods: adaptation methods asked for.
      trainable: whether methods may train the model itself.

    Raises:
      UserError: there is no such model, it cannot be read, or it supports none of the methods.
    """
    config = task.config.published
    if config is None:
        raise UserError(f"the published arm of {task.name} needs a published model: --model=NAME")
    task_type = task.task_type
    assert isinstance(task_type, HeadTaskType), f"{task_type.name} has no label per example"
    target = task_type.target(len(task.dataset.classes))
    options: dict[str, Any] = {
        "methods": methods,
        "test_from": len(task.labeled_pool),
        "num_classes": target.num_outputs,
        "target": target,
        "truths": task_type.task_truths(task),
        "pad_to": max(task.config.label_budgets),
    }
    recipe = task.config.recipe
    if isinstance(config, PublishedEncoderConfig):
        rate = task.dataset.info.get("rate") if task.modality == "audio" else None
        options |= {"rate": rate, "trainable": trainable or config.finetuned}
        arm = build_published_encoder_arm(config, recipe, task.arrays(), **options)
        model, info = arm.model, task.dataset.info
        assert isinstance(model, PublishedEncoderTaskModel)
        line = shrunk_inputs_line(model.published, info["shape"], info.get("shrunk"))
        if task.modality != "audio" and line is not None:
            print(f"{task.name}: {line}", file=sys.stderr, flush=True)
        return arm
    return build_published_arm(config, recipe, task.texts(), trainable=trainable, **options)
