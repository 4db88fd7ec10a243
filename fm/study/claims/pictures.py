"""What the pictures of several claims have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

Row = dict[str, Any]


def draw_differences(
    axes: Axes, rows: Sequence[Row], key: str, *, shift: float = 0.0, **options: Any
) -> None:
    """Draws differences in percentage points with their intervals, as a line.

    Args:
      axes: with a logarithmic x axis.
      rows: of `fm.study.comparisons.difference_rows`.
      key: field of the rows along the x axis.
      shift: moves the points sideways, so that intervals of several lines do not overlap.
      **options: color, label and the like.
    """
    x = [row[key] * 1.06**shift for row in rows]
    y = [100 * row["difference"] for row in rows]
    below = [100 * (row["difference"] - row["low"]) for row in rows]
    above = [100 * (row["high"] - row["difference"]) for row in rows]
    given: dict[str, Any] = {"marker": "o"} | options
    axes.errorbar(x, y, [below, above], **given)


def draw_no_difference(axes: Axes, margin: float) -> None:
    """Draws the line of no difference and, in gray, the margin of equivalence."""
    axes.axhspan(-100 * margin, 100 * margin, color="#ececec", zorder=0)
    axes.axhline(0, color="#222222", linewidth=0.8)


def log_axis(axes: Axes, values: Sequence[int], label: str) -> None:
    """Makes the x axis logarithmic, with ticks at the given values."""
    axes.set_xscale("log")
    axes.set_xticks(list(values), [f"{each:,}" for each in values])
    axes.minorticks_off()
    axes.set_xlabel(label)
