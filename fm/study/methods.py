"""What each method of adaptation costs in memory and time, measured once a task, side by side."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from fm.study.adaptation import Network, Setting
from fm.study.arms import Fed
from fm.study.config import METHODS
from fm.study.imported import Imported
from fm.study.tasks import Task
from fm.transfer.examples import take
from fm.transfer.finetune import Footprint, footprint

Row = dict[str, Any]


def rows(
    task: Task,
    fed: dict[str, Fed],
    imported: Imported | None,
    wanted: tuple[str, ...] = METHODS,
) -> list[Row]:
    """One row per method: of the first pretrained arm, and of the imported one.

    Each is fitted once more on the largest budget of the first seed, with the first setting of its
    grid, and scored on the test items; seconds are of fitting and predicting, compiling left out
    where it can be (a probe compiles nothing of its own). Of the network those methods that are
    `wanted`, of the imported arm those it does. None of a task that asks for more than a class.
    """
    if task.kind != "class":
        return []
    found = []
    pretrained = [name for name, each in fed.items() if each.runs]
    if pretrained:
        name, network = pretrained[0], fed[pretrained[0]].network
        for method in wanted:
            if method != "prompt":
                found.append(_of_network(task, name, network, method))
    if imported is not None:
        found += _of_imported(task, imported)
    return found


def _of_network(task: Task, name: str, network: Network, method: str) -> Row:
    settings = [
        {"adapt": "probe", "scale": network.recipe.scale, "l2": network.recipe.penalties[0]}
    ]
    settings += [{"adapt": "full", "learning_rate": network.recipe.learning_rates[0]}]
    settings += [{"adapt": "lora", "learning_rate": network.recipe.adapter_rates[0]}]
    setting = next(each for each in settings if each["adapt"] == method)
    drawn, labels = _given(task)
    start = network.start(0)
    if method == "probe":
        # The model is read once; what is trained is one vector for each class.
        width = network.features_of(0, drawn[:1]).shape[1]
        held = Footprint(_head(width, len(task.dataset.classes)), _bytes(start), None)
    else:
        held = footprint(
            start,
            take(network.rows, drawn),
            labels,
            network.model,
            network.tuning(setting),
            classes=network.classes,
            capacity=network.capacity,
        )
        # Compiled by now, or by this: the second run is the one timed.
        network.tune(drawn, labels, 0, setting, steps=1)
    return _row(task, name, network, setting, held)


def _of_imported(task: Task, imported: Imported) -> list[Row]:
    made, seen = [], set()
    for setting in imported.grid():
        method = setting["adapt"]
        if method in seen or method not in ("probe", "prompt"):
            continue
        seen.add(method)
        trained = 0
        if method == "probe":
            trained = _head(imported.features.shape[1], len(task.dataset.classes))
        held = Footprint(trained, _bytes(imported.model.params), None)
        made.append(_row(task, "imported", imported, setting, held))
    return made


def _row(task: Task, name: str, arm: Network | Imported, setting: Setting, held: Footprint) -> Row:
    drawn, labels = _given(task)
    began = time.perf_counter()
    guessed = arm.fit_predict(drawn, labels, 0, setting)
    return {
        "task": task.name,
        "arm": name,
        "method": setting["adapt"],
        "labels": len(labels),
        "parameters_trained": held.trained,
        "bytes_state": held.state,
        "bytes_program": held.program,
        "seconds": time.perf_counter() - began,
        "accuracy": float(np.mean(guessed == np.asarray(task.test.labels))),
    }


def _given(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Rows and classes of the largest budget of the first seed."""
    drawn = task.drawn[0][: max(task.config.budgets)]
    return task.rows_of(drawn), np.asarray(task.dataset.train.labels)[drawn]


def _head(width: int, classes: int) -> int:
    """Parameters of a logistic regression, which has one vector for two classes."""
    return (width + 1) * (1 if classes == 2 else classes)


def _bytes(params: dict) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))
