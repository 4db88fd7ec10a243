"""Cells of one arm and budget over their seeds: a mean and a t interval."""

import dataclasses
import math
from typing import Any

import numpy as np

# Student's t, two-sided 95%, for 1 to 30 degrees of freedom.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclasses.dataclass(frozen=True)
class Point:
    """One arm at one budget: `mean` over `seeds` runs, `low` to `high` None with a single run."""

    labels: int
    mean: float
    low: float | None
    high: float | None
    seeds: int


def summarise(results: dict[str, Any], task: str) -> dict[str, list[Point]]:
    """The points of every arm of `task`, by labels, over the seeds."""
    values: dict[str, dict[int, list[float]]] = {}
    for cell in results["cells"]:
        if cell["task"] == task and None not in (cell["value"], cell["labels"]):
            values.setdefault(cell["arm"], {}).setdefault(cell["labels"], []).append(cell["value"])
    return {
        arm: [point(labels, by_labels[labels]) for labels in sorted(by_labels)]
        for arm, by_labels in values.items()
    }


def chance(results: dict[str, Any], task: str) -> float | None:
    """One over the number of classes, or None where the results do not list them."""
    for row in results["tasks"]:
        if row["name"] == task and row["classes"]:
            return 1 / len(row["classes"])
    return None


def metric(results: dict[str, Any], task: str) -> str:
    """The name of the task's metric."""
    rows = [*results["tasks"], *results["cells"]]
    names = [row["metric"] for row in rows if task in (row.get("name"), row.get("task"))]
    return next((name for name in names if name), "accuracy")


def t95(degrees: int) -> float:
    """The two-sided 95% quantile of Student's t (within 0.001 past the table)."""
    return (
        _T95[degrees - 1] if degrees <= len(_T95) else 1.95996 + 2.3722 / degrees + 2.8 / degrees**2
    )


def point(labels: int, values: list[float]) -> Point:
    """The mean of some runs and its 95% t interval."""
    mean, runs = float(np.mean(values)), len(values)
    if runs == 1:
        return Point(labels, mean, None, None, 1)
    half = t95(runs - 1) * float(np.std(values, ddof=1)) / math.sqrt(runs)
    return Point(labels, mean, mean - half, mean + half, runs)
