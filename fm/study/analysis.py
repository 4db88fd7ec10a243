"""From predictions to evidence: differences with intervals, label multipliers, the bill."""

from __future__ import annotations

import csv
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fm.evaluation.cost import compute_cost, matching_scratch_flops
from fm.evaluation.label_efficiency import LabelEfficiency, label_multiplier
from fm.evaluation.statistics import holm_adjusted, paired_difference
from fm.study import task_types
from fm.study.cells import Cell
from fm.study.tasks import Task
from fm.training.config import TrainResult

Row = dict[str, Any]
# The pretraining runs of each arm that has any.
PretrainingRuns = Mapping[str, list[TrainResult]]


def cell_scores(cell: Cell, task: Task) -> np.ndarray:
    """Of every seed and test item, [seeds, items]; see `fm.study.task_types`."""
    return task_types.scores(cell.predictions, task.test, task.task_type)


def cell_rows(cells: list[Cell], task: Task, pretraining: PretrainingRuns) -> list[Row]:
    """One row per arm, budget and seed."""
    rows = []
    for cell in cells:
        runs = pretraining.get(cell.arm, [])
        tried = [t["validation"] for t in cell.trials if t["config"] == cell.hparams]
        chosen = tried[0] if tried else None
        for seed, value in enumerate(cell_scores(cell, task).mean(axis=1)):
            rows.append(
                {
                    "task": cell.task,
                    "modality": task.modality,
                    "arm": cell.arm,
                    "labels": cell.num_labels,
                    "seed": seed,
                    "metric": task_types.METRICS[task.task_type],
                    "value": float(value),
                    "validation": chosen,
                    "setting": cell.hparams,
                    "trials": cell.trials,
                    "train_flops": cell.train_flops,
                    "pretrain_flops": _pretrained(cell.arm, runs, seed),
                    "seconds": cell.seconds,
                }
            )
    return rows


def _pretrained(arm: str, runs: list[TrainResult], seed: int) -> float | None:
    """FLOPs of the checkpoint a seed started from; None where others paid them."""
    if arm == "published":
        return None
    return runs[seed % len(runs)].flops if runs else 0.0


def comparison_rows(
    cells: list[Cell], task: Task, pairs: Sequence[tuple[str, str]] | None = None
) -> list[Row]:
    """Every arm against scratch, and every pretrained arm against classical, per budget.

    Or the pairs of arm and baseline given, those that are there.
    """
    at = {(cell.arm, cell.num_labels): cell_scores(cell, task) for cell in cells}
    arms = list(dict.fromkeys(cell.arm for cell in cells))
    if pairs is None:
        pairs = [(arm, "scratch") for arm in arms if arm != "scratch"]
        pairs += [(arm, "classical") for arm in arms if arm not in ("scratch", "classical")]
    rows = []
    for arm, baseline in pairs:
        if not {arm, baseline} <= set(arms):
            continue
        for labels in task.config.label_budgets:
            pair = at[arm, labels], at[baseline, labels]
            if len(pair[0]) < 2:
                continue
            found = paired_difference(*pair)
            place = {"task": task.name, "labels": labels, "arm": arm, "baseline": baseline}
            rows.append(place | dataclasses.asdict(found))
    return rows


def add_holm(rows: list[Row]) -> list[Row]:
    """Adds Holm's adjusted p over the whole table."""
    if not rows:
        return rows
    adjusted = holm_adjusted(np.array([row["p"] for row in rows]))
    return [row | {"p_adjusted": float(p)} for row, p in zip(rows, adjusted, strict=True)]


def label_efficiency_rows(cells: list[Cell], task: Task, steps: dict[str, int | None]) -> list[Row]:
    """Label multiplier of every arm at every budget.

    Args:
      cells: of the task.
      task: the task.
      steps: per arm, fine-tuning steps to scratch's final quality at the largest budget.
    """
    budgets = task.config.label_budgets
    at = {(cell.arm, cell.num_labels): cell_scores(cell, task) for cell in cells}
    arms = list(dict.fromkeys(cell.arm for cell in cells if cell.arm != "scratch"))
    if ("scratch", budgets[0]) not in at or len(at["scratch", budgets[0]]) < 2 or len(budgets) < 2:
        return []
    scratch_BSN = np.stack([at["scratch", labels] for labels in budgets])
    return [
        {
            "task": task.name,
            "labels": labels,
            "arm": arm,
            **dataclasses.asdict(label_multiplier(budgets, scratch_BSN, at[arm, labels], labels)),
            "steps_to_scratch_quality": steps.get(arm) if labels == budgets[-1] else None,
        }
        for arm in arms
        for labels in budgets
    ]


