"""The bill for K tasks on the page: what each way costs, and from which K on it is cheaper."""

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fm.report import arms, canvas, formats
from fm.report.schema import Row, title

# Unit, in words, and how a figure of it is written.
UNITS = (
    ("flops", "computing", formats.flops),
    ("seconds", "time", formats.seconds),
    ("parameters", "parameters kept", formats.short),
)


def table(results: dict[str, Any]) -> dict[str, Any]:
    """For each unit known a line a way, a cell for each number of tasks, at the fewest labels."""
    rows, known = _at_fewest(results), units(results)
    counts = sorted({row["tasks"] for row in rows})
    found = {(row["way"], row["tasks"]): row for row in rows}
    ways = arms.ordered({row["way"] for row in rows})
    groups = [
        (words, [(way, [write(found[way, k][unit]) for k in counts]) for way in ways])
        for unit, words, write in known
    ]
    return {"counts": counts, "groups": groups, "labels": rows[0]["labels"] if rows else None}


def units(results: dict[str, Any]) -> list[tuple[str, str, Callable]]:
    """Those of `UNITS` that the bill is known in; parameters were not always recorded."""
    return [each for each in UNITS if all(row[each[0]] is not None for row in results["bill"])]


def break_evens(results: dict[str, Any]) -> list[Row]:
    """One row a pair of ways: the K by each unit, on how many tasks, and what kept others out."""
    every = len(results["tasks"])
    return [
        {
            "way": row["way"],
            "against": row["against"],
            "cells": [_from(row, unit) for unit, _, _ in units(results)],
            "compared": f"{len(row['tasks'] or [])} of {every}",
            "note": _never(results, row),
        }
        for row in results["break_even"]
    ]


def figure(results: dict[str, Any], unit: str) -> Figure | None:
    """The bill in one unit against the number of tasks, a line a way, at the fewest labels."""
    rows = [row for row in _at_fewest(results) if row[unit] is not None]
    if len({row["tasks"] for row in rows}) < 2:
        return None
    height = 3.0
    with canvas.style():
        drawn = canvas.figure(height)
        axes = drawn.add_subplot()
        ends = []
        for way in arms.ordered({row["way"] for row in rows}):
            arm = arms.describe(way)
            own = [row for row in rows if row["way"] == way]
            x, y = [row["tasks"] for row in own], [row[unit] for row in own]
            axes.plot(x, y, color=arm.colour, linestyle=arm.line, marker=arm.marker)
            ends.append((y[-1], arm))
        axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.short(value)))
        axes.set_xlabel("tasks")
        axes.set_ylabel({"flops": "FLOPs", "seconds": "seconds"}.get(unit, unit))
        canvas.end_labels(axes, ends, height - 0.8)
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
        missed.setdefault(each["way"], []).append(title(results, each["task"]))
    return "; ".join(
        f"{way} never gets there on {', '.join(names)}" for way, names in missed.items()
    )
