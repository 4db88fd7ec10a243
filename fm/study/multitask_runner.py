"""The study of one model for many tasks, from config to results; resumable."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from typing import Any

from fm.study import (
    ablations,
    analysis,
    multitask_cost,
    multitask_curves,
    multitask_instructions,
    multitask_samples,
    multitask_sizes,
    run_dir,
    runner,
)
from fm.study.ablations import build_context
from fm.study.adaptation import Arm
from fm.study.cells import Cell, CellExecutor
from fm.study.cells import run_cells as run_cells
from fm.study.config import SCHEMA
from fm.study.multitask import (
    InitialModel,
    build_instruction_tuned_models,
    build_multitask_arms,
    build_sources,
    pretrain_models,
)
from fm.study.multitask_config import MultitaskConfig
from fm.study.multitask_instructions import build_instructed_task
from fm.study.tasks import Task, prepare_task
from fm.training.config import TrainResult

_STUDIES = {
    "matrix": ablations.transfer_matrix_rows,
    "mixture": ablations.mixture_rows,
    "amount": ablations.data_amount_rows,
}
# Seeds whose networks are asked otherwise too.
_FOLLOWED = 3
PAIRS = (
    *(("joint", "scratch"), ("in_domain", "scratch"), ("instruction_tuned", "scratch")),
    *(("joint", "in_domain"), ("instruction_tuned", "joint")),
    *((arm, "classical") for arm in ("in_domain", "joint", "instruction_tuned")),
)


# Arms whose cells share what they train, over all tasks: no use to have it elsewhere once a cell.
SHARED_MODEL_ARMS = ("instruction_tuned",)


def run_multitask(
    config: MultitaskConfig, out_dir: pathlib.Path, executor: CellExecutor | None = None
) -> dict[str, Any]:
    """Runs what is not there yet and returns the results, the headline still to be added.

    Cells but those of `SHARED` may be spread, by `opened`.

    Raises:
      UserError: bad data or settings; or `out_dir` holds another study.
    """
    began = time.perf_counter()
    resumes = run_dir.matches_config(config.to_dict(), out_dir)
    if (out_dir / runner.RESULTS_FILE).exists():
        run_dir.init(config.to_dict(), out_dir)
        print(f"{out_dir} is finished; another --out runs it again")
        return runner.read_results(out_dir)
    if resumes:
        print(f"{out_dir}: going on with what is there", file=sys.stderr)
    tasks = [prepare_task(task, (), config.seeds) for task in config.tasks]
    run_dir.init(config.to_dict(), out_dir)
    corpora, leakage = build_sources(config, tasks)
    models = pretrain_models(config, corpora, out_dir / "pretrained")
    follower = None
    if "instruction_tuned" in config.arms:
        ready = next(iter(models["joint"].values()))
        follower = build_instruction_tuned_models(
            config,
            ready,
            {task.name: build_instructed_task(task, ready.processor) for task in tasks},
        )
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "experiment": "unify",
        "config": config.to_dict(),
        "config_hash": config.config_hash(),
        "versions": run_dir.package_versions(),
        "device": run_dir.device_info(),
        "xla_flags": run_dir.xla_flags(),
        "attention": {},
        **{key: [] for key in ("cells", "comparisons", "equivalents", "ledger", "leakage")},
        **{key: [] for key in ("tasks", "curves", "samples", "mistakes", "methods", "following")},
        **{key: [] for key in ("sizes", "bill", "break_even", "pretrained")},
    }
    done = []
    for task in tasks:
        ways = build_multitask_arms(task, config, models, follower)
        cells = run_cells(
            task, ways, config.search_seeds, out_dir / "cells", executor and _apart(executor)
        )
        _collect(results, task, cells, _pretraining(task, models, config), leakage)
        results["sizes"] += [
            multitask_sizes.size_row(task, ways[arm]) for arm in models if arm in ways
        ][:1]
        if "joint" in config.arms:
            ready = models["joint"][task.modality]
            results["samples"] += multitask_samples.multitask_sample_rows(task, ready, config)
        done.append((task, cells))
    if follower is not None:
        labels = max(config.tasks[0].label_budgets)
        results["following"] = multitask_instructions.instruction_following_rows(
            follower, labels, min(_FOLLOWED, config.seeds)
        )
    if config.ablations:
        ready = next(iter(models["joint"].values()))
        shared = build_context(config, tasks, corpora, ready, out_dir)
        results |= {name: _STUDIES[name](shared) for name in config.ablations}
        results["pretrained"] += shared.pretrained_rows
    results["comparisons"] = analysis.add_holm(results["comparisons"])
    if models["joint"]:
        results["sizes"].append(
            multitask_sizes.shared_model_size_row(
                next(iter(models["joint"].values())).processor.model
            )
        )
    results["curves"] = multitask_curves.multitask_curve_rows(models, config)
    results["pretrained"] += _models(models)
    results = multitask_cost.add_amortized_cost(results)
    runner.write_predictions(done, out_dir / "predictions.csv")
    results["seconds"] = time.perf_counter() - began
    return results


def load_task_and_arms(
    config: MultitaskConfig, out_dir: pathlib.Path, name: str
) -> tuple[Task, dict[str, Arm]]:
    """A task of a study under way, and its arms but the `SHARED`, from the pretraining there is."""
    tasks = [prepare_task(task, (), config.seeds) for task in config.tasks]
    corpora, _ = build_sources(config, tasks)
    models = pretrain_models(config, corpora, out_dir / "pretrained")
    alone = dataclasses.replace(
        config, arms=tuple(arm for arm in config.arms if arm not in SHARED_MODEL_ARMS)
    )
    task = next(task for task in tasks if task.name == name)
    return task, build_multitask_arms(task, alone, models, None)


def _apart(spread: CellExecutor) -> CellExecutor:
    """Leaves the cells of `SHARED` where they are."""
    return lambda name, cells: spread(
        name, [each for each in cells if each[0] not in SHARED_MODEL_ARMS]
    )


def _collect(
    results: dict[str, Any],
    task: Task,
    cells: list[Cell],
    pretraining: dict[str, list[TrainResult]],
    leakage: dict[str, Any],
) -> None:
    """Adds what one task showed."""
    multipliers = analysis.label_efficiency_rows(cells, task, {})
    results["cells"] += analysis.cell_rows(cells, task, pretraining)
    results["comparisons"] += analysis.comparison_rows(cells, task, PAIRS)
    results["equivalents"] += multipliers
    results["ledger"] += analysis.compute_cost_rows(cells, task, pretraining, multipliers)
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
    results["tasks"].append(runner.task_row(task))


def _models(models: dict[str, dict[str, InitialModel]]) -> list[dict[str, Any]]:
    """What was pretrained, the joint model once."""
    runs = {f"self/{name}": ready.run for name, ready in models["in_domain"].items()}
    for ready in models["joint"].values():
        runs["joint"] = ready.run
    return [
        run_dir.pretrained_model_row(name, run) for name, run in runs.items() if run is not None
    ]


def _pretraining(
    task: Task, models: dict[str, dict[str, InitialModel]], config: MultitaskConfig
) -> dict[str, list[TrainResult]]:
    """The run each arm starts from, if any."""
    source = {arm: "joint" if arm == "instruction_tuned" else arm for arm in config.arms}
    ready = {arm: models.get(name, {}).get(task.modality) for arm, name in source.items()}
    return {arm: [each.run] for arm, each in ready.items() if each and each.run}
