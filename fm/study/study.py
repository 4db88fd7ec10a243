"""A study from end to end: config in, `results.json` and `predictions.csv` out, resumable."""

from __future__ import annotations

import csv
import json
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from fm.attention import Mask, choose
from fm.errors import UserError
from fm.files import read_json, replace, replacing
from fm.study import arms, environment, evidence, exhibits, finished, folder, kinds, methods
from fm.study.adaptation import Arm
from fm.study.cells import Cell, Spread
from fm.study.cells import run as run_cells
from fm.study.config import METHODS, SCHEMA, StudyConfig, as_json, digest
from fm.study.imported import Imported
from fm.study.tasks import Task, prepare, short_name

RESULTS = "results.json"


def run(config: StudyConfig, out: pathlib.Path, spread: Spread | None = None) -> dict[str, Any]:
    """Runs what is not there yet and returns the results, the headline still to be added.

    A finished study is read back, not run again. Cells may be spread, by `opened`.

    Raises:
      UserError: bad data or settings; or `out` holds another study (names what differs).
    """
    began = time.perf_counter()
    names = [short_name(task.dataset) for task in config.tasks]
    if len(set(names)) < len(names):
        raise UserError(f"tasks {', '.join(names)} must differ in name; rename a file or folder")
    resumes = folder.holds(as_json(config), out)
    if (out / RESULTS).exists():
        folder.claim(as_json(config), out)
        print(f"{out} is finished; another --out runs it again")
        return read_results(out)
    if resumes:
        print(f"{out}: going on with what is there", file=sys.stderr)
    tasks = [prepare(task, config.arms_of(task), config.seeds) for task in config.tasks]
    brought = {
        task.name: arms.imported(task, config.adapt)
        for task in tasks
        if "imported" in config.arms_of(task.config)
    }
    folder.claim(as_json(config), out)
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "experiment": config.experiment,
        "config": as_json(config),
        "config_hash": digest(config),
        "versions": environment.versions(),
        "device": environment.device(),
        "xla_flags": environment.xla_flags(),
        "attention": {},
        **{key: [] for key in ("cells", "comparisons", "equivalents", "ledger", "leakage")},
        **{key: [] for key in ("tasks", "curves", "samples", "mistakes", "methods", "pretrained")},
    }
    done = []
    last = next((task for task in reversed(tasks) if task.kind == "class"), None)
    for task in tasks:
        fed, ways = _ways(config, task, out, brought.get(task.name))
        cells = run_cells(task, ways, config.search_seeds, out / "cells", spread)
        _collect(results, task, fed, cells, config.search_seeds)
        if task.name in brought:
            results["tasks"][-1]["imported"] = brought[task.name].about()
            results["leakage"].append(evidence.unsearched(task))
        # Adapters are a program to compile: where nobody asked for them the last task has to do.
        measured = METHODS if task is last else config.adapt
        results["methods"] += methods.rows(task, fed, brought.get(task.name), measured)
        done.append((task, cells))
    results["comparisons"] = evidence.with_holm(results["comparisons"])
    write_predictions(done, out / "predictions.csv")
    results["seconds"] = time.perf_counter() - began
    return results


def opened(config: StudyConfig, out: pathlib.Path, name: str) -> tuple[Task, dict[str, Arm]]:
    """A task of a study under way, and its arms, from the pretraining that is there."""
    asked = next(task for task in config.tasks if short_name(task.dataset) == name)
    wanted = config.arms_of(asked)
    task = prepare(asked, wanted, config.seeds)
    brought = arms.imported(task, config.adapt) if "imported" in wanted else None
    return task, _ways(config, task, out, brought)[1]


def _ways(
    config: StudyConfig, task: Task, out: pathlib.Path, brought: Imported | None
) -> tuple[dict[str, arms.Fed], dict[str, Arm]]:
    """What was fed, and every arm in the study's order."""
    wanted, seeds = config.arms_of(task.config), config.pretrain_seeds
    fed = arms.networks(task, wanted, seeds, out / "pretrained", config.adapt)
    ways: dict[str, Arm] = {arm: each.arm for arm, each in fed.items()}
    if "classical" in wanted:
        ways["classical"] = arms.classical(task, config.adapt)
    if brought is not None:
        ways["imported"] = brought
    return fed, {arm: ways[arm] for arm in wanted}


