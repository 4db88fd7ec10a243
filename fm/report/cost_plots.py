"""Plots of what pretraining and adapting cost: loss curves, CPU time, cost by number of tasks."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fm.report import formats, style
from fm.report.schema import Results
from fm.report.tables import CPU_SECONDS, amortized_cost_at_fewest_labels, cost_rows

# Marker of each part of the CPU time, and whether it is hollow, for what is counted apart.
_COST_MARKS = (("o", False), ("s", False), ("^", True), ("D", True))


def cpu_seconds(results: Results, task: str) -> Figure | None:
    """Plots each arm's CPU seconds by part (pretraining, adapting, ...) on a log axis."""
    rows = [each for each in cost_rows(results, task) if any(each["cpu"].values())]
    if not rows:
        return None
    with style.plot_style():
        names = [style.wrap(str(each["row"].arm), 24) for each in rows]
        figure = style.new_figure(1.2 + 0.26 * (len(rows) + "".join(names).count("\n") / 2))
        axes = figure.add_subplot()
        for (field, words), (marker, hollow) in zip(CPU_SECONDS, _COST_MARKS, strict=True):
            look: dict[str, Any] = {"marker": marker, "linestyle": "none", "markersize": 6}
            for place, each in enumerate(rows):
                if each["cpu"][field]:
                    color = results.arm(each["row"].arm).color
                    face = "white" if hollow else color
                    axes.plot(
                        [each["cpu"][field]], [place], **look, color=color, markerfacecolor=face
                    )
            if any(each["cpu"][field] for each in rows):
                face = "white" if hollow else style.FAINT
                axes.plot([], [], **look, color=style.FAINT, markerfacecolor=face, label=words)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.seconds(value)))
        axes.set_yticks(range(len(rows)), names, fontsize=9)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("CPU time (log scale)", fontsize=9)
        figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    return figure


def pretraining(results: Results, task: str | None, unit: str | None) -> Figure | None:
    """Plots pretraining loss against tokens: train loss pale, validation loss strong."""
    curves = [
        row for row in results.curves if (row.task, row.kind, row.unit) == (task, "pretrain", unit)
    ]
    curves = [row for row in curves if row.value or row.validation]
    if not curves:
        return None
    with style.plot_style():
        figure = style.new_figure(3.2)
        axes = figure.add_subplot()
        for name in results.arm_names(row.arm for row in curves):
            arm = results.arm(name)
            axes.plot([], [], color=arm.color, marker=arm.marker, label=name)
            for row in (row for row in curves if row.arm == name):
                axes.plot(*_series(row.tokens, row.value), color=arm.color, alpha=0.45, lw=1)
                validation = _series(row.validation_tokens, row.validation)
                axes.plot(*validation, color=arm.color, marker=arm.marker)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.si_prefixed(value)))
        axes.set_xlabel("tokens seen in pretraining (thin: training, marked: validation)")
        axes.xaxis.label.set_fontsize(9)
        axes.set_ylabel(unit or "loss")
        style.legend_below(figure, ncols=3)
    return figure


def _series(x: list | None, y: list | None) -> tuple[np.ndarray, np.ndarray]:
    """Two equally long float arrays, NaN where a value is missing, so that a line breaks there."""
    pairs = np.array(list(zip(x or [], y or [], strict=False)), dtype=float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def amortized_cost_figure(results: Results, unit: str) -> Figure | None:
    """Plots each arm's amortized cost against the number of tasks, at the smallest label budget."""
    rows = [
        row for row in amortized_cost_at_fewest_labels(results) if getattr(row, unit) is not None
    ]
    if len({row.num_tasks for row in rows}) < 2:
        return None
    height = 3.0
    with style.plot_style():
        figure = style.new_figure(height)
        axes = figure.add_subplot()
        ends = []
        for name in results.arm_names(row.arm for row in rows):
            own = [row for row in rows if row.arm == name]
            y = [getattr(row, unit) for row in own]
            axes.plot([row.num_tasks for row in own], y, **style.arm_line(results.arm(name)))
            ends.append((y[-1], results.arm(name)))
        axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.si_prefixed(value)))
        axes.set_xlabel("tasks")
        axes.set_ylabel({"flops": "FLOPs", "seconds": "seconds"}.get(unit, unit))
        style.label_line_ends(axes, ends, height - 0.8)
    return figure
