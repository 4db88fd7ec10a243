"""The cells of a study: one arm at one label budget, all seeds; saved one by one."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from fm import files
from fm.evaluation.model_selection import make_folds, select_trial
from fm.parallel.mesh import default_device
from fm.study.adaptation import Arm
from fm.study.tasks import Task

Item = TypeVar("Item")
Result = TypeVar("Result")
# Computes cells (arm, number of labels) of a task elsewhere, with `run_cell`, or leaves them.
CellExecutor = Callable[[str, list[tuple[str, int]]], None]
_MAX_WORKERS = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """Results, over all seeds, of one arm at one label budget: hyper-parameters and predictions.

    Attributes:
      task: name of the task.
      arm: name of the arm.
      num_labels: the label budget.
      hparams: the selected hyper-parameters.
      trials: {"config": hyper-parameters, "validation": mean metric over the search seeds}; empty
        if there was nothing to select.
      predictions: of the test items, [seeds, items, ...], see `fm.study.task_types.TaskType`.
      train_flops: per seed: the final fit, plus the search shared out over the seeds.
      seconds: of one fit and its predictions of the test items, alone on the machine. What others
        share is not in it: compilation, and features of a frozen model; nor is the search.
    """

    task: str
    arm: str
    num_labels: int
    hparams: dict[str, Any]
    trials: list[dict[str, Any]]
    predictions: np.ndarray
    train_flops: float
    seconds: float


def run_cells(
    task: Task,
    arms: Mapping[str, Arm],
    search_seeds: int,
    out_dir: pathlib.Path,
    executor: CellExecutor | None = None,
) -> list[Cell]:
    """Returns a task's results per arm and label budget; computes those not in `out_dir`."""
    places = [(arm, num_labels) for arm in arms for num_labels in task.config.label_budgets]
    if executor is not None:
        executor(task.name, [each for each in places if not _path(task, *each, out_dir).exists()])
    cells = []
    with tqdm(places, desc=f"{task.name}: adapting", unit="cell", disable=None) as bar:
        for arm, num_labels in bar:
            bar.set_postfix_str(f"{arm}, {num_labels} labels")
            path = _path(task, arm, num_labels, out_dir)
            if path.exists():
                cells.append(_read(path))
            else:
                cells.append(run_cell(task, arm, arms[arm], num_labels, search_seeds, out_dir))
    return cells


def run_cell(
    task: Task, name: str, arm: Arm, num_labels: int, search_seeds: int, out_dir: pathlib.Path
) -> Cell:
    """Tunes and evaluates one arm at one label budget; saves the cell in `out_dir`, returns it."""
    strata = task.strata
    train_idx = [order[:num_labels] for order in task.train_idx]
    seeds = len(train_idx)
    grid, blas_threads = arm.grid(), getattr(arm, "blas_threads", None)
    by_seed = parallel_map(
        lambda seed: arm.validate(task.pool_rows(train_idx[seed]), strata[train_idx[seed]], seed),
        range(search_seeds if len(grid) > 1 else 0),
        blas_threads=blas_threads,
    )
    trials = [
        {
            "config": same_hparams[0]["config"],
            "validation": float(np.mean([trial["validation"] for trial in same_hparams])),
        }
        for same_hparams in zip(*by_seed, strict=True)
    ]
    hparams = select_trial(trials)["config"] if trials else grid[0]
    predictions = parallel_map(
        lambda seed: arm.fit_predict(
            task.pool_rows(train_idx[seed]), strata[train_idx[seed]], seed, hparams
        ),
        range(seeds),
        blas_threads=blas_threads,
    )
    search_flops = sum(
        arm.fit_flops(len(fit_idx), trial["config"])
        for trial in trials
        for fit_idx, _ in make_folds(strata[train_idx[0]], seed=0)
    )
    cell = Cell(
        task=task.name,
        arm=name,
        num_labels=num_labels,
        hparams=hparams,
        trials=trials,
        predictions=np.stack(predictions),
        train_flops=arm.fit_flops(num_labels, hparams) + search_flops * search_seeds / seeds,
        seconds=_fit_seconds(task, arm, train_idx[0], hparams),
    )
    _write(_path(task, name, num_labels, out_dir), cell)
    return cell


def _fit_seconds(task: Task, arm: Arm, train_idx: np.ndarray, hparams: dict[str, Any]) -> float:
    """Returns the seconds of the first seed's fit, done once more: whoever comes first compiles."""
    recorded = getattr(arm, "fit_seconds", None)
    if recorded is not None:
        return recorded(len(train_idx), hparams)
    start = time.perf_counter()
    arm.fit_predict(task.pool_rows(train_idx), task.strata[train_idx], 0, hparams)
    return time.perf_counter() - start


def parallel_map(
    fn: Callable[[Item], Result], items: Sequence[Item], *, blas_threads: int | None = None
) -> list[Result]:
    """Returns `fn(item)` of every item, in order; on a CPU several run at a time, in threads.

    A small program leaves a CPU's cores idle between its parallel parts; another one fills them
    (1.2x to 1.9x on two cores), and neither's bits change. An accelerator runs one program at a
    time anyway.

    Args:
      fn: called from several threads; must not depend on the order of its calls.
      items: arguments.
      blas_threads: of BLAS while the items run. The limit is the whole process's, so if `fn` sets
        one it has to be held from here: of calls that overlap, the last to end would otherwise
        restore the limit of another.

    Raises:
      Whatever `fn` raises; items not begun by then are skipped.
    """
    workers = min(_MAX_WORKERS, os.cpu_count() or 1) if default_device().platform == "cpu" else 1
    with threadpool_limits(blas_threads, user_api="blas"):
        pool = ThreadPoolExecutor(workers)
        try:
            return list(pool.map(fn, items))
        finally:
            pool.shutdown(cancel_futures=True)


def _path(task: Task, arm: str, num_labels: int, out_dir: pathlib.Path) -> pathlib.Path:
    return out_dir / f"{task.name}-{arm}-{num_labels}.json"


def _write(path: pathlib.Path, cell: Cell) -> None:
    content = dataclasses.asdict(cell) | {"predictions": cell.predictions.tolist()}
    files.write_checked_json(path, content)


def _read(path: pathlib.Path) -> Cell:
    content = files.read_checked_json(path)
    return Cell(**content | {"predictions": np.array(content["predictions"])})