def compute_cost_rows(
    cells: list[Cell], task: Task, pretraining: PretrainingRuns, multipliers: list[Row]
) -> list[Row]:
    """What each arm cost at the smallest budget, and when its pretraining pays back."""
    budgets = task.config.label_budgets
    at = {(cell.arm, cell.num_labels): cell for cell in cells}
    rows = []
    for arm in dict.fromkeys(cell.arm for cell in cells):
        cell, runs = at[arm, budgets[0]], pretraining.get(arm, [])
        known = [row for row in multipliers if (row["arm"], row["labels"]) == (arm, budgets[0])]
        distinct = None, "scratch is what the others are held against"
        if arm == "classical":
            distinct = None, "no network: its arithmetic is not counted"
        elif arm == "published":
            distinct = None, "pretrained by others, at a cost that is not known"
        elif arm != "scratch":
            distinct = None, "needs the scratch arm, 2 budgets and 2 seeds"
            if known:
                fields = [field.name for field in dataclasses.fields(LabelEfficiency)]
                equivalent = LabelEfficiency(**{name: known[0][name] for name in fields})
                scratch = np.array([at["scratch", labels].train_flops for labels in budgets])
                distinct = matching_scratch_flops(
                    np.array(budgets), scratch, budgets[0], equivalent
                )
        row = compute_cost(
            task.name,
            arm,
            pretrain_flops=None if arm == "published" else sum(run.flops for run in runs),
            pretrain_seconds=None if arm == "published" else sum(run.seconds for run in runs),
            adapt_flops=cell.train_flops,
            adapt_seconds=cell.seconds,
            scratch_cost=distinct,
        )
        rows.append(dataclasses.asdict(row))
    return rows


def decontamination_rows(task: Task) -> list[Row]:
    """What the search for near-duplicates found, per pretraining corpus."""
    return [
        {
            "task": task.name,
            "arm": arm,
            "method": found.method,
            "checked": found.num_checked,
            "found": found.num_found,
            "removed": len(found.duplicate_idx),
        }
        for arm, found in task.decontamination.items()
    ]


def not_decontaminated_row(task: Task) -> Row:
    """In place of a search: what an imported model was pretrained on is not at hand."""
    return {
        "task": task.name,
        "arm": "published",
        "method": "not searched: its pretraining data is not published with it",
        "checked": None,
        "found": None,
        "removed": None,
    }


ScoresByCell = dict[tuple[str, str, int], np.ndarray]


def read_scores(path: pathlib.Path) -> ScoresByCell:
    """From a `predictions.csv`: 1.0 where right, [seeds, items], by task, arm and labels."""
    right: dict[tuple[str, str, int], dict[int, list[float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            cell = right.setdefault((row["task"], row["arm"], int(row["labels"])), {})
            cell.setdefault(int(row["seed"]), []).append(float(row["truth"] == row["prediction"]))
    return {key: np.array([seeds[seed] for seed in sorted(seeds)]) for key, seeds in right.items()}


def merge_studies(
    field: str, studies: dict[str, dict[str, Any]], folders: dict[str, pathlib.Path]
) -> dict[str, Any]:
    """One results dict in which arm `self` under value 0.5 is called `self, hide=0.5`.

    Compared are the values of an arm, each against the first value, paired by seed and item.
    Arms the setting does not touch (equal in every prediction) appear once, by their own name.

    Args:
      field: dotted path that was varied.
      studies: results by value.
      folders: where each value's study lies, by value.
    """
    short = field.rsplit(".", 1)[-1]
    scores = {value: read_scores(folders[value] / "predictions.csv") for value in studies}
    first, *others = studies
    merged = dict(studies[first])
    listed = ("cells", "ledger", "curves", "samples", "mistakes", "equivalents")
    models = [
        row | {"name": f"{short}={value}/{row['name']}"}
        for value, results in studies.items()
        for row in results.get("pretrained", [])
    ]
    merged |= {key: [] for key in listed} | {"pretrained": models}
    arms = {row["arm"] for row in studies[first]["cells"]}
    touched = {
        arm
        for arm in arms
        for value in others
        for key in scores[first]
        if key[1] == arm and not np.array_equal(scores[first][key], scores[value][key])
    }
    for value, results in studies.items():
        for key in listed:
            for row in results[key]:
                if row["arm"] in touched:
                    merged[key].append(row | {"arm": f"{row['arm']}, {short}={value}"})
                elif value == first:
                    merged[key].append(row)
    rows = []
    for task, arm, labels in scores[first]:
        for value in others if arm in touched else ():
            pair = scores[value][task, arm, labels], scores[first][task, arm, labels]
            if len(pair[0]) < 2:
                continue
            place = {
                "task": task,
                "labels": labels,
                "arm": f"{arm}, {short}={value}",
                "baseline": f"{arm}, {short}={first}",
            }
            rows.append(place | dataclasses.asdict(paired_difference(*pair)))
    merged["comparisons"] = add_holm(rows)
    merged["seconds"] = sum(results["seconds"] for results in studies.values())
    merged["experiment"] = f"ablate {field}"
    merged["config"] = {value: results["config"] for value, results in studies.items()}
    return merged
