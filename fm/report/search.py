"""The scores of a search's recipes as a table in text and as a plot."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from fm.report.style import new_figure, plot_style

_MOST_SHOWN = 30


def trial_name(row: dict[str, Any]) -> str:
    """Returns what a trial changes, such as "mask_ratio=0.75, steps=800"."""
    changes = [f"{path.rsplit('.', 1)[-1]}={text}" for path, text in row["values"].items()]
    return ", ".join(changes) or "as it is"


def search_table(results: dict[str, Any]) -> str:
    """Returns a line per trial, the best first: score with its 95% interval, seconds, changes."""
    lines = [f"{'score':>7}  {'95% interval':16}{'seconds':>8}  recipe"]
    for row in _by_score(results["trials"]):
        score, interval = "failed", ""
        if row["score"] is not None:
            score = f"{100 * row['score']:.2f}"
        if row["low"] is not None:
            interval = f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        lines.append(f"{score:>7}  {interval:16}{row['seconds']:8.0f}  {trial_name(row)}")
    return "\n".join(lines)


def search_figure(results: dict[str, Any]) -> Figure:
    """Returns a plot of the trials' scores with their 95% intervals, the best at the top."""
    rows = [row for row in _by_score(results["trials"]) if row["score"] is not None]
    shown = rows[:_MOST_SHOWN]
    with plot_style():
        figure = new_figure(1.6 + 0.3 * len(shown))
        axes = figure.subplots()
        for place, row in enumerate(reversed(shown)):
            score = 100 * row["score"]
            color = "#0072B2" if row["values"] else "#000000"
            if row["low"] is not None:
                ends = [100 * row["low"], 100 * row["high"]]
                axes.plot(ends, [place, place], color=color, linewidth=1.2)
            axes.plot([score], [place], marker="o", color=color, linestyle="")
        names = ["\n".join(textwrap.wrap(trial_name(row), 40)) for row in reversed(shown)]
        axes.set_yticks(range(len(shown)), names)
        more = f"; the best {len(shown)} of {len(rows)}" if len(rows) > len(shown) else ""
        axes.set_xlabel(f"{results['metric']} (95% interval)")
        title = f"{results['arm']} on the development part of {results['task']}{more}"
        figure.suptitle(title, x=0.01, horizontalalignment="left")
    return figure


def _by_score(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["score"] is None, -(row["score"] or 0.0)))
