"""--cluster=ray: computes the cells of a study on a Ray cluster.

A cell is one arm at one label budget; cells do not depend on each other. Pretraining runs in this
process first. Each worker then reads the checkpoints, computes cells and writes them to OUT/cells,
as this process would. Workers must therefore see the same files (OUT, the data, the cache folder
FM_CACHE) and have the same environment installed. The cells of a lost worker are computed again.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import pathlib
from collections.abc import Iterator, Sequence

from absl import flags

from experiments import cli
from fm.errors import UserError
from fm.study import ray_executor
from fm.study.adaptation import Arm
from fm.study.cells import CellExecutor, run_cell
from fm.study.loading import datasets_read_once
from fm.study.multitask import MultitaskStudy
from fm.study.runner import CompareStudy
from fm.study.task import Task

_STUDIES = {"compare": CompareStudy, "multitask": MultitaskStudy}


def define(values: flags.FlagValues) -> None:
    """Defines --cluster."""
    flags.DEFINE_enum(
        "cluster",
        "none",
        ["none", "ray"],
        "where cells are computed: in this process, or on the Ray cluster of RAY_ADDRESS, which is "
        "started on this machine if there is none",
        flag_values=values,
    )


@contextlib.contextmanager
def cell_executor(values: flags.FlagValues, experiment: str) -> Iterator[CellExecutor | None]:
    """Yields a function that computes a task's cells on the cluster, or None without --cluster."""
    if values["cluster"].value == "none":
        yield None
        return
    given = [values[name] for name in values if values[name].present and len(name) > 1]
    # A flag given several times is a line for each.
    arguments = [
        line for flag in given if flag.name != "cluster" for line in flag.serialize().splitlines()
    ]
    with ray_executor.ray_cluster() as ray:

        def execute(task: str, cells: list[tuple[str, int]]) -> None:
            shared = (experiment, arguments, str(pathlib.Path.cwd()), task)
            ray_executor.run_calls(ray, compute_cell, [(*shared, *cell) for cell in cells], task)

        yield execute


def compute_cell(
    experiment: str, arguments: list[str], folder: str, task: str, arm: str, num_labels: int
) -> str | None:
    """Computes one cell in a worker and writes it to OUT/cells.

    Args:
      experiment: "compare" or "multitask".
      arguments: command line of the study.
      folder: working directory of the study.
      task: name of the cell's task.
      arm: name of the cell's arm.
      num_labels: label budget of the cell.

    Returns:
      The message of a UserError, or None.
    """
    os.chdir(folder)
    cli.configure_process()
    try:
        with cli.device_context(_parse(experiment, arguments)):
            loaded, arms, out_dir = _load_task(experiment, tuple(arguments), task)
            run_cell(loaded, arm, arms[arm], num_labels, out_dir / "cells")
    except UserError as error:
        return str(error)
    return None


@functools.lru_cache(maxsize=1)
def _load_task(
    experiment: str, arguments: tuple[str, ...], task: str
) -> tuple[Task, dict[str, Arm], pathlib.Path]:
    """Returns the task, its arms and OUT; a worker keeps the last ones."""
    module = importlib.import_module(f"experiments.{experiment}")
    values = _parse(experiment, arguments)
    with datasets_read_once():
        config, out_dir = module.configure(values), cli.out_dir(values)
        study = _STUDIES[experiment](config)
        return *study.load_task_and_arms(out_dir, task), out_dir


def _parse(experiment: str, arguments: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    importlib.import_module(f"experiments.{experiment}").define(values)
    values([experiment, *arguments])
    return values
