"""The plots: tidy results in, one matplotlib figure out, None where there is nothing to draw."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from fm.report import arms, canvas, formats, summary
from fm.report.schema import Row
from fm.report.table import comparisons
from fm.report.verdict import verdict


def accuracy(results: dict[str, Any], task: str) -> Figure | None:
    """The metric against labels, an arm a line, its band the 95% t interval over seeds."""
    lines = summary.summarise(results, task)
    if not lines:
        return None
    height = 3.5
    with canvas.style():
        drawn = canvas.figure(height)
        axes = drawn.add_subplot()
        ends = []
        for name in arms.ordered(set(lines)):
            arm, points = arms.describe(name), lines[name]
            x, y = [point.labels for point in points], [100 * point.mean for point in points]
            axes.plot(x, y, color=arm.colour, linestyle=arm.line, marker=arm.marker)
            band = [point for point in points if point.low is not None and point.high is not None]
            axes.fill_between(
                [point.labels for point in band],
                [max(0.0, 100 * (point.low or 0.0)) for point in band],
                [min(100.0, 100 * (point.high or 0.0)) for point in band],
                color=arm.colour,
                alpha=0.15,
                linewidth=0,
            )
            ends.append((y[-1], arm))
        budgets = sorted({point.labels for points in lines.values() for point in points})
        canvas.log_labels(axes, budgets)
        axes.margins(y=0.06)
        axes.autoscale_view(scalex=False)
        level = summary.chance(results, task)
        if level is not None:
            _draw_chance(axes, 100 * level)
        axes.set_xlabel("labelled examples (log scale)")
        axes.set_ylabel(f"test {summary.metric(results, task)}, %")
        canvas.end_labels(axes, ends, height - 0.8)
    return drawn


def _draw_chance(axes: Axes, level: float) -> None:
    """A dotted line at chance; far below all lines only its value, not to squeeze them."""
    low, high = axes.get_ylim()
    near = level > low - (high - low)
    text = "chance" if near else f"chance is {level:.3g}%, below this plot"
    if near:
        axes.axhline(level, color=canvas.FAINT, linewidth=1, linestyle=":")
        axes.set_ylim(min(low, level - 0.06 * (high - level)), high)
    axes.annotate(
        text,
        (0.99, level if near else low),
        xytext=(0, 3),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        color="#666666",
        fontsize=9,
        ha="right",
    )


def forest(results: dict[str, Any], task: str, baseline: str) -> Figure | None:
    """The task's differences to one baseline with their intervals, grouped by arm."""
    rows = [
        row for row in comparisons(results) if (row["task"], row["baseline"]) == (task, baseline)
    ]
    if not rows:
        return None
    slots = _slots(rows)
    height = 0.2 * len(slots) + 0.75
    with canvas.style():
        drawn = canvas.figure(height)
        axes = drawn.add_subplot()
        axes.axvline(0, color=canvas.INK, linewidth=1)
        for place, row in enumerate(slots):
            if isinstance(row, dict) and row["difference"] is not None:
                _draw_difference(axes, place, row)
        axes.margins(x=0.08)
        axes.set_ylim(len(slots) - 0.4, -0.6)
        axes.yaxis.set_major_locator(FixedLocator(list(range(len(slots)))))
        axes.set_yticklabels(
            [
                slot if isinstance(slot, str) else f"{formats.count(slot['labels'])} labels"
                for slot in slots
            ],
            fontsize=9,
        )
        for text, slot in zip(axes.get_yticklabels(), slots, strict=True):
            text.set_fontweight("bold" if isinstance(slot, str) else "normal")
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(
            "difference, percentage points (right of 0: the first is better)", fontsize=9
        )
    return drawn


def _slots(rows: list[Row]) -> list[Row | str]:
    """The lines of a forest plot from the top: a heading for each pair, then its budgets."""
    slots: list[Row | str] = []
    for row in rows:
        heading = f"{row['arm']} − {row['baseline']}"
        if heading not in slots:
            slots.append(heading)
        slots.append(row)
    return slots


def _draw_difference(axes: Axes, place: int, row: Row) -> None:
    shows, difference = verdict(row), 100 * row["difference"]
    colour = {"better": arms.BETTER, "worse": arms.WORSE}.get(shows, "#777777")
    if shows != "unknown":
        axes.plot(
            [100 * row["low"], 100 * row["high"]], [place, place], color=colour, linewidth=1.6
        )
    axes.plot(
        [difference],
        [place],
        color=colour,
        marker={"better": "o", "worse": "D"}.get(shows, "o"),
        markerfacecolor=colour if shows in ("better", "worse") else "white",
        markersize=5.5,
    )
    bounds = f" [{formats.interval(row['low'], row['high'])}]" if shows != "unknown" else ""
    axes.annotate(
        f"{formats.points(row['difference'])}{bounds}",
        (1.01, place),
        xycoords=axes.get_yaxis_transform(),
        va="center",
        fontsize=8.5,
        color=canvas.shade(colour),
        annotation_clip=False,
    )