def _collect(
    results: dict[str, Any],
    task: Task,
    fed: dict[str, arms.Fed],
    cells: list[Cell],
    curve_seeds: int,
) -> None:
    """Adds what one task showed."""
    curves, steps = exhibits.adaptation_curves(task, fed, cells, curve_seeds)
    multipliers = evidence.equivalents(cells, task, steps)
    pretraining = {arm: each.runs for arm, each in fed.items()}
    results["cells"] += evidence.cell_rows(cells, task, pretraining)
    results["comparisons"] += evidence.comparisons(cells, task)
    results["equivalents"] += multipliers
    results["ledger"] += evidence.ledger(cells, task, pretraining, multipliers)
    results["leakage"] += evidence.leakage_rows(task)
    results["curves"] += exhibits.pretraining_curves(task, fed) + curves
    results["samples"] += exhibits.samples(task, fed)
    results["mistakes"] += exhibits.mistakes(task, cells)
    results["tasks"].append(about(task))
    results["pretrained"] += [
        finished.pretrained(f"{task.name}/{arm}/{seed}", run)
        for arm, runs in pretraining.items()
        for seed, run in enumerate(runs)
    ]
    for each in fed.values():
        results["attention"][task.name] = _kernel(each, task.config.recipe.batch_size)


def _kernel(fed: arms.Fed, batch_size: int) -> str:
    """The attention implementation of a whole batch of packed rows, as pretraining reads them."""
    model = fed.reads.model
    shape = (batch_size, fed.network.rows["segments"].shape[1])
    q = jax.ShapeDtypeStruct((*shape, model.heads, model.head_width), model.dtype)
    k = jax.ShapeDtypeStruct((*shape, model.kv_heads, model.head_width), model.dtype)
    segments = jnp.ones(shape, jnp.int32)
    mask = Mask(causal=True, q_segments=segments, kv_segments=segments)
    return model.attention or choose(q, k, mask)


def about(task: Task) -> dict[str, Any]:
    """A task as results describe it."""
    info = task.dataset.info
    return {
        "name": task.name,
        "title": task.name.replace("_", " ").capitalize(),
        "modality": task.modality,
        "classes": list(task.dataset.classes),
        "metric": kinds.METRICS[task.kind],
        "train": len(task.dataset.train),
        "test": len(task.test),
        "test_available": len(task.dataset.test),
        "upstream": task.config.upstream,
        **{key: info[key] for key in ("description", "licence", "fingerprint", "split")},
    }


def write_results(results: dict[str, Any], out: pathlib.Path) -> None:
    """Writes `results.json`, whole or not at all."""
    replace(out / RESULTS, json.dumps(results, indent=1, allow_nan=False))


def read_results(out: pathlib.Path) -> dict[str, Any]:
    """Reads `results.json` of a finished study.

    Raises:
      UserError: there is none, or it is not one of this schema.
    """
    path = out / RESULTS
    try:
        results = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give --out the folder of a study") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a results file of schema {SCHEMA}")
    return results


def write_predictions(done: list[tuple[Task, list[Cell]]], path: pathlib.Path) -> None:
    """One row per cell, seed and test item.

    Of entities the truth is their number, and the prediction "found rightly/predicted"; of texts
    to write the prediction is its chrF.
    """
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["task", "arm", "labels", "seed", "row", "item", "truth", "prediction"])
        for task, cells in done:
            for cell in cells:
                for seed, answers in enumerate(cell.predictions):
                    rows.writerows(
                        (task.name, cell.arm, cell.labels, seed, n, task.test.ids[n][:12], t, g)
                        for n, (t, g) in enumerate(kinds.written(answers, task.test, task.kind))
                    )
