"""Rows of a forest plot: a difference with its interval, and both in figures beside it."""

from matplotlib.axes import Axes

from fm.report import formats, style
from fm.report.decisions import outcome
from fm.report.schema import Difference
from fm.report.style import BETTER, WORSE

OUTCOME_COLORS = {"better": BETTER, "worse": WORSE}


def draw_row(
    axes: Axes,
    place: int,
    shown: str,
    difference: float,
    ends: tuple[float, float] | None,
    text: str,
) -> None:
    """Draws a difference with its interval; color and marker tell better from worse.

    Args:
      axes: of the plot.
      place: of the row, downwards.
      shown: the outcome, "better", "worse" or another, which is drawn gray and hollow.
      difference: in the units of the axis.
      ends: of the interval; None where there is none.
      text: written to the right of the axes.
    """
    color = OUTCOME_COLORS.get(shown, "#777777")
    if ends is not None:
        axes.plot(ends, [place, place], color=color, linewidth=1.6)
    axes.plot(
        [difference],
        [place],
        color=color,
        marker="D" if shown == "worse" else "o",
        markerfacecolor=color if shown in OUTCOME_COLORS else "white",
        markersize=5.5,
    )
    axes.annotate(
        text,
        (1.01, place),
        xycoords=axes.get_yaxis_transform(),
        va="center",
        fontsize=8.5,
        color=style.readable_shade(color),
        annotation_clip=False,
    )


def draw_difference(axes: Axes, place: int, row: Difference) -> None:
    """Draws a difference of scores in percentage points, see `draw_row`."""
    ends, bounds = None, ""
    if row.low is not None and row.high is not None:
        ends = (100 * row.low, 100 * row.high)
        bounds = f" [{formats.interval(row.low, row.high)}]"
    text = f"{formats.points(row.difference)}{bounds}"
    draw_row(axes, place, outcome(row), 100 * (row.difference or 0.0), ends, text)
