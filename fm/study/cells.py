"""The cells of a study: one arm at one label budget, all seeds; saved one by one."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from fm import files
from fm.evaluation.model_selection import select_trial
from fm.parallel.mesh import default_device
from fm.progress_lines import phase
from fm.study.adaptation import Arm, Predictions, Trial
from fm.study.task import Task

Item = TypeVar("Item")
Result = TypeVar("Result")
# Computes cells (arm, number of labels) of a task elsewhere, with `run_cell`, or leaves them.
CellExecutor = Callable[[str, list[tuple[str, int]]], None]
_MAX_WORKERS = 4
# An arm whose last doubling of updates gained more validation score than this is not converged.
CONVERGED_GAIN = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """Results of one arm at one label budget; every list has one entry per seed.

    Attributes:
      task: name of the task.
      arm: name of the arm.
      num_labels: the label budget.
      hparams: the hyper-parameters chosen on the seed's own labels.
      trials: the settings scored, see `fm.study.adaptation.Trial`; empty where there is no choice.
      predictions: of the test items, [seeds, items, ...], see `fm.study.task.TaskType`.
      confidences: probabilities of the predicted and of the true class, [seeds, items, 2], to six
        decimals; None where the arm has none.
      train_flops: of the search and the final fit.
      cpu_seconds: process CPU time of a seed's search, fit and predictions, the mean over all
        seeds but the first, which pays what is paid once.
      once_cpu_seconds: what the first seed took beyond that: compilation. None if there is only
        one seed, whose `cpu_seconds` then hold it.
      feature_cpu_seconds: process CPU time of extracting the frozen features that all budgets
        share, of one starting point; 0 where there are none.
    """

    task: str
    arm: str
    num_labels: int
    hparams: list[dict[str, Any]]
    trials: list[list[Trial]]
    predictions: np.ndarray
    confidences: np.ndarray | None
    train_flops: list[float]
    cpu_seconds: float
    once_cpu_seconds: float | None
    feature_cpu_seconds: float

    @property
    def mean_train_flops(self) -> float:
        """Returns the mean over seeds of the FLOPs of search and fit."""
        return float(np.mean(self.train_flops))

    @property
    def still_improving(self) -> bool:
        """Returns whether, on average, the last doubling of updates still gained over a point."""
        gains = [
            trial["last_gain"]
            for hparams, trials in zip(self.hparams, self.trials, strict=True)
            for trial in trials
            if trial["config"] == hparams and trial.get("last_gain") is not None
        ]
        return bool(gains) and float(np.mean(gains)) > CONVERGED_GAIN


def run_cells(
    task: Task,
    arms: Mapping[str, Arm],
    out_dir: pathlib.Path,
    executor: CellExecutor | None = None,
) -> list[Cell]:
    """Returns a task's results per arm and label budget; computes those not in `out_dir`."""
    places = [(arm, num_labels) for arm in arms for num_labels in task.config.label_budgets]
    if executor is not None:
        executor(task.name, [each for each in places if not _path(task, *each, out_dir).exists()])
    cells, compiled = [], set()
    with phase(f"{task.name}: adapting", len(places), "cells", quiet=True) as shown:
        for arm, num_labels in places:
            shown.note(f"{arm}, {num_labels} labels")
            path = _path(task, arm, num_labels, out_dir)
            exists = path.exists()
            if exists:
                cells.append(_read(path))
            else:
                is_first = arm not in compiled
                compiled.add(arm)
                cells.append(run_cell(task, arm, arms[arm], num_labels, out_dir, is_first=is_first))
            shown.update(skipped=exists)
    return cells


def missing_cells(task: Task, arms: Iterable[str], out_dir: pathlib.Path) -> int:
    """Returns how many cells of a task are not in `out_dir`."""
    places = itertools.product(arms, task.config.label_budgets)
    return sum(not _path(task, *place, out_dir).exists() for place in places)


@dataclasses.dataclass(frozen=True, eq=False)
class _SeedRun:
    """One seed of a cell: what was tried, what was chosen, and its predictions."""

    trials: list[Trial]
    hparams: dict[str, Any]
    predictions: np.ndarray
    confidences: np.ndarray | None
    train_flops: float


