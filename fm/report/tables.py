"""Cells of one arm and budget over their seeds: a mean and a t interval."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fm.report import formats, schema, style
from fm.report.schema import Row, parse, task_names, task_title
from fm.report.verdict import outcome

# Student's t, two-sided 95%, for 1 to 30 degrees of freedom.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclasses.dataclass(frozen=True)
class SeedMean:
    """One arm at one budget: `mean` over `seeds` runs, `low` to `high` None with a single run."""

    num_labels: int
    mean: float
    low: float | None
    high: float | None
    seeds: int


def seed_means(results: dict[str, Any], task: str) -> dict[str, list[SeedMean]]:
    """The points of every arm of `task`, by labels, over the seeds."""
    values: dict[str, dict[int, list[float]]] = {}
    for cell in results["cells"]:
        if cell["task"] == task and None not in (cell["value"], cell["labels"]):
            values.setdefault(cell["arm"], {}).setdefault(cell["labels"], []).append(cell["value"])
    return {
        arm: [seed_mean(labels, by_labels[labels]) for labels in sorted(by_labels)]
        for arm, by_labels in values.items()
    }


def chance_level(results: dict[str, Any], task: str) -> float | None:
    """One over the number of classes, or None where the results do not list them."""
    for row in results["tasks"]:
        if row["name"] == task and row["classes"]:
            return 1 / len(row["classes"])
    return None


def metric_name(results: dict[str, Any], task: str) -> str:
    """The name of the task's metric."""
    rows = [*results["tasks"], *results["cells"]]
    names = [row["metric"] for row in rows if task in (row.get("name"), row.get("task"))]
    return next((name for name in names if name), "accuracy")


def t95(degrees: int) -> float:
    """The two-sided 95% quantile of Student's t (within 0.001 past the table)."""
    return (
        _T95[degrees - 1] if degrees <= len(_T95) else 1.95996 + 2.3722 / degrees + 2.8 / degrees**2
    )


def seed_mean(labels: int, values: list[float]) -> SeedMean:
    """The mean of some runs and its 95% t interval."""
    mean, runs = float(np.mean(values)), len(values)
    if runs == 1:
        return SeedMean(labels, mean, None, None, 1)
    half = t95(runs - 1) * float(np.std(values, ddof=1)) / math.sqrt(runs)
    return SeedMean(labels, mean, mean - half, mean + half, runs)


_HEADINGS = (
    "task",
    "labels",
    "arm - baseline",
    "points",
    "95% interval",
    "p",
    "Holm p",
    "seeds",
    "",
)
_WIDTH = 100
_COLUMNS = (
    *("task", "labels", "arm", "baseline", "difference", "low", "high", "p", "p_adjusted"),
    *("seeds", "items", "run_variance", "item_variance"),
)


def comparison_rows(results: dict[str, Any]) -> list[Row]:
    """The comparisons of tidy `results` by task, baseline, arm and labels, in the fixed orders."""
    tasks = {task: place for place, task in enumerate(task_names(results))}
    rows = results["comparisons"]
    names = {row["arm"] for row in rows} | {row["baseline"] for row in rows}
    place = {name: number for number, name in enumerate(schema.ordered(names))}
    return sorted(
        rows,
        key=lambda row: (
            tasks.get(row["task"], len(tasks)),
            place[row["baseline"]],
            place[row["arm"]],
            row["labels"] or 0,
        ),
    )


