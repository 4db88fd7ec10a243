"""How plots look: size, type, colors, axes, direct labels, and the way to PNG.

The figures are narrow (4.7 inches) and dense (180 dots an inch): two fit side by side on a wide
screen. On a phone they are shown about 350 pixels wide, where type of 9 points is 9 pixels high.
"""

import colorsys
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from fm.report import formats
from fm.report.schema import Arm

WIDTH, DPI = 4.7, 180
# Smallest type of a figure, in points.
SMALL = 9
INK, FAINT = "#222222", "#8a8a8a"
BETTER, WORSE = "#0072B2", "#D55E00"
# Characters of 10 points that the width of a figure, and the room right of its lines, hold.
_LEGEND_CHARACTERS, _END_CHARACTERS = 52, 24
# From the end of the axes to the mark beside a name.
_MARK_POINTS = 8

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    # Names come from data: a dollar sign in one is a dollar sign, not mathematics.
    "text.parse_math": False,
}


@contextmanager
def plot_style() -> Iterator[None]:
    """Context manager that sets the report's fonts, grid and colors for figures drawn inside."""
    with mpl.rc_context(_STYLE):
        yield


def new_figure(height: float) -> Figure:
    """Returns an empty figure of the report's width, `height` inches high, without a window."""
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")


def to_png(figure: Figure, levels: int = 16) -> bytes:
    """Returns a figure as PNG bytes, deterministically, with `levels` levels per channel.

    Each channel is rounded to `levels` levels: 16 look the same in a line drawing, and the file,
    which the page carries inline, is a third of the size. Shaded figures need all 256.
    """
    out = io.BytesIO()
    with plot_style():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    step = 255 // (levels - 1)
    rounded = np.round(pixels / step).astype(np.uint8) * step
    imsave(
        out,
        rounded,
        format="png",
        dpi=DPI,
        metadata={"Software": "fm"},
        pil_kwargs={"optimize": True},
    )
    return out.getvalue()