def multipliers(results: dict[str, Any], task: str) -> Figure | None:
    """Label multipliers against labels; an arrow where scratch never gets there."""
    rows = [row for row in results["equivalents"] if row["task"] == task and row["labels"]]
    known = [row for row in rows if row["label_multiplier"]]
    if not known:
        return None
    with canvas.style():
        drawn = canvas.figure(3.2)
        axes = drawn.add_subplot()
        names = arms.ordered({row["arm"] for row in known})
        for number, name in enumerate(names):
            arm = arms.describe(name)
            nudge = 1.05 ** (number - (len(names) - 1) / 2)  # intervals side by side
            for row in (row for row in known if row["arm"] == name):
                x, y = row["labels"] * nudge, row["label_multiplier"]
                low, high = row["low"] or y, row["high"] or y
                axes.plot([x, x], [low, high], color=arm.colour, linewidth=1.4)
                axes.plot([x], [y], marker=arm.marker, color=arm.colour)
                if row["beyond"]:
                    _draw_arrow(axes, x, y, up=row["beyond"] == "above", colour=arm.colour)
            axes.plot([], [], color=arm.colour, marker=arm.marker, label=name)
        axes.axhline(1, color=canvas.INK, linewidth=1)
        axes.set_yscale("log")
        canvas.log_labels(axes, sorted({row["labels"] for row in rows}))
        left, right = axes.get_xlim()
        axes.set_xlim(left / 1.05, right * 1.05)
        low, high = axes.get_ylim()
        low, high = low / 1.15, high * 1.4  # room for the arrows
        axes.set_ylim(low, high)
        ticks = [part * 10**power for power in range(-2, 3) for part in (1, 1.5, 2, 3, 5, 7)]
        axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"×{value:g}"))
        axes.set_xlabel("labelled examples (log scale)")
        axes.set_ylabel("labels scratch would need")
        drawn.legend(loc="outside lower center", ncols=4)
    return drawn


def _draw_arrow(axes: Axes, x: float, y: float, up: bool, colour: str) -> None:
    axes.annotate(
        "",
        (x, y),
        xytext=(0, 16 if up else -16),
        textcoords="offset points",
        arrowprops={"arrowstyle": "<-", "color": colour, "linewidth": 1.4, "shrinkB": 3},
    )


def pretraining(results: dict[str, Any], task: str | None, unit: str | None) -> Figure | None:
    """Pretraining loss against tokens: pale while training, strong on held-out data."""
    curves = [
        row
        for row in results["curves"]
        if row["task"] == task and row["kind"] == "pretrain" and row["unit"] == unit
    ]
    curves = [row for row in curves if row["value"] or row["validation"]]
    if not curves:
        return None
    with canvas.style():
        drawn = canvas.figure(3.2)
        axes = drawn.add_subplot()
        for name in arms.ordered({row["arm"] for row in curves}):
            arm = arms.describe(name)
            axes.plot([], [], color=arm.colour, marker=arm.marker, label=name)
            for row in (row for row in curves if row["arm"] == name):
                axes.plot(*_series(row["tokens"], row["value"]), color=arm.colour, alpha=0.45, lw=1)
                axes.plot(
                    *_series(row["validation_tokens"], row["validation"]),
                    color=arm.colour,
                    marker=arm.marker,
                )
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.short(value)))
        axes.set_xlabel("pieces seen in pretraining (thin: training, marked: validation)")
        axes.xaxis.label.set_fontsize(9)
        axes.set_ylabel(unit or "loss")
        drawn.legend(loc="outside lower center", ncols=4)
    return drawn


def adaptation(results: dict[str, Any], task: str) -> Figure | None:
    """Validation quality against steps while the labels are learned, a panel per budget."""
    curves = [
        row
        for row in results["curves"]
        if row["task"] == task and row["kind"] == "adapt" and row["value"]
    ]
    if not curves:
        return None
    budgets = _spread(sorted({row["labels"] for row in curves if row["labels"]}), 4) or [None]
    columns = min(2, len(budgets))
    lines = -(-len(budgets) // columns)
    with canvas.style():
        drawn = canvas.figure(1.0 + 1.7 * lines)
        panels = drawn.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        names = arms.ordered({row["arm"] for row in curves})
        for axes, labels in zip(panels, budgets, strict=False):
            axes.set_title("all labels" if labels is None else f"{formats.count(labels)} labels")
            for row in (row for row in curves if row["labels"] == labels):
                arm = arms.describe(row["arm"])
                x, y = _series(row["steps"], row["value"])
                axes.plot(x, 100 * y, color=arm.colour, linestyle=arm.line)
        for axes in panels[len(budgets) :]:
            axes.set_visible(False)
        for name in names:
            arm = arms.describe(name)
            panels[0].plot([], [], color=arm.colour, linestyle=arm.line, label=name)
        unit = next((row["unit"] for row in curves if row["unit"]), "accuracy")
        for place, axes in enumerate(panels[: len(budgets)]):
            if place % columns == 0:
                axes.set_ylabel(f"{unit}, %")
            if place + columns >= len(budgets):
                axes.set_xlabel("steps on labels")
                axes.tick_params(axis="x", labelbottom=True)
        drawn.legend(loc="outside lower center", ncols=4)
    return drawn


def _series(x: list | None, y: list | None) -> tuple[np.ndarray, np.ndarray]:
    """Two equally long float arrays, NaN where a value is missing, so that a line breaks there."""
    pairs = list(zip(x or [], y or [], strict=False))
    whole = np.array(pairs, dtype=float).reshape(-1, 2)
    return whole[:, 0], whole[:, 1]


def _spread(values: list, most: int) -> list:
    """At most `most` of the values, evenly chosen, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(index)] for index in np.linspace(0, len(values) - 1, most)]
