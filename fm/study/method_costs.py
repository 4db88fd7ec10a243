"""Memory, time and accuracy of each adaptation method, measured once per task."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fm.adaptation.methods import METHODS, AdaptationMethod, HParams
from fm.study.adaptation import ModelArm
from fm.study.built_arm import BuiltArm
from fm.study.task import Task

Row = dict[str, Any]


def method_cost_rows(task: Task, arms: Mapping[str, BuiltArm], methods: Iterable[str]) -> list[Row]:
    """Fits each adaptation method on each arm; returns rows of its memory, seconds and accuracy.

    Each is fitted once more to the largest label budget of the first seed, with the first
    hyper-parameters of its grid, and scored on the test items. Seconds are of fitting and
    predicting, without compilation where it can be separated (a probe compiles nothing itself).
    No rows for tasks other than classification.

    Args:
      task: the task.
      arms: by name.
      methods: measured of the arm pretrained here; a published one is measured with its own.
    """
    if not task.task_type.predicts_classes:
        return []
    model_arms = [(name, built, built.model_arm) for name, built in arms.items() if built.model_arm]
    rows = []
    for name, _, arm in [each for each in model_arms if each[1].runs][:1]:
        rows += _rows(task, name, arm, [METHODS[method] for method in methods])
    for name, built, arm in model_arms:
        if built.description:
            rows += _rows(task, name, arm, arm.supported_methods())
    return rows


def _rows(task: Task, name: str, arm: ModelArm, methods: Iterable[AdaptationMethod]) -> list[Row]:
    model = arm.model
    grids = [
        (method, method.search_space(model.recipe, num_fewshot=model.num_fewshot))
        for method in methods
        if method.supports(model)
    ]
    return [_row(task, name, arm, method, grid[0]) for method, grid in grids]


def _row(task: Task, name: str, arm: ModelArm, method: AdaptationMethod, hparams: HParams) -> Row:
    train_idx = task.train_idx[0][: max(task.config.label_budgets)]
    labels = np.asarray(task.dataset.train.labels)[train_idx]
    rows = task.pool_rows(train_idx)
    footprint = method.footprint(arm.model, rows, labels, hparams)
    if method.updates_model:
        # Compiles: the second run is timed.
        method.fit(arm.model, rows, labels, 0, hparams, num_steps=1)
    start = time.perf_counter()
    predictions = arm.fit_predict(rows, labels, 0, hparams).values
    return {
        "task": task.name,
        "arm": name,
        "method": method.name,
        "num_labels": len(labels),
        "parameters_trained": footprint.trained_params,
        "bytes_state": footprint.state_bytes,
        "bytes_program": footprint.program_bytes,
        "seconds": time.perf_counter() - start,
        "accuracy": float(np.mean(predictions == np.asarray(task.test.labels))),
    }