def run_cell(
    task: Task,
    name: str,
    arm: Arm,
    num_labels: int,
    out_dir: pathlib.Path,
    *,
    is_first: bool = True,
) -> Cell:
    """Tunes and evaluates one arm at one label budget, seed by seed; saves and returns the cell.

    Each seed chooses its hyper-parameters on its own labels alone. In the first cell of an arm the
    first seed runs by itself, so that what is computed once (compilation) can be told from what
    each seed costs.

    Args:
      task: the task.
      name: of the arm.
      arm: the arm.
      num_labels: the label budget.
      out_dir: where the cell is saved.
      is_first: whether no cell of the arm has been computed in this process.
    """
    train_idx = [order[:num_labels] for order in task.train_idx]
    feature_cpu_seconds = arm.prepare(len(train_idx))
    only_setting = getattr(arm, "only_setting", None)

    def run_seed(seed: int) -> _SeedRun:
        rows, labels = task.pool_rows(train_idx[seed]), task.strata[train_idx[seed]]
        only = None if only_setting is None else only_setting(num_labels)
        if only is None:
            trials = arm.search(rows, labels, seed)
        else:
            trials = [{"config": only, "validation": None}]
        hparams = select_trial(trials)["config"]
        found = arm.fit_predict(rows, labels, seed, hparams)
        train_flops = arm.fit_flops(num_labels, hparams) + _search_flops(trials)
        return _SeedRun(trials, hparams, found.values, _confidences(found, task), train_flops)

    alone, runs, once_cpu_seconds = int(is_first), [], 0.0
    begun = time.process_time()
    runs += parallel_map(run_seed, range(alone))
    first, begun = time.process_time() - begun, time.process_time()
    runs += parallel_map(run_seed, range(alone, len(train_idx)))
    others = len(runs) - alone
    cpu_seconds = (time.process_time() - begun) / others if others else first
    if is_first:
        once_cpu_seconds = max(0.0, first - cpu_seconds) if others else None
    if (share_cpu_seconds := getattr(arm, "share_cpu_seconds", None)) is not None:
        cpu_seconds = share_cpu_seconds(num_labels, cpu_seconds)
    cell = Cell(
        task=task.name,
        arm=name,
        num_labels=num_labels,
        hparams=[run.hparams for run in runs],
        # A single setting that was not scored is no trial.
        trials=[[t for t in run.trials if t["validation"] is not None] for run in runs],
        predictions=np.stack([run.predictions for run in runs]),
        confidences=_stack([run.confidences for run in runs]),
        train_flops=[run.train_flops for run in runs],
        cpu_seconds=cpu_seconds,
        once_cpu_seconds=once_cpu_seconds,
        feature_cpu_seconds=feature_cpu_seconds,
    )
    _write(_path(task, name, num_labels, out_dir), cell)
    return cell


def _search_flops(trials: Sequence[Trial]) -> float:
    """Returns the FLOPs of a search."""
    return float(sum(trial.get("flops", 0.0) for trial in trials))


def _confidences(found: Predictions, task: Task) -> np.ndarray | None:
    """Returns the probabilities of the predicted and of the true class, float [N, 2]."""
    if found.probabilities is None or not task.task_type.predicts_classes:
        return None
    classes_N2 = np.stack([found.values, np.asarray(task.test.labels)], axis=1)
    return np.take_along_axis(found.probabilities, classes_N2, axis=1).astype(float).round(6)


def _stack(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    known = [each for each in arrays if each is not None]
    return np.stack(known) if len(known) == len(arrays) else None


def parallel_map(fn: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Returns `fn(item)` of every item, in order; on a CPU several run at a time, in threads.

    A small program leaves a CPU's cores idle between its parallel parts; another one fills them
    (1.2x to 1.9x on two cores), and neither's bits change. An accelerator runs one program at a
    time anyway. BLAS has one thread meanwhile, for the whole process: several waste up to ten times
    the time on matrices of a few hundred rows.

    Args:
      fn: called from several threads; must not depend on the order of its calls.
      items: arguments.

    Raises:
      Whatever `fn` raises; items not begun by then are skipped.
    """
    workers = min(_MAX_WORKERS, os.cpu_count() or 1) if default_device().platform == "cpu" else 1
    with threadpool_limits(1, user_api="blas"):
        pool = ThreadPoolExecutor(workers)
        try:
            return list(pool.map(fn, items))
        finally:
            pool.shutdown(cancel_futures=True)


def _path(task: Task, arm: str, num_labels: int, out_dir: pathlib.Path) -> pathlib.Path:
    return out_dir / f"{task.name}-{arm}-{num_labels}.json"


def _write(path: pathlib.Path, cell: Cell) -> None:
    confidences = None if cell.confidences is None else cell.confidences.tolist()
    arrays = {"predictions": cell.predictions.tolist(), "confidences": confidences}
    files.write_checked_json(path, dataclasses.asdict(cell) | arrays)


def _read(path: pathlib.Path) -> Cell:
    content = files.read_checked_json(path)
    confidences = content["confidences"]
    arrays = {
        "predictions": np.array(content["predictions"]),
        "confidences": None if confidences is None else np.array(confidences),
    }
    return Cell(**content | arrays)
