"""Runs that do not depend on each other, several at a time."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import numpy as np
from tqdm import tqdm

from fm import files
from fm.evaluation.model_selection import make_folds, select_trial
from fm.study.adaptation import Arm
from fm.study.tasks import Task

Item = TypeVar("Item")
Result = TypeVar("Result")
_MOST = 4


def parallel_map(fn: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """What `fn` makes of each item, in their order.

    A small program leaves a CPU's cores idle between its parallel parts; another one fills them
    (1.2x to 1.9x on two cores), and neither's bits change. An accelerator takes one program at a
    time anyway.

    Args:
      fn: called from several threads at once; must not depend on the order of its calls.
      items: what it is called with.

    Raises:
      Whatever `fn` raises; items not begun by then are left.
    """
    workers = min(_MOST, os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
    pool = ThreadPoolExecutor(workers)
    try:
        return list(pool.map(fn, items))
    finally:
        pool.shutdown(cancel_futures=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One arm at one budget.

    Attributes:
      task: name of the task.
      arm: name of the arm.
      num_labels: the budget.
      hparams: the one chosen.
      trials: every setting with its mean validation accuracy over the searched seeds; none where
        there was one setting only.
      predictions: answers to the test items, [seeds, items, ...], see `fm.study.task_types`.
      train_flops: per seed: the final fit, and the search shared out over the seeds.
      seconds: per seed, likewise.
    """

    task: str
    arm: str
    num_labels: int
    hparams: dict[str, Any]
    trials: list[dict[str, Any]]
    predictions: np.ndarray
    train_flops: float
    seconds: float


# Given a task's name and cells (arm, labels), fills them elsewhere, by `fill`, or leaves them.
CellExecutor = Callable[[str, list[tuple[str, int]]], None]


def run_cells(
    task: Task,
    arms: dict[str, Arm],
    search_seeds: int,
    out_dir: pathlib.Path,
    executor: CellExecutor | None = None,
) -> list[Cell]:
    """Fills every cell of a task, taking from `out_dir` those already there."""
    cells = []
    places = [(arm, labels) for arm in arms for labels in task.config.label_budgets]
    if executor is not None:
        executor(task.name, [each for each in places if not _path(task, *each, out_dir).exists()])
    with tqdm(places, desc=f"{task.name}: adapting", unit="cell", disable=None) as bar:
        for arm, labels in bar:
            bar.set_postfix_str(f"{arm}, {labels} labels")
            path = _path(task, arm, labels, out_dir)
            if path.exists():
                cells.append(_read(path))
            else:
                cells.append(run_cell(task, arm, arms[arm], labels, search_seeds, out_dir))
    return cells


def run_cell(
    task: Task, name: str, arm: Arm, num_labels: int, search_seeds: int, out_dir: pathlib.Path
) -> Cell:
    """Makes one cell and keeps it in `out_dir`."""
    cell = _cell(task, name, arm, num_labels, search_seeds)
    _write(_path(task, name, num_labels, out_dir), cell)
    return cell


def _path(task: Task, arm: str, labels: int, out: pathlib.Path) -> pathlib.Path:
    return out / f"{task.name}-{arm}-{labels}.json"


def _cell(task: Task, name: str, arm: Arm, labels: int, search_seeds: int) -> Cell:
    began = time.perf_counter()
    strata = task.strata
    drawn = [order[:labels] for order in task.train_idx]
    at = task.pool_rows
    settings = arm.grid()
    # One setting leaves nothing to choose.
    searched = parallel_map(
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
    setting = select_trial(trials)["config"] if trials else settings[0]
    predictions = np.stack(
        parallel_map(
            lambda seed: arm.fit_predict(at(drawn[seed]), strata[drawn[seed]], seed, setting),
            range(len(drawn)),
        )
    )
    fits = sum(
        arm.fit_flops(len(fit), trial["config"])
        for trial in trials
        for fit, _ in make_folds(strata[drawn[0]], seed=0)
    )
    seeds = len(drawn)
    return Cell(
        task=task.name,
        arm=name,
        num_labels=labels,
        hparams=setting,
        trials=trials,
        predictions=predictions,
        train_flops=arm.fit_flops(labels, setting) + fits * search_seeds / seeds,
        seconds=(time.perf_counter() - began) / seeds,
    )


def _write(path: pathlib.Path, cell: Cell) -> None:
    content = dataclasses.asdict(cell) | {"predictions": cell.predictions.tolist()}
    files.write_checked_json(path, content)


def _read(path: pathlib.Path) -> Cell:
    content = files.read_checked_json(path)
    return Cell(**content | {"predictions": np.array(content["predictions"])})
