"""From predictions to evidence: differences with intervals, label multipliers, the bill."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fm.evaluation.label_efficiency import Equivalent, label_multiplier
from fm.evaluation.ledger import distinct_flops, ledger_row
from fm.evaluation.statistics import holm, paired_difference
from fm.study import kinds
from fm.study.cells import Cell
from fm.study.tasks import Task
from fm.training.run import Trained

Row = dict[str, Any]
# The pretraining runs of each arm that has any.
Pretraining = Mapping[str, list[Trained]]


def scores(cell: Cell, task: Task) -> np.ndarray:
    """Of every seed and test item, [seeds, items]; see `fm.study.kinds`."""
    return kinds.scores(cell.predictions, task.test, task.kind)


def cell_rows(cells: list[Cell], task: Task, pretraining: Pretraining) -> list[Row]:
    """One row per arm, budget and seed."""
    rows = []
    for cell in cells:
        runs = pretraining.get(cell.arm, [])
        tried = [t["validation"] for t in cell.trials if t["config"] == cell.setting]
        chosen = tried[0] if tried else None
        for seed, value in enumerate(scores(cell, task).mean(axis=1)):
            rows.append(
                {
                    "task": cell.task,
                    "modality": task.modality,
                    "arm": cell.arm,
                    "labels": cell.labels,
                    "seed": seed,
                    "metric": kinds.METRICS[task.kind],
                    "value": float(value),
                    "validation": chosen,
                    "setting": cell.setting,
                    "trials": cell.trials,
                    "train_flops": cell.flops,
                    "pretrain_flops": _pretrained(cell.arm, runs, seed),
                    "seconds": cell.seconds,
                }
            )
    return rows


def _pretrained(arm: str, runs: list[Trained], seed: int) -> float | None:
    """FLOPs of the checkpoint a seed started from; None where others paid them."""
    if arm == "imported":
        return None
    return runs[seed % len(runs)].flops if runs else 0.0


def comparisons(
    cells: list[Cell], task: Task, pairs: Sequence[tuple[str, str]] | None = None
) -> list[Row]:
    """Every arm against scratch, and every pretrained arm against classical, per budget.

    Or the pairs of arm and baseline given, those that are there.
    """
    at = {(cell.arm, cell.labels): scores(cell, task) for cell in cells}
    arms = list(dict.fromkeys(cell.arm for cell in cells))
    if pairs is None:
        pairs = [(arm, "scratch") for arm in arms if arm != "scratch"]
        pairs += [(arm, "classical") for arm in arms if arm not in ("scratch", "classical")]
    rows = []
    for arm, baseline in pairs:
        if not {arm, baseline} <= set(arms):
            continue
        for labels in task.config.budgets:
            pair = at[arm, labels], at[baseline, labels]
            if len(pair[0]) < 2:
                continue
            found = paired_difference(*pair)
            place = {"task": task.name, "labels": labels, "arm": arm, "baseline": baseline}
            rows.append(place | dataclasses.asdict(found))
    return rows


def with_holm(rows: list[Row]) -> list[Row]:
    """Adds Holm's adjusted p over the whole table."""
    if not rows:
        return rows
    adjusted = holm(np.array([row["p"] for row in rows]))
    return [row | {"p_adjusted": float(p)} for row, p in zip(rows, adjusted, strict=True)]


def equivalents(cells: list[Cell], task: Task, steps: dict[str, int | None]) -> list[Row]:
    """Label multiplier of every arm at every budget.

    Args:
      cells: of the task.
      task: the task.
      steps: per arm, fine-tuning steps to scratch's final quality at the largest budget.
    """
    budgets = task.config.budgets
    at = {(cell.arm, cell.labels): scores(cell, task) for cell in cells}
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


def ledger(
    cells: list[Cell], task: Task, pretraining: Pretraining, multipliers: list[Row]
) -> list[Row]:
    """What each arm cost at the smallest budget, and when its pretraining pays back."""
    budgets = task.config.budgets
    at = {(cell.arm, cell.labels): cell for cell in cells}
    rows = []
    for arm in dict.fromkeys(cell.arm for cell in cells):
        cell, runs = at[arm, budgets[0]], pretraining.get(arm, [])
        known = [row for row in multipliers if (row["arm"], row["labels"]) == (arm, budgets[0])]
        distinct = None, "scratch is what the others are held against"
        if arm == "classical":
            distinct = None, "no network: its arithmetic is not counted"
        elif arm == "imported":
            distinct = None, "pretrained by others, at a cost that is not known"
        elif arm != "scratch":
            distinct = None, "needs the scratch arm, 2 budgets and 2 seeds"
            if known:
                fields = [field.name for field in dataclasses.fields(Equivalent)]
                equivalent = Equivalent(**{name: known[0][name] for name in fields})
                scratch = np.array([at["scratch", labels].flops for labels in budgets])
                distinct = distinct_flops(np.array(budgets), scratch, budgets[0], equivalent)
        row = ledger_row(
            task.name,
            arm,
            pretrain_flops=None if arm == "imported" else sum(run.flops for run in runs),
            pretrain_seconds=None if arm == "imported" else sum(run.seconds for run in runs),
            adapt_flops=cell.flops,
            adapt_seconds=cell.seconds,
            distinct=distinct,
        )
        rows.append(dataclasses.asdict(row))
    return rows


def leakage_rows(task: Task) -> list[Row]:
    """What the search for near-duplicates found, per pretraining corpus."""
    return [
        {
            "task": task.name,
            "arm": arm,
            "method": found.method,
            "checked": found.checked,
            "found": found.found,
            "removed": len(found.removed),
        }
        for arm, found in task.leakage.items()
    ]


def unsearched(task: Task) -> Row:
    """In place of a search: what an imported model was pretrained on is not at hand."""
    return {
        "task": task.name,
        "arm": "imported",
        "method": "not searched: its pretraining data is not published with it",
        "checked": None,
        "found": None,
        "removed": None,
    }
