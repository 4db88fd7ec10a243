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

from fm.adaptation.methods import METHODS
from fm.attention import Mask, choose
from fm.errors import UserError
from fm.files import atomic_path, atomic_write, read_json
from fm.study import analysis, arms, artifacts, method_costs, run_dir, task_types
from fm.study.adaptation import Arm, ModelArm
from fm.study.cells import Cell, CellExecutor
from fm.study.cells import run_cells as run_cells
from fm.study.config import SCHEMA, StudyConfig, config_hash, to_dict
from fm.study.tasks import Task, prepare_task, short_name

RESULTS_FILE = "results.json"


def run_compare(
    config: StudyConfig, out_dir: pathlib.Path, executor: CellExecutor | None = None
) -> dict[str, Any]:
    """Runs what is not there yet and returns the results, the headline still to be added.

    A finished study is read back, not run again. Cells may be spread, by `opened`.

    Raises:
      UserError: bad data or settings; or `out_dir` holds another study (names what differs).
    """
    began = time.perf_counter()
    names = [short_name(task.dataset) for task in config.tasks]
    if len(set(names)) < len(names):
        raise UserError(f"tasks {', '.join(names)} must differ in name; rename a file or folder")
    resumes = run_dir.matches_config(to_dict(config), out_dir)
    if (out_dir / RESULTS_FILE).exists():
        run_dir.init(to_dict(config), out_dir)
        print(f"{out_dir} is finished; another --out runs it again")
        return read_results(out_dir)
    if resumes:
        print(f"{out_dir}: going on with what is there", file=sys.stderr)
    tasks = [prepare_task(task, config.arms_of(task), config.seeds) for task in config.tasks]
    brought = {
        task.name: arms.build_published_arm(task, config.methods)
        for task in tasks
        if "published" in config.arms_of(task.config)
    }
    run_dir.init(to_dict(config), out_dir)
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "experiment": config.experiment,
        "config": to_dict(config),
        "config_hash": config_hash(config),
        "versions": run_dir.package_versions(),
        "device": run_dir.device_info(),
        "xla_flags": run_dir.xla_flags(),
        "attention": {},
        **{key: [] for key in ("cells", "comparisons", "equivalents", "ledger", "leakage")},
        **{key: [] for key in ("tasks", "curves", "samples", "mistakes", "methods", "pretrained")},
    }
    done = []
    last = next((task for task in reversed(tasks) if task.task_type == "class"), None)
    for task in tasks:
        fed, ways = _ways(config, task, out_dir, brought.get(task.name))
        cells = run_cells(task, ways, config.search_seeds, out_dir / "cells", executor)
        _collect(results, task, fed, cells, config.search_seeds)
        if task.name in brought:
            results["tasks"][-1]["published"] = brought[task.name].model.description()
            results["leakage"].append(analysis.not_decontaminated_row(task))
        # Adapters are a program to compile: where nobody asked for them the last task has to do.
        measured = tuple(METHODS) if task is last else config.methods
        results["methods"] += method_costs.method_cost_rows(
            task, fed, brought.get(task.name), measured
        )
        done.append((task, cells))
    results["comparisons"] = analysis.add_holm(results["comparisons"])
    write_predictions(done, out_dir / "predictions.csv")
    results["seconds"] = time.perf_counter() - began
    return results


def load_task_and_arms(
    config: StudyConfig, out_dir: pathlib.Path, name: str
) -> tuple[Task, dict[str, Arm]]:
    """A task of a study under way, and its arms, from the pretraining that is there."""
    asked = next(task for task in config.tasks if short_name(task.dataset) == name)
    wanted = config.arms_of(asked)
    task = prepare_task(asked, wanted, config.seeds)
    brought = arms.build_published_arm(task, config.methods) if "published" in wanted else None
    return task, _ways(config, task, out_dir, brought)[1]


