"""Differences as a grid of coloured cells: what is better and what is worse, at one glance."""

from collections.abc import Mapping, Sequence

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fm.report import arms, canvas, formats
from fm.report.schema import Row
from fm.report.verdict import verdict

_COLOURS = {"better": arms.BETTER, "worse": arms.WORSE}
_PALE, _STRONG = 0.25, 0.9
# Characters that fit side by side under the cells; longer names stand aslant.
_LEVEL = 48


def grid(
    lines: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[str, str], Row],
    rules: Sequence[int] = (),
) -> Figure | None:
    """Lines by columns, in each cell a difference in points.

    Blue is better, vermillion worse, the stronger the larger; where the interval holds zero, or
    there is none, the cell is grey.

    Args:
        lines: from the top.
        columns: from the left.
        cells: rows with `difference`, `low` and `high`, by line and column.
        rules: columns before which there is a line.
    """
    known = {place: row for place, row in cells.items() if row["difference"] is not None}
    if not known:
        return None
    clear = [abs(row["difference"]) for row in known.values() if verdict(row) in _COLOURS]
    most = max(clear, default=1.0) or 1.0
    size = min(9.0, 62.0 / len(columns))
    with canvas.style():
        drawn = canvas.figure(1.1 + 0.36 * len(lines))
        axes = drawn.add_subplot()
        for (line, column), row in known.items():
            place = columns.index(column), lines.index(line)
            colour = _shaded(row, most)
            axes.add_patch(
                Rectangle(place, 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5)
            )
            dark = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] < 0.55
            axes.annotate(
                formats.points(row["difference"]),
                (place[0] + 0.5, place[1] + 0.5),
                ha="center",
                va="center",
                fontsize=size,
                color="white" if dark else canvas.INK,
            )
        for rule in rules:
            axes.axvline(rule, color=canvas.INK, linewidth=1)
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(lines), 0)
        axes.set_yticks([n + 0.5 for n in range(len(lines))], lines, fontsize=9)
        axes.set_xticks([n + 0.5 for n in range(len(columns))], columns, fontsize=8.5)
        if max(map(len, columns)) * len(columns) > _LEVEL:
            for text in axes.get_xticklabels():
                text.set(rotation=35, ha="right", rotation_mode="anchor")
        axes.tick_params(length=0)
        axes.grid(False)
        for side in axes.spines.values():
            side.set_visible(False)
    return drawn


def _shaded(row: Row, most: float) -> tuple[float, float, float]:
    name = _COLOURS.get(verdict(row))
    if name is None:
        return to_rgb("#ececec")
    share = _PALE + (_STRONG - _PALE) * abs(row["difference"]) / most
    red, green, blue = (1 - share * (1 - part) for part in to_rgb(name))
    return red, green, blue
