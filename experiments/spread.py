"""The cells of a study on a Ray cluster: --cluster=ray.

A cell is one arm at one budget, and depends on no other. What is pretrained is pretrained here
first; each worker then reads it, fills cells and leaves them in OUT/cells, as this process would.
So the workers must see the same files (OUT, the data, the cache of FM_CACHE) and have this package
and its environment. A worker that is lost is replaced, its cell begun anew.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import pathlib
from collections.abc import Iterator

from absl import flags

from experiments import command
from fm.errors import UserError
from fm.study import ray_executor
from fm.study.adaptation import Arm
from fm.study.cells import CellExecutor, run_cell
from fm.study.multitask import MultitaskStudy
from fm.study.runner import CompareStudy
from fm.study.tasks import Task

_STUDIES = {"compare": CompareStudy, "multitask": MultitaskStudy}


def define(values: flags.FlagValues) -> None:
    """--cluster."""
    flags.DEFINE_enum(
        "cluster",
        "none",
        ["none", "ray"],
        "where cells are filled: by this process, or by Ray: that of RAY_ADDRESS, or one started "
        "on this machine",
        flag_values=values,
    )


@contextlib.contextmanager
def over(values: flags.FlagValues, experiment: str) -> Iterator[CellExecutor | None]:
    """What fills cells elsewhere, if the flags say so."""
    if values["cluster"].value == "none":
        yield None
        return
    given = [values[name] for name in values if values[name].present and len(name) > 1]
    arguments = [flag.serialize() for flag in given if flag.name != "cluster"]
    with ray_executor.ray_cluster() as ray:

        def spread(task: str, cells: list[tuple[str, int]]) -> None:
            shared = (experiment, arguments, str(pathlib.Path.cwd()), task)
            ray_executor.run_calls(ray, fill_one, [(*shared, *cell) for cell in cells], task)

        yield spread


def fill_one(
    experiment: str, arguments: list[str], folder: str, task: str, arm: str, labels: int
) -> str | None:
    """Fills one cell, in a worker.

    Args:
      experiment: "compare" or "multitask".
      arguments: its command line.
      folder: where it was started.
      task: name of the cell's task.
      arm: of the cell.
      labels: of the cell.

    Returns:
      The message of a UserError, if there is one.
    """
    os.chdir(folder)
    command.settle()
    try:
        made, arms, search_seeds, out = _opened(experiment, tuple(arguments), task)
        run_cell(made, arm, arms[arm], labels, search_seeds, out / "cells")
    except UserError as error:
        return str(error)
    return None


@functools.lru_cache(maxsize=1)
def _opened(
    experiment: str, arguments: tuple[str, ...], task: str
) -> tuple[Task, dict[str, Arm], int, pathlib.Path]:
    """The task, its arms, how many seeds are searched, and the study's folder: kept by a worker."""
    module = importlib.import_module(f"experiments.{experiment}")
    values = flags.FlagValues()
    module.define(values)
    values([experiment, *arguments])
    config, out = module.configure(values), command.out(values)
    return *_STUDIES[experiment](config).load_task_and_arms(out, task), config.search_seeds, out
