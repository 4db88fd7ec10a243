"""The study of one model for many tasks, from config to results; resumable."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from typing import Any

from fm.study import environment, evidence, finished, folder, study
from fm.study.adaptation import Arm
from fm.study.cells import Cell, Spread
from fm.study.cells import run as run_cells
from fm.study.config import SCHEMA
from fm.study.tasks import Task, prepare
from fm.study.unify import amounts, bill, curves, following, matrix, mixing, samples, sizes
from fm.study.unify.arms import follower_of, of_task
from fm.study.unify.asked import ask
from fm.study.unify.config import UnifyConfig
from fm.study.unify.pretraining import Ready, pretrained, sources
from fm.study.unify.variants import ground
from fm.training.run import Trained

_STUDIES = {"matrix": matrix.rows, "mixture": mixing.rows, "amount": amounts.rows}
# Seeds whose networks are asked otherwise too.
_FOLLOWED = 3
PAIRS = (
    *(("joint", "scratch"), ("self", "scratch"), ("instructed", "scratch")),
    *(("joint", "self"), ("instructed", "joint")),
    *((arm, "classical") for arm in ("self", "joint", "instructed")),
)


# Arms whose cells share what they train, over all tasks: no use to have it elsewhere once a cell.
SHARED = ("instructed",)


def run(config: UnifyConfig, out: pathlib.Path, spread: Spread | None = None) -> dict[str, Any]:
    """Runs what is not there yet and returns the results, the headline still to be added.

    Cells but those of `SHARED` may be spread, by `opened`.

    Raises:
      UserError: bad data or settings; or `out` holds another study.
    """
    began = time.perf_counter()
    resumes = folder.holds(config.plain(), out)
    if (out / study.RESULTS).exists():
        folder.claim(config.plain(), out)
        print(f"{out} is finished; another --out runs it again")
        return study.read_results(out)
    if resumes:
        print(f"{out}: going on with what is there", file=sys.stderr)
    tasks = [prepare(task, (), config.seeds) for task in config.tasks]
    folder.claim(config.plain(), out)
    corpora, leakage = sources(config, tasks)
    models = pretrained(config, corpora, out / "pretrained")
    follower = None
    if "instructed" in config.arms:
        ready = next(iter(models["joint"].values()))
        follower = follower_of(config, ready, {task.name: ask(task, ready.reads) for task in tasks})
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "experiment": "unify",
        "config": config.plain(),
        "config_hash": config.digest(),
        "versions": environment.versions(),
        "device": environment.device(),
        "xla_flags": environment.xla_flags(),
        "attention": {},
        **{key: [] for key in ("cells", "comparisons", "equivalents", "ledger", "leakage")},
        **{key: [] for key in ("tasks", "curves", "samples", "mistakes", "methods", "following")},
        **{key: [] for key in ("sizes", "bill", "break_even", "pretrained")},
    }
    done = []
    for task in tasks:
        ways = of_task(task, config, models, follower)
        cells = run_cells(task, ways, config.search_seeds, out / "cells", spread and _apart(spread))
        _collect(results, task, cells, _pretraining(task, models, config), leakage)
        results["sizes"] += [sizes.row(task, ways[arm]) for arm in models if arm in ways][:1]
        if "joint" in config.arms:
            ready = models["joint"][task.modality]
            results["samples"] += samples.rows(task, ready, config)
        done.append((task, cells))
    if follower is not None:
        labels = max(config.tasks[0].budgets)
        results["following"] = following.rows(follower, labels, min(_FOLLOWED, config.seeds))
    if config.studies:
        ready = next(iter(models["joint"].values()))
        shared = ground(config, tasks, corpora, ready, out)
        results |= {name: _STUDIES[name](shared) for name in config.studies}
        results["pretrained"] += shared.made
    results["comparisons"] = evidence.with_holm(results["comparisons"])
    if models["joint"]:
        results["sizes"].append(sizes.whole(next(iter(models["joint"].values())).reads.model))
    results["curves"] = curves.rows(models, config)
    results["pretrained"] += _models(models)
    results = bill.added(results)
    study.write_predictions(done, out / "predictions.csv")
    results["seconds"] = time.perf_counter() - began
    return results


def opened(config: UnifyConfig, out: pathlib.Path, name: str) -> tuple[Task, dict[str, Arm]]:
    """A task of a study under way, and its arms but the `SHARED`, from the pretraining there is."""
    tasks = [prepare(task, (), config.seeds) for task in config.tasks]
    corpora, _ = sources(config, tasks)
    models = pretrained(config, corpora, out / "pretrained")
    alone = dataclasses.replace(config, arms=tuple(arm for arm in config.arms if arm not in SHARED))
    task = next(task for task in tasks if task.name == name)
    return task, of_task(task, alone, models, None)


def _apart(spread: Spread) -> Spread:
    """Leaves the cells of `SHARED` where they are."""
    return lambda name, cells: spread(name, [each for each in cells if each[0] not in SHARED])


def _collect(
    results: dict[str, Any],
    task: Task,
    cells: list[Cell],
    pretraining: dict[str, list[Trained]],
    leakage: dict[str, Any],
) -> None:
    """Adds what one task showed."""
    multipliers = evidence.equivalents(cells, task, {})
    results["cells"] += evidence.cell_rows(cells, task, pretraining)
    results["comparisons"] += evidence.comparisons(cells, task, PAIRS)
    results["equivalents"] += multipliers
    results["ledger"] += evidence.ledger(cells, task, pretraining, multipliers)
    found = leakage[task.name]
    results["leakage"].append(
        {
            "task": task.name,
            "arm": "joint",
            "method": found.method,
            "checked": found.checked,
            "found": found.found,
            "removed": len(found.removed),
        }
    )
    results["tasks"].append(study.about(task))


def _models(models: dict[str, dict[str, Ready]]) -> list[dict[str, Any]]:
    """What was pretrained, the joint model once."""
    runs = {f"self/{name}": ready.run for name, ready in models["self"].items()}
    for ready in models["joint"].values():
        runs["joint"] = ready.run
    return [finished.pretrained(name, run) for name, run in runs.items() if run is not None]


def _pretraining(
    task: Task, models: dict[str, dict[str, Ready]], config: UnifyConfig
) -> dict[str, list[Trained]]:
    """The run each arm starts from, if any."""
    source = {arm: "joint" if arm == "instructed" else arm for arm in config.arms}
    ready = {arm: models.get(name, {}).get(task.modality) for arm, name in source.items()}
    return {arm: [each.run] for arm, each in ready.items() if each and each.run}
