"""Searches recipes on the development part of a task's training split, never on test items."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from fm.config_io import to_plain
from fm.errors import UserError
from fm.evaluation.statistics import mean_over_seeds_and_items
from fm.files import atomic_write, read_checked_json, write_checked_json
from fm.study import analysis, run_dir
from fm.study.config import Recipe, StudyConfig, config_hash
from fm.study.config_fields import with_field
from fm.study.recipe_files import write_recipe_file
from fm.study.runner import CompareStudy
from fm.training.failures import NotFiniteError

SEARCH_FILE, BEST_FILE = "search.json", "best_recipe.json"
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig(StudyConfig):
    """Configuration of a search: a study of one task and one arm, and what its recipe may be.

    Attributes:
      fields: (dotted path in the recipe, values as text) pairs; the product of the values is tried.
      num_trials: number of random draws from the product, or None for all of it.
    """

    MIN_ARMS: ClassVar[int] = 1

    experiment: str = "search"
    fields: tuple[tuple[str, tuple[str, ...]], ...] = ()
    num_trials: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if len(self.tasks) != 1 or len(self.arms) != 1:
            raise UserError(
                f"a search takes one task and one arm, not {len(self.tasks)} and {len(self.arms)}"
            )
        if self.tasks[0].split != "development":
            raise UserError(
                f"--split={self.tasks[0].split}: a search scores the development part of the "
                "training split only"
            )
        if self.num_trials is not None and self.num_trials < 1:
            raise UserError(f"--trials={self.num_trials}: takes a number from 1")


@dataclasses.dataclass(frozen=True, eq=False)
class SearchTrial:
    """One recipe that a search tries.

    Attributes:
      values: by field, as text; none for the recipe as it is.
      config: of the trial alone.
    """

    values: dict[str, str]
    config: SearchConfig

    @property
    def config_hash(self) -> str:
        """Hash of everything that its score depends on."""
        return config_hash(self.config.to_dict())

    @property
    def recipe(self) -> Recipe:
        """Returns the recipe tried."""
        return self.config.tasks[0].recipe


def parse_field(text: str) -> tuple[str, tuple[str, ...]]:
    """Returns the path and the values of a flag such as `objective.mask_ratio=0.5,0.75`.

    Values that are lists keep their commas: `learning_rates=[0.01],[0.003,0.01]`.

    Raises:
      UserError: a value is missing or given twice, or the path is not of a recipe.
    """
    path, separator, rest = text.partition("=")
    values = tuple(each.strip() for each in re.split(r",(?![^\[]*\])", rest))
    if not separator or not all(values) or len(set(values)) < len(values):
        raise UserError(
            f"--field={text}: takes a field and different values, such as "
            "objective.mask_ratio=0.5,0.75"
        )
    path = path.removeprefix("recipe.")
    names = [field.name for field in dataclasses.fields(Recipe)]
    if path.partition(".")[0] not in (*names, *Recipe.RENAMED_FIELDS):
        raise UserError(
            f"--field={text}: a search sets fields of the recipe, one of {', '.join(names)}"
        )
    return path, values


def search_trials(config: SearchConfig) -> list[SearchTrial]:
    """Returns the trials of a search: the recipe as it is, then the product of values or draws.

    Raises:
      UserError: a field is given twice or does not exist, or a recipe is not valid.
    """
    paths = [path for path, _ in config.fields]
    if len(set(paths)) < len(paths):
        raise UserError(f"--field: takes each field once, not {', '.join(paths)}")
    alone = dataclasses.replace(config, fields=(), num_trials=None)
    trials = {_recipe_key(alone): SearchTrial({}, alone)}
    product = list(itertools.product(*(values for _, values in config.fields)))
    order = np.arange(len(product))
    if config.num_trials is not None:
        order = np.sort(np.random.default_rng(0).permutation(len(product))[: config.num_trials])
    for n in order:
        values, changed = dict(zip(paths, product[n], strict=True)), alone
        for path, text in values.items():
            changed = with_field(changed, path, text, flag=f"--field={path}={text}")
        assert isinstance(changed, SearchConfig)
        trials.setdefault(_recipe_key(changed), SearchTrial(values, changed))
    return list(trials.values())


def _recipe_key(config: SearchConfig) -> str:
    return json.dumps(to_plain(config.tasks[0].recipe), sort_keys=True)


def run_search(
    config: SearchConfig,
    out_dir: pathlib.Path,
    progress: Callable[[Sequence[Row], int], None] = lambda rows, count: None,
) -> Row:
    """Scores every recipe of a search in `out_dir`, or those still missing; returns the results.

    The score of a trial is the mean over label budgets and seeds of the arm's metric on the
    development part, its interval that of `mean_over_seeds_and_items`. Writes search.json after
    every trial and the best recipe at the end; of equal ones the first.

    Args:
      config: of the search.
      out_dir: its folder; a trial's own is below it.
      progress: called after every trial with the rows so far and the number of trials.

    Raises:
      UserError: bad data or settings, `out_dir` holds another search, or no trial has a score.
    """
    trials = search_trials(config)
    run_dir.check_existing_run(config.to_dict(), out_dir)
    study = _TrialStudy(config)
    study.load()
    run_dir.init(config.to_dict(), out_dir)
    (task,) = study.tasks
    rows: list[Row] = []
    results: Row = {}
    for trial in trials:
        path = out_dir / "trials" / trial.config_hash / "trial.json"
        if not path.exists():
            write_checked_json(path, _run_trial(trial, path.parent))
        rows.append({"trial": len(rows)} | read_checked_json(path))
        scored = [row for row in rows if row["score"] is not None]
        results = {
            "schema": 1,
            "experiment": "search",
            "task": task.name,
            "arm": config.arms[0],
            "metric": task.task_type.metric,
            "split": "development",
            "items": len(task.test),
            "best": max(scored, key=lambda row: row["score"])["trial"] if scored else None,
            "trials": rows,
            "trials_planned": len(trials),
            "config": config.to_dict(),
            "config_hash": config_hash(config.to_dict()),
            **run_dir.provenance(),
        }
        atomic_write(out_dir / SEARCH_FILE, json.dumps(results, indent=1, allow_nan=False))
        progress(rows, len(trials))
    if results["best"] is None:
        raise UserError(f"no recipe could be trained: {rows[0]['error']}")
    best = trials[results["best"]]
    write_recipe_file(
        out_dir / BEST_FILE,
        best.recipe,
        modality=task.modality,
        task_type=task.task_type.name,
        task=task.name,
        arm=config.arms[0],
        values=best.values,
        score=rows[results["best"]]["score"],
        search=results["config_hash"],
    )
    return results


def _run_trial(trial: SearchTrial, out_dir: pathlib.Path) -> Row:
    """Returns a trial's row; one whose loss is not finite has no score but an error."""
    began = time.perf_counter()
    row: Row = {"values": trial.values, "config_hash": trial.config_hash}
    row |= {"score": None, "low": None, "high": None, "by_budget": {}, "error": None}
    try:
        row |= _TrialStudy(trial.config).score(out_dir)
    except NotFiniteError as error:
        row["error"] = str(error)
    return row | {"seconds": time.perf_counter() - began}


class _TrialStudy(CompareStudy):
    """A study of one arm whose only result is its score."""

    def score(self, out_dir: pathlib.Path) -> Row:
        """Returns the arm's mean score over budgets and seeds, with its interval, and by budget."""
        if not self.tasks:
            self.load()
        (task,) = self.tasks
        arms = self.build_arms(task, self.build_context(out_dir))
        cells = self.compute_cells(task, arms, out_dir)
        scores_BSN = np.stack([analysis.cell_scores(cell, task) for cell in cells])
        scores_SN = scores_BSN.mean(axis=0)
        row: Row = {"score": float(scores_SN.mean())}
        if len(scores_SN) > 1:
            interval = mean_over_seeds_and_items(scores_SN)
            row |= {"low": interval.low, "high": interval.high}
        budgets = [str(cell.num_labels) for cell in cells]
        runs = [run for built in arms.values() for run in built.runs]
        return row | {
            "by_budget": dict(zip(budgets, scores_BSN.mean(axis=(1, 2)).tolist(), strict=True)),
            "pretrained": [
                {"steps": run.steps, "stopped_because": run.stopped_because} for run in runs
            ],
        }
