"""What each method of adaptation costs in memory and time, measured once a task, side by side."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from fm.adaptation.batching import take
from fm.adaptation.finetune import MemoryFootprint, memory_footprint
from fm.study.adaptation import HParams, NetworkArm
from fm.study.arms import PretrainedArm
from fm.study.config import METHODS
from fm.study.published_arm import PublishedArm
from fm.study.tasks import Task

Row = dict[str, Any]


def method_cost_rows(
    task: Task,
    pretrained_arms: dict[str, PretrainedArm],
    published: PublishedArm | None,
    methods: tuple[str, ...] = METHODS,
) -> list[Row]:
    """One row per method: of the first pretrained arm, and of the imported one.

    Each is fitted once more on the largest budget of the first seed, with the first setting of its
    grid, and scored on the test items; seconds are of fitting and predicting, compiling left out
    where it can be (a probe compiles nothing of its own). Of the network those methods that are
    `methods`, of the imported arm those it does. None of a task that asks for more than a class.
    """
    if task.task_type != "class":
        return []
    found = []
    pretrained = [name for name, each in pretrained_arms.items() if each.runs]
    if pretrained:
        name, network = pretrained[0], pretrained_arms[pretrained[0]].network
        for method in methods:
            if method != "prompt":
                found.append(_of_network(task, name, network, method))
    if published is not None:
        found += _of_imported(task, published)
    return found


def _of_network(task: Task, name: str, network: NetworkArm, method: str) -> Row:
    settings = [
        {
            "adapt": "probe",
            "scale": network.recipe.feature_scaling,
            "l2": network.recipe.l2_penalties[0],
        }
    ]
    settings += [{"adapt": "full", "learning_rate": network.recipe.learning_rates[0]}]
    settings += [{"adapt": "lora", "learning_rate": network.recipe.lora_learning_rates[0]}]
    setting = next(each for each in settings if each["adapt"] == method)
    drawn, labels = _given(task)
    start = network.initial_params(0)
    if method == "probe":
        # The model is read once; what is trained is one vector for each class.
        width = network.features_of(0, drawn[:1]).shape[1]
        held = MemoryFootprint(_head(width, len(task.dataset.classes)), _bytes(start), None)
    else:
        held = memory_footprint(
            start,
            take(network.examples, drawn),
            labels,
            network.model,
            network.tuning(setting),
            num_classes=network.num_classes,
            pad_to=network.capacity,
        )
        # Compiled by now, or by this: the second run is the one timed.
        network.tune(drawn, labels, 0, setting, steps=1)
    return _row(task, name, network, setting, held)


def _of_imported(task: Task, imported: PublishedArm) -> list[Row]:
    made, seen = [], set()
    for setting in imported.grid():
        method = setting["adapt"]
        if method in seen or method not in ("probe", "prompt"):
            continue
        seen.add(method)
        trained = 0
        if method == "probe":
            trained = _head(imported.features.shape[1], len(task.dataset.classes))
        held = MemoryFootprint(trained, _bytes(imported.model.params), None)
        made.append(_row(task, "published", imported, setting, held))
    return made


def _row(
    task: Task, name: str, arm: NetworkArm | PublishedArm, setting: HParams, held: MemoryFootprint
) -> Row:
    drawn, labels = _given(task)
    began = time.perf_counter()
    guessed = arm.fit_predict(drawn, labels, 0, setting)
    return {
        "task": task.name,
        "arm": name,
        "method": setting["adapt"],
        "labels": len(labels),
        "parameters_trained": held.trained_params,
        "bytes_state": held.state_bytes,
        "bytes_program": held.program_bytes,
        "seconds": time.perf_counter() - began,
        "accuracy": float(np.mean(guessed == np.asarray(task.test.labels))),
    }


def _given(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Rows and classes of the largest budget of the first seed."""
    drawn = task.train_idx[0][: max(task.config.label_budgets)]
    return task.pool_rows(drawn), np.asarray(task.dataset.train.labels)[drawn]


def _head(width: int, classes: int) -> int:
    """Parameters of a logistic regression, which has one vector for two classes."""
    return (width + 1) * (1 if classes == 2 else classes)


def _bytes(params: dict) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))
