"""The pictures: every case under the roof of its machine, and cost against size."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fm.report import formats, style

# Okabe and Ito's (2008) colours, told apart without red and green.
_COLOURS = {
    "gemm": "#000000",
    "attention": "#0072B2",
    "step": "#D55E00",
    "loss": "#009E73",
    "decode": "#CC79A7",
}
_MARKERS = {"float32": "o", "bfloat16": "^"}
_LINES = {"float32": "-", "bfloat16": (0, (5, 2))}


def roofline(results: dict[str, Any]) -> Figure | None:
    """FLOP/s against FLOPs per byte that must move (Williams et al. 2009); None without points."""
    roof = results["roof"]
    points = {
        (row["what"], row["case"], row["dtype"], row["implementation"]): row
        for row in results["rows"]
        if row["what"] in _COLOURS and row["flops_per_s"] and row["bytes"]
    }
    if not points or not roof:
        return None
    places = [(row["flops"] / row["bytes"], row["flops_per_s"], row) for row in points.values()]
    with style.plot_style():
        drawn = style.new_figure(4.2)
        axes = drawn.add_subplot()
        left = min(min(x for x, _, _ in places) / 2, 1.0)
        right = max(max(x for x, _, _ in places) * 2, 1e3)
        for dtype, peak in roof["flops_per_s"].items():
            knee = peak / roof["bytes_per_s"]
            x, y = [left, knee, right], [left * roof["bytes_per_s"], peak, peak]
            axes.plot(
                x,
                y,
                color=style.FAINT,
                linestyle=_LINES[dtype],
                linewidth=1.4,
                label=f"{dtype}, {formats.si_prefixed(peak, ' ')}FLOP/s",
            )
        for what, colour in _COLOURS.items():
            for dtype, marker in _MARKERS.items():
                mine = [
                    (x, y) for x, y, row in places if (row["what"], row["dtype"]) == (what, dtype)
                ]
                if mine:
                    hollow = dtype == "bfloat16"
                    axes.plot(
                        *zip(*mine, strict=True),
                        linestyle="none",
                        marker=marker,
                        color=colour,
                        markerfacecolor="white" if hollow else colour,
                        label=f"{what}, {dtype}",
                    )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(left, right)
        axes.set_xlabel("FLOPs per byte that must move (log scale)")
        axes.set_ylabel("FLOP/s (log scale)")
        axes.yaxis.set_major_formatter(FuncFormatter(_power))
        axes.xaxis.set_major_formatter(FuncFormatter(_power))
        drawn.legend(loc="outside lower center", ncols=2, fontsize=8.5)
    return drawn


def scaling(results: dict[str, Any]) -> Figure | None:
    """Time against each size with the fitted power; None without fits."""
    fits = results["scaling"]
    if not fits:
        return None
    columns, lines = 2, (len(fits) + 1) // 2
    with style.plot_style():
        drawn = style.new_figure(0.4 + 2.1 * lines)
        panels = drawn.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        for axes, fit in zip(panels, fits, strict=False):
            _panel(axes, fit)
        for axes in panels[: len(fits)]:
            _time_axis(axes)
        for axes in panels[len(fits) :]:
            axes.set_axis_off()
        drawn.supylabel("time of a step (log scale)", fontsize=10, color=style.INK)
    return drawn


def _panel(axes: Axes, fit: dict[str, Any]) -> None:
    values, seconds = fit["values"], fit["seconds"]
    axes.set_xscale("log")
    axes.set_yscale("log")
    # The fitted line goes through the geometric middle of the points.
    x0 = _middle(values)
    y0 = _middle(seconds)
    line = [y0 * (value / x0) ** fit["exponent"] for value in values]
    axes.plot(values, line, color=style.FAINT, linewidth=1.2)
    axes.plot(values, seconds, linestyle="none", marker="o", color="#0072B2")
    axes.set_title(f"{fit['axis']}: power {fit['exponent']:.2f}")
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_power))
    axes.tick_params(labelsize=8.5)


def _time_axis(axes: Axes) -> None:
    """Ticks at powers of ten, or between them where the panels span less than two."""
    low, high = axes.get_ylim()
    decades = [10.0**power for power in range(-7, 4)]
    ticks = [each for each in decades if low <= each <= high]
    if len(ticks) < 2:
        ticks = [each * step for each in decades for step in (1, 2, 5)]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_duration))


def _power(value: float, _: Any) -> str:
    """A tick: `100M`, `10G`, `256`, `0.1`."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{prefix}"
    return f"{value:g}"


def _duration(value: float, _: Any) -> str:
    """A tick: `10 ms`, `0.3 ms`, `1 s`."""
    return f"{value:g} s" if value >= 1 else f"{value * 1e3:g} ms"


def _middle(figures: list[float]) -> float:
    product = 1.0
    for each in figures:
        product *= each ** (1.0 / len(figures))
    return product
