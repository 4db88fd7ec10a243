"""What a study of one model for many tasks says: over all tasks, budget by budget."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from fm.report import formats, plots
from fm.report.schema import parse, task_title
from fm.report.verdict import NOTHING, outcome

# The claims: arm, baseline, in words, and by how many points it may be behind and still hold.
_CLAIMS = (
    ("joint", "scratch", "joint pretraining against distinct networks from scratch", None),
    ("joint", "in_domain", "joint pretraining against pretraining on the one format", 1.0),
    ("instruction_tuned", "joint", "one network asked in words against a head for each task", 2.0),
    (
        "instruction_tuned",
        "scratch",
        "one network asked in words against networks from scratch",
        None,
    ),
    ("joint", "classical", "joint pretraining against the classical baselines", None),
)

# Ways of asking, see `fm.study.multitask_instructions`.
CONDITIONS = ("held out", "trained", "dropped", "swapped")


def claims(results: dict[str, Any]) -> list[str]:
    """A sentence for each claim that was compared; `results` is tidy."""
    made = []
    for arm, baseline, words, slack in _CLAIMS:
        rows = [
            row
            for row in results["comparisons"]
            if (row["arm"], row["baseline"]) == (arm, baseline)
        ]
        budgets = sorted({row["labels"] for row in rows})
        parts = [
            _at(budget, [r for r in rows if r["labels"] == budget], slack) for budget in budgets
        ]
        if parts:
            made.append(f"{words}: {'; '.join(parts)}.")
    return made


def multitask_headline(results: dict[str, Any]) -> str:
    """The claims as one text.

    Raises:
        UserError: `results` is not of schema 1.
    """
    found = claims(parse(results))
    if not found:
        return NOTHING
    return " ".join(sentence[:1].upper() + sentence[1:] for sentence in found)


def multitask_budgets(results: dict[str, Any]) -> list[int]:
    """Those compared in a study of many tasks; none in others."""
    if results["experiment"] != "unify":
        return []
    return sorted({row["labels"] for row in results["comparisons"]})


def overview_grid(results: dict[str, Any], labels: int) -> Figure | None:
    """Tasks by pairs of arms, the differences at one budget."""
    rows = [row for row in results["comparisons"] if row["labels"] == labels]
    cells = {
        (task_title(results, row["task"]), f"{row['arm']} − {row['baseline']}"): row for row in rows
    }
    lines, columns = (list(dict.fromkeys(place[n] for place in cells)) for n in (0, 1))
    return plots.difference_grid(lines, columns, cells)


def pretraining_shares(results: dict[str, Any]) -> list[tuple[str, float]]:
    """Formats and their share of the pieces that the joint model saw in pretraining."""
    rows = [row for row in results["curves"] if row["arm"] == "joint" and row["share"] is not None]
    return [(row["task"], row["share"]) for row in rows]


def _at(labels: int, rows: list[dict[str, Any]], slack: float | None) -> str:
    """How many tasks it holds for at one budget, and which it does worse on."""
    found = {row["task"]: outcome(row) for row in rows}
    ahead = [task for task, kind in found.items() if kind == "better"]
    behind = [task for task, kind in found.items() if kind == "worse"]
    mean = sum(row["difference"] for row in rows) / len(rows)
    text = f"at {labels} labels ahead on {len(ahead)} of {len(found)} tasks"
    text += f", behind on {len(behind)}" + (f" ({', '.join(behind)})" if behind else "")
    if slack is not None:
        within = sum(row["difference"] >= -slack / 100 for row in rows)
        text += f", within {slack:g} point{'s' * (slack != 1)} or better on {within}"
    return f"{text}, {formats.points(mean)} points on average".replace("\N{MINUS SIGN}", "-")


def instruction_following_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per task: for each of `CONDITIONS` the metric, and the share of its own answers."""
    found = {(row["task"], row["condition"]): row for row in results["following"]}
    return [
        {"task": task, "metric": metric, "cells": [found.get((task, each)) for each in CONDITIONS]}
        for task, metric in dict.fromkeys((row["task"], row["metric"]) for row in found.values())
    ]
