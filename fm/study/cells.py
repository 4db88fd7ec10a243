"""The cells of a study: one arm, one budget, every seed; each kept as soon as it is done."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from fm.errors import UserError
from fm.evaluation.validation import choose, folds
from fm.files import read_json, replace
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
      trials: every setting with its mean validation accuracy over the searched seeds; none where
        there was one setting only.
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


# Given a task's name and cells (arm, labels), fills them elsewhere, by `fill`, or leaves them.
Spread = Callable[[str, list[tuple[str, int]]], None]


def run(
    task: Task,
    arms: dict[str, Arm],
    search_seeds: int,
    out: pathlib.Path,
    spread: Spread | None = None,
) -> list[Cell]:
    """Fills every cell of a task, taking from `out` those already there."""
    cells = []
    places = [(arm, labels) for arm in arms for labels in task.config.budgets]
    if spread is not None:
        spread(task.name, [each for each in places if not _path(task, *each, out).exists()])
    with tqdm(places, desc=f"{task.name}: adapting", unit="cell", disable=None) as bar:
        for arm, labels in bar:
            bar.set_postfix_str(f"{arm}, {labels} labels")
            path = _path(task, arm, labels, out)
            if path.exists():
                cells.append(_read(path))
            else:
                cells.append(fill(task, arm, arms[arm], labels, search_seeds, out))
    return cells


def fill(
    task: Task, name: str, arm: Arm, labels: int, search_seeds: int, out: pathlib.Path
) -> Cell:
    """Makes one cell and keeps it in `out`."""
    cell = _cell(task, name, arm, labels, search_seeds)
    _write(_path(task, name, labels, out), cell)
    return cell


def _path(task: Task, arm: str, labels: int, out: pathlib.Path) -> pathlib.Path:
    return out / f"{task.name}-{arm}-{labels}.json"


def _cell(task: Task, name: str, arm: Arm, labels: int, search_seeds: int) -> Cell:
    began = time.perf_counter()
    strata = task.strata
    drawn = [order[:labels] for order in task.drawn]
    at = task.rows_of
    settings = arm.grid()
    # One setting leaves nothing to choose.
    searched = together(
        lambda seed: arm.validate(at(drawn[seed]), strata[drawn[seed]], seed),
        range(search_seeds if len(settings) > 1 else 0),
    )
    trials = [
        {
            "config": tries[0]["config"],
            "validation": float(np.mean([trial["validation"] for trial in tries])),
        }
        for tries in zip(*searched, strict=True)
    ]
    setting = choose(trials)["config"] if trials else settings[0]
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
    content = dataclasses.asdict(cell) | {"predictions": cell.predictions.tolist()}
    replace(path, json.dumps(content))


def _read(path: pathlib.Path) -> Cell:
    try:
        content = read_json(path)
        return Cell(**content | {"predictions": np.array(content["predictions"])})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged; delete it, and it is made again") from error
