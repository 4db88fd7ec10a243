"""Forest plots: differences with intervals under headings, and both in figures beside them."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from matplotlib.transforms import blended_transform_factory

from fm.report import formats, style
from fm.report.decisions import outcome
from fm.report.records import Difference
from fm.report.style import BETTER, WORSE

OUTCOME_COLORS = {"better": BETTER, "worse": WORSE}
# Draws a row at its place, downwards.
DrawRow = Callable[[Axes, int], None]
# Characters of a heading or of the axis's label, and of a row's name, that fit in a line.
_WIDE_CHARACTERS, _NAME_CHARACTERS = 54, 20


def forest_plot(
    groups: Sequence[tuple[str, Sequence[tuple[str, DrawRow]]]],
    x_label: str,
    row_height: float = 0.2,
) -> Figure:
    """Returns a forest plot: each group's heading over its rows, zero as a vertical line.

    Headings stand over the whole width, on lines without data, so that long ones take no room from
    the plot; they and the axis's label are wrapped, and the figure is as high as its lines.

    Args:
      groups: (heading, rows), each row a name and a function that draws it.
      x_label: of the axis.
      row_height: of a row, in inches.
    """
    headings: list[tuple[int, str]] = []
    rows: list[tuple[int, str, DrawRow]] = []
    place = 0
    for heading, members in groups:
        for line in style.wrap(heading, _WIDE_CHARACTERS).split("\n"):
            headings.append((place, line))
            place += 1
        for name, draw in members:
            rows.append((place, style.wrap(name, _NAME_CHARACTERS, 1), draw))
            place += 1
    x_label = style.wrap(x_label, _WIDE_CHARACTERS + 8, 3)
    with style.plot_style():
        figure = style.new_figure(row_height * place + 0.62 + 0.13 * (1 + x_label.count("\n")))
        axes = figure.add_subplot()
        axes.axvline(0, color=style.INK, linewidth=1)
        for n, _, draw in rows:
            draw(axes, n)
        axes.margins(x=0.08)
        axes.set_ylim(place - 0.4, -0.6)
        axes.yaxis.set_major_locator(FixedLocator([n for n, *_ in rows]))
        axes.set_yticklabels([name for _, name, _ in rows], fontsize=9)
        for n, line in headings:
            axes.annotate(
                line,
                (0.012, n),
                xycoords=blended_transform_factory(figure.transFigure, axes.transData),
                va="center",
                fontsize=9,
                fontweight="bold",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
                annotation_clip=False,
            ).set_in_layout(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        # Of the figure, since one of the axes as wide as this would take their room.
        figure.supxlabel(x_label, fontsize=9)
    return figure


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
        fontsize=9,
        color=style.readable_shade(color),
        annotation_clip=False,
    )


def draw_difference(axes: Axes, place: int, row: Difference, shown: str = "") -> None:
    """Draws a difference of scores in percentage points, see `draw_row`; nothing if it is None.

    Its look is that of its outcome, or of `shown`.
    """
    if row.difference is None:
        return
    ends, bounds = None, ""
    if row.low is not None and row.high is not None:
        ends = (100 * row.low, 100 * row.high)
        bounds = f" [{formats.interval(row.low, row.high)}]"
    text = f"{formats.points(row.difference)}{bounds}"
    draw_row(axes, place, shown or outcome(row), 100 * row.difference, ends, text)
