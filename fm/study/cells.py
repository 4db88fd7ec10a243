"""The cells of a study: one arm, one budget, every seed; each kept as soon as it is done."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from typing import Any

import numpy as np
from tqdm import tqdm

from fm.evaluation.validation import choose, folds
from fm.study.adaptation import Arm
from fm.study.tasks import Task
from fm.study.together import together


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One arm at one budget.

    Attributes:
      task: name of the task.
      arm: name of the arm.
      labels: the budget.
      setting: the one chosen.
      trials: every setting with its mean validation accuracy over the searched seeds.
      predictions: answers to the test items, [seeds, items, ...], see `fm.study.kinds`.
      flops: per seed: the final fit, and the search shared out over the seeds.
      seconds: per seed, likewise.
    """

    task: str
    arm: str
    labels: int
    setting: dict[str, Any]
    trials: list[dict[str, Any]]
    predictions: np.ndarray
    flops: float
    seconds: float


def run(task: Task, arms: dict[str, Arm], search_seeds: int, out: pathlib.Path) -> list[Cell]:
    """Fills every cell of a task, taking from `out` those already there."""
    cells = []
    places = [(arm, labels) for arm in arms for labels in task.config.budgets]
    with tqdm(places, desc=f"{task.name}: adapting", unit="cell", disable=None) as bar:
        for arm, labels in bar:
            bar.set_postfix_str(f"{arm}, {labels} labels")
            path = out / f"{task.name}-{arm}-{labels}.json"
            if path.exists():
                cells.append(_read(path))
            else:
                cells.append(_cell(task, arm, arms[arm], labels, search_seeds))
                _write(path, cells[-1])
    return cells


def _cell(task: Task, name: str, arm: Arm, labels: int, search_seeds: int) -> Cell:
    began = time.perf_counter()
    strata = task.strata
    drawn = [order[:labels] for order in task.drawn]
    at = task.rows_of
    searched = together(
        lambda seed: arm.validate(at(drawn[seed]), strata[drawn[seed]], seed), range(search_seeds)
    )
    trials = [
        {
            "config": tries[0]["config"],
            "validation": float(np.mean([trial["validation"] for trial in tries])),
        }
        for tries in zip(*searched, strict=True)
    ]
    setting = choose(trials)["config"]
    predictions = np.stack(
        together(
            lambda seed: arm.fit_predict(at(drawn[seed]), strata[drawn[seed]], seed, setting),
            range(len(drawn)),
        )
    )
    fits = sum(
        arm.fit_flops(len(fit), trial["config"])
        for trial in trials
        for fit, _ in folds(strata[drawn[0]], seed=0)
    )
    seeds = len(drawn)
    return Cell(
        task=task.name,
        arm=name,
        labels=labels,
        setting=setting,
        trials=trials,
        predictions=predictions,
        flops=arm.fit_flops(labels, setting) + fits * search_seeds / seeds,
        seconds=(time.perf_counter() - began) / seeds,
    )


def _write(path: pathlib.Path, cell: Cell) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = dataclasses.asdict(cell) | {"predictions": cell.predictions.tolist()}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content))
    partial.replace(path)


def _read(path: pathlib.Path) -> Cell:
    content = json.loads(path.read_text())
    return Cell(**content | {"predictions": np.array(content["predictions"])})