def _ways(
    config: StudyConfig, task: Task, out: pathlib.Path, brought: ModelArm | None
) -> tuple[dict[str, arms.PretrainedArm], dict[str, Arm]]:
    """What was fed, and every arm in the study's order."""
    wanted, seeds = config.arms_of(task.config), config.pretrain_seeds
    fed = arms.build_network_arms(task, wanted, seeds, out / "pretrained", config.methods)
    ways: dict[str, Arm] = {arm: each.arm for arm, each in fed.items()}
    if "classical" in wanted:
        ways["classical"] = arms.build_classical_arm(task, config.methods)
    if brought is not None:
        ways["published"] = brought
    return fed, {arm: ways[arm] for arm in wanted}


def _collect(
    results: dict[str, Any],
    task: Task,
    fed: dict[str, arms.PretrainedArm],
    cells: list[Cell],
    curve_seeds: int,
) -> None:
    """Adds what one task showed."""
    curves, steps = artifacts.adaptation_curves(task, fed, cells, curve_seeds)
    multipliers = analysis.label_efficiency_rows(cells, task, steps)
    pretraining = {arm: each.runs for arm, each in fed.items()}
    results["cells"] += analysis.cell_rows(cells, task, pretraining)
    results["comparisons"] += analysis.comparison_rows(cells, task)
    results["equivalents"] += multipliers
    results["ledger"] += analysis.compute_cost_rows(cells, task, pretraining, multipliers)
    results["leakage"] += analysis.decontamination_rows(task)
    results["curves"] += artifacts.pretraining_curves(task, fed) + curves
    results["samples"] += artifacts.sample_rows(task, fed)
    results["mistakes"] += artifacts.mistake_rows(task, cells)
    results["tasks"].append(task_row(task))
    results["pretrained"] += [
        run_dir.pretrained_model_row(f"{task.name}/{arm}/{seed}", run)
        for arm, runs in pretraining.items()
        for seed, run in enumerate(runs)
    ]
    for each in fed.values():
        results["attention"][task.name] = _kernel(each, task.config.recipe.batch_size)


def _kernel(fed: arms.PretrainedArm, batch_size: int) -> str:
    """The attention implementation of a whole batch of packed rows, as pretraining reads them."""
    model = fed.processor.model
    shape = (batch_size, fed.arm.model.examples["segments"].shape[1])
    q = jax.ShapeDtypeStruct((*shape, model.num_heads, model.head_dim), model.dtype)
    k = jax.ShapeDtypeStruct((*shape, model.num_kv_heads, model.head_dim), model.dtype)
    segments = jnp.ones(shape, jnp.int32)
    mask = Mask(causal=True, q_segments=segments, kv_segments=segments)
    return model.attention or choose(q, k, mask)


def task_row(task: Task) -> dict[str, Any]:
    """A task as results describe it."""
    info = task.dataset.info
    return {
        "name": task.name,
        "title": task.name.replace("_", " ").capitalize(),
        "modality": task.modality,
        "classes": list(task.dataset.classes),
        "metric": task_types.METRICS[task.task_type],
        "train": len(task.dataset.train),
        "test": len(task.test),
        "test_available": len(task.dataset.test),
        "out_of_domain": task.config.out_of_domain_dataset,
        **{key: info[key] for key in ("description", "licence", "fingerprint", "split")},
    }


def write_results(results: dict[str, Any], out_dir: pathlib.Path) -> None:
    """Writes `results.json`, whole or not at all."""
    atomic_write(out_dir / RESULTS_FILE, json.dumps(results, indent=1, allow_nan=False))


def read_results(out_dir: pathlib.Path) -> dict[str, Any]:
    """Reads `results.json` of a finished study.

    Raises:
      UserError: there is none, or it is not one of this schema.
    """
    path = out_dir / RESULTS_FILE
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
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["task", "arm", "labels", "seed", "row", "item", "truth", "prediction"])
        for task, cells in done:
            for cell in cells:
                for seed, answers in enumerate(cell.predictions):
                    rows.writerows(
                        (task.name, cell.arm, cell.num_labels, seed, n, task.test.ids[n][:12], t, g)
                        for n, (t, g) in enumerate(
                            task_types.prediction_rows(answers, task.test, task.task_type)
                        )
                    )