def text_table(results: dict) -> str:
    """The comparison table in plain text, at most 100 columns wide, without a last newline.

    Differences are in percentage points, higher better.

    Raises:
        UserError: `results` is not of schema 1.
    """
    rows = comparison_rows(parse(results))
    if not rows:
        return "No comparisons."
    lines = [_HEADINGS, *(_line(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    left = {0, 2, 8}
    text = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    lines = [text[0], "-" * max(map(len, text)), *text[1:]]
    return "\n".join(line[:_WIDTH] for line in lines)


def csv_table(results: dict[str, Any]) -> str:
    """The comparisons of tidy `results` as CSV: fractions and variances, unrounded."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in comparison_rows(results):
        parts = row["variance"] or {}
        variances = {"run_variance": parts.get("run"), "item_variance": parts.get("item")}
        writer.writerow(row | variances)
    return out.getvalue()


def _line(row: Row) -> tuple[str, ...]:
    cells = (
        row["task"],
        formats.count(row["labels"]),
        f"{_fit(row['arm'], 10)} - {_fit(row['baseline'], 10)}",
        formats.points(row["difference"]),
        formats.interval(row["low"], row["high"]),
        formats.p_value(row["p"]),
        formats.p_value(row["p_adjusted"]),
        formats.count(row["seeds"]),
        outcome(row),
    )
    ascii_figures = str.maketrans({"\N{MINUS SIGN}": "-", formats.MISSING: "-"})
    return (_fit(cells[0], 12), *(cell.translate(ascii_figures) for cell in cells[1:]))


def _fit(text: str, width: int) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= width else text[: width - 3] + "..."


# Unit, in words, and how a figure of it is written.
COST_UNITS = (
    ("flops", "computing", formats.flops),
    ("seconds", "time", formats.seconds),
    ("parameters", "parameters kept", formats.si_prefixed),
)


def amortized_cost_table(results: dict[str, Any]) -> dict[str, Any]:
    """For each unit known a line a way, a cell for each number of tasks, at the fewest labels."""
    rows, known = _at_fewest(results), cost_units(results)
    counts = sorted({row["tasks"] for row in rows})
    found = {(row["way"], row["tasks"]): row for row in rows}
    ways = schema.ordered({row["way"] for row in rows})
    groups = [
        (words, [(way, [write(found[way, k][unit]) for k in counts]) for way in ways])
        for unit, words, write in known
    ]
    return {"counts": counts, "groups": groups, "labels": rows[0]["labels"] if rows else None}


def cost_units(results: dict[str, Any]) -> list[tuple[str, str, Callable]]:
    """Those of `UNITS` that the bill is known in; parameters were not always recorded."""
    return [each for each in COST_UNITS if all(row[each[0]] is not None for row in results["bill"])]


def break_even_rows(results: dict[str, Any]) -> list[Row]:
    """One row a pair of ways: the K by each unit, on how many tasks, and what kept others out."""
    every = len(results["tasks"])
    return [
        {
            "way": row["way"],
            "against": row["against"],
            "cells": [_from(row, unit) for unit, _, _ in cost_units(results)],
            "compared": f"{len(row['tasks'] or [])} of {every}",
            "note": _never(results, row),
        }
        for row in results["break_even"]
    ]


def amortized_cost_figure(results: dict[str, Any], unit: str) -> Figure | None:
    """The bill in one unit against the number of tasks, a line a way, at the fewest labels."""
    rows = [row for row in _at_fewest(results) if row[unit] is not None]
    if len({row["tasks"] for row in rows}) < 2:
        return None
    height = 3.0
    with style.plot_style():
        drawn = style.new_figure(height)
        axes = drawn.add_subplot()
        ends = []
        for way in schema.ordered({row["way"] for row in rows}):
            arm = schema.describe(way)
            own = [row for row in rows if row["way"] == way]
            x, y = [row["tasks"] for row in own], [row[unit] for row in own]
            axes.plot(x, y, color=arm.color, linestyle=arm.linestyle, marker=arm.marker)
            ends.append((y[-1], arm))
        axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.si_prefixed(value)))
        axes.set_xlabel("tasks")
        axes.set_ylabel({"flops": "FLOPs", "seconds": "seconds"}.get(unit, unit))
        style.label_line_ends(axes, ends, height - 0.8)
    return drawn


def _at_fewest(results: dict[str, Any]) -> list[Row]:
    fewest = min((row["labels"] for row in results["bill"]), default=None)
    rows = [row for row in results["bill"] if row["labels"] == fewest]
    return sorted(rows, key=lambda row: row["tasks"])


def _from(row: Row, unit: str) -> str:
    """From which number of tasks on, or until which."""
    if not row["tasks"]:
        return formats.MISSING
    first, last = row[unit], row[f"{unit}_until"]
    if first is not None:
        return "always" if first == 1 else f"from {formats.count(first)} tasks"
    return "never" if last is None else f"only up to {formats.count(last)}"


def _never(results: dict[str, Any], row: Row) -> str:
    """Which way does not reach the other's quality, and on what."""
    missed: dict[str, list[str]] = {}
    for each in row["never"] or []:
        missed.setdefault(each["way"], []).append(task_title(results, each["task"]))
    return "; ".join(
        f"{way} never gets there on {', '.join(names)}" for way, names in missed.items()
    )