def log_budget_axis(axes: Axes, budgets: Sequence[float]) -> None:
    """Makes the x axis logarithmic, with ticks at the measured label budgets only."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(budgets)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.count(float(value))))
    axes.set_xlim(budgets[0] / 1.12, budgets[-1] * 1.12)


def score_axis(axes: Axes, min_span: float = 10.0, floor: float = 0.0) -> None:
    """Makes the y axis one of scores in percent, with its present limits as far as they make sense.

    It spans `min_span` points or more, so that noise does not fill it, and ends at `floor` and at
    100, a little beyond so that marks there are whole.
    """
    low, high = axes.get_ylim()
    if high - low < min_span:
        middle = (low + high) / 2
        low, high = middle - min_span / 2, middle + min_span / 2
    low, high = (100 - (high - low), 100.0) if high > 100 else (low, high)
    low, high = (floor, min(100.0, floor + high - low)) if low < floor else (low, high)
    edge = 0.02 * (high - low)
    axes.set_ylim(low - edge * (low == floor), high + edge * (high == 100))
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))


def readable_shade(color: str) -> tuple[float, float, float]:
    """Returns the color as RGB, darkened until text in it is readable on white."""
    hue, light, saturation = colorsys.rgb_to_hls(*to_rgb(color))
    return colorsys.hls_to_rgb(hue, min(light, 0.33), saturation)


def wrap(text: str, width: int, max_lines: int = 2) -> str:
    """Returns the text in lines of at most `width` characters, at most `max_lines` of them.

    Lines end behind separators, such as those in `in_domain, optimizer.schedule=0.1`. What does not
    fit is cut from the middle: the names of variants differ at their ends.
    """
    text = " ".join(text.split())
    lines = _broken(text, width)
    size = min(len(text), width * max_lines) - 1
    while len(lines) > max_lines:
        head = size // 2
        lines = _broken(f"{text[:head]}…{text[len(text) - (size - head) :]}", width)
        size -= 1
    return "\n".join(lines)


def _broken(text: str, width: int) -> list[str]:
    """Returns the lines of a text, broken behind separators, or anywhere if there is none."""
    lines = [""]
    for part in re.findall(r"[^\s,_./=-]*[\s,_./=-]+|[^\s,_./=-]+", text):
        pieces = [part[start : start + width] for start in range(0, len(part.rstrip()), width)]
        for piece in pieces or [part]:
            if len((lines[-1] + piece).rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    return [line.strip() for line in lines]


def legend_below(figure: Figure, fontsize: float = 10, **options: Any) -> None:
    """Draws the legend of a figure below its axes, in as many columns as its names leave room for.

    The figure grows by the rows of the legend beyond the first two.
    """
    handles, labels = figure.axes[0].get_legend_handles_labels()
    labels = [wrap(label, _LEGEND_CHARACTERS) for label in labels]
    longest = max((len(line) for label in labels for line in label.split("\n")), default=1)
    # The line and the gap beside a name take about six characters.
    columns = max(1, min(4, int((_LEGEND_CHARACTERS + 6) * 10 / fontsize / (longest + 6))))
    columns = min(columns, options.pop("ncols", columns))
    rows = -(-len(labels) // columns) + sum(label.count("\n") for label in labels)
    figure.set_figheight(figure.get_figheight() + max(0, rows - 2) * fontsize * 1.4 / 72)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=fontsize, **options
    )


def label_line_ends(axes: Axes, ends: Sequence[tuple[float, Arm]], height: float) -> None:
    """Draws arms' names and markers at the right ends of their lines, without overlaps.

    Names that would take the room of the lines go into a legend below instead.

    Args:
      axes: with their final y limits.
      ends: the last y value and the arm of each line.
      height: approximate height of the axes in inches.
    """
    if max((len(arm.name) for _, arm in ends), default=0) > _END_CHARACTERS:
        for _, arm in ends:
            axes.plot(
                *([], []),
                color=arm.color or INK,
                linestyle=arm.linestyle,
                marker=arm.marker,
                label=arm.name,
            )
        figure = axes.get_figure(root=True)
        assert figure is not None
        legend_below(figure, fontsize=9)
        return
    low, high = axes.get_ylim()
    # Marks beside the axes are no data to scale them by.
    axes.set_ylim(low, high)
    gap = (high - low) * (12 / 72) / height
    placed: list[float] = []
    order = sorted(range(len(ends)), key=lambda index: ends[index][0])
    for index in order:
        wanted = ends[index][0]
        placed.append(max(wanted, placed[-1] + gap) if placed else wanted)
    # A group pushed up past its lines sinks by half of what it was pushed.
    for rank, index in enumerate(order):
        placed[rank] -= max(0.0, placed[rank] - ends[index][0]) / 2
    for rank in range(1, len(placed)):
        placed[rank] = max(placed[rank], placed[rank - 1] + gap)
    excess = max(0.0, placed[-1] - high) if placed else 0.0
    figure = axes.get_figure(root=True)
    assert figure is not None
    beside = ScaledTranslation(_MARK_POINTS / 72, 0, figure.dpi_scale_trans)
    for rank, index in enumerate(order):
        arm, y, transform = ends[index][1], placed[rank] - excess, axes.get_yaxis_transform()
        color = arm.color or INK
        axes.plot(
            *([1], [y]),
            color=color,
            marker=arm.marker,
            transform=transform + beside,
            clip_on=False,
        )
        axes.annotate(
            arm.name,
            (1, y),
            xytext=(_MARK_POINTS + 6, 0),
            textcoords="offset points",
            xycoords=transform,
            color=readable_shade(color),
            va="center",
            annotation_clip=False,
        )


def arm_line(arm: Arm) -> dict[str, Any]:
    """Returns color, line style and marker of an arm, as matplotlib's `plot` takes them."""
    return {"color": arm.color, "linestyle": arm.linestyle, "marker": arm.marker}
