"""A study from end to end: config in, `results.json` and `predictions.csv` out, resumable."""

from __future__ import annotations

import csv
import json
import os
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp

from fm.attention import Mask, choose
from fm.errors import UserError
from fm.study import arms, environment, evidence, exhibits, kinds, methods
from fm.study.adaptation import Arm
from fm.study.cells import Cell
from fm.study.cells import run as run_cells
from fm.study.config import METHODS, SCHEMA, StudyConfig, as_json, digest
from fm.study.tasks import Task, prepare, short_name
from fm.training.checkpoint import differences

RESULTS = "results.json"


def run(config: StudyConfig, out: pathlib.Path) -> dict[str, Any]:
    """Runs what is not there yet and returns the results, the headline still to be added.

    A finished study is read back, not run again.

    Raises:
      UserError: bad data or settings; or `out` holds another study (names what differs).
    """
    names = [short_name(task.dataset) for task in config.tasks]
    if len(set(names)) < len(names):
        raise UserError(f"tasks {', '.join(names)} must differ in name; rename a file or folder")
    resumes = holds(as_json(config), out)
    if (out / RESULTS).exists():
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
    claim(as_json(config), out)
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
        **{key: [] for key in ("tasks", "curves", "samples", "mistakes", "methods")},
    }
    done = []
    for task in tasks:
        wanted, seeds = config.arms_of(task.config), config.pretrain_seeds
        fed = arms.networks(task, wanted, seeds, out / "pretrained", config.adapt)
        ways: dict[str, Arm] = {arm: each.network for arm, each in fed.items()}
        if "classical" in wanted:
            ways["classical"] = arms.classical(task, config.adapt)
        if task.name in brought:
            ways["imported"] = brought[task.name]
        ordered = {arm: ways[arm] for arm in wanted}
        cells = run_cells(task, ordered, config.search_seeds, out / "cells")
        _collect(results, task, fed, cells, config.search_seeds)
        if task.name in brought:
            results["tasks"][-1]["imported"] = brought[task.name].about()
            results["leakage"].append(evidence.unsearched(task))
        # Adapters are a program to compile: where nobody asked for them the last task has to do.
        measured = METHODS if task is tasks[-1] else config.adapt
        results["methods"] += methods.rows(task, fed, brought.get(task.name), measured)
        done.append((task, cells))
    results["comparisons"] = evidence.with_holm(results["comparisons"])
    write_predictions(done, out / "predictions.csv")
    return results


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


def holds(mine: dict[str, Any], out: pathlib.Path) -> bool:
    """Whether `out` is this run's own already.

    Args:
      mine: the run's config, JSON-able.
      out: folder, made if it is not there.

    Raises:
      UserError: the folder cannot be written, or holds a run with another config.
    """
    path = out / "config.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(None, "not writable")
        if not path.exists():
            return False
        found = differences(json.loads(path.read_text()), mine)
    except (OSError, json.JSONDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--out={out} cannot be used ({reason}); it takes a folder that can be written"
        ) from error
    if found:
        # Of another experiment everything else differs too.
        found = {"experiment": found["experiment"]} if "experiment" in found else found
        shown = [f"{name}: {was} -> {now}" for name, (was, now) in found.items()]
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        raise UserError(
            f"--out={out} holds a run with another config ({'; '.join(shown[:4])}{more}); "
            "take another folder, or the same flags to go on"
        )
    return True


def claim(mine: dict[str, Any], out: pathlib.Path) -> None:
    """Makes `out` this run's own; raises as `holds` does."""
    if not holds(mine, out):
        partial = out / "config.partial"
        partial.write_text(json.dumps(mine, indent=1))
        partial.replace(out / "config.json")


def write_results(results: dict[str, Any], out: pathlib.Path) -> None:
    """Writes `results.json`, whole or not at all."""
    partial = out / f"{RESULTS}.partial"
    partial.write_text(json.dumps(results, indent=1, allow_nan=False))
    partial.replace(out / RESULTS)


def read_results(out: pathlib.Path) -> dict[str, Any]:
    """Reads `results.json` of a finished study.

    Raises:
      UserError: there is none, or it is not one of this schema.
    """
    path = out / RESULTS
    try:
        results = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give --out the folder of a study") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON (line {error.lineno})") from error
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a results file of schema {SCHEMA}")
    return results


def write_predictions(done: list[tuple[Task, list[Cell]]], path: pathlib.Path) -> None:
    """One row per cell, seed and test item.

    Of entities the truth is their number, and the prediction "found rightly/predicted"; of texts
    to write the prediction is its chrF.
    """
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["task", "arm", "labels", "seed", "row", "item", "truth", "prediction"])
        for task, cells in done:
            for cell in cells:
                for seed, answers in enumerate(cell.predictions):
                    rows.writerows(
                        (task.name, cell.arm, cell.labels, seed, n, task.test.ids[n][:12], t, g)
                        for n, (t, g) in enumerate(kinds.written(answers, task.test, task.kind))
                    )
    partial.replace(path)
