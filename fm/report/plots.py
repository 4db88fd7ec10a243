"""Differences as a grid of coloured cells: what is better and what is worse, at one glance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from fm.report import formats, schema, style, tables
from fm.report.schema import Row, task_title
from fm.report.tables import comparison_rows
from fm.report.verdict import outcome

_COLOURS = {"better": schema.BETTER, "worse": schema.WORSE}
_PALE, _STRONG = 0.25, 0.9
# Characters that fit side by side under the cells; longer names stand aslant.
_LEVEL = 48


def difference_grid(
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
    clear = [abs(row["difference"]) for row in known.values() if outcome(row) in _COLOURS]
    most = max(clear, default=1.0) or 1.0
    size = min(9.0, 62.0 / len(columns))
    with style.plot_style():
        drawn = style.new_figure(1.1 + 0.36 * len(lines))
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
                color="white" if dark else style.INK,
            )
        for rule in rules:
            axes.axvline(rule, color=style.INK, linewidth=1)
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
    name = _COLOURS.get(outcome(row))
    if name is None:
        return to_rgb("#ececec")
    share = _PALE + (_STRONG - _PALE) * abs(row["difference"]) / most
    red, green, blue = (1 - share * (1 - part) for part in to_rgb(name))
    return red, green, blue


def accuracy(results: dict[str, Any], task: str) -> Figure | None:
    """The metric against labels, an arm a line, its band the 95% t interval over seeds."""
    lines = tables.seed_means(results, task)
    if not lines:
        return None
    height = 3.5
    with style.plot_style():
        drawn = style.new_figure(height)
        axes = drawn.add_subplot()
        ends = []
        for name in schema.ordered(set(lines)):
            arm, points = schema.describe(name), lines[name]
            x, y = [point.num_labels for point in points], [100 * point.mean for point in points]
            axes.plot(x, y, color=arm.color, linestyle=arm.linestyle, marker=arm.marker)
            band = [point for point in points if point.low is not None and point.high is not None]
            axes.fill_between(
                [point.num_labels for point in band],
                [max(0.0, 100 * (point.low or 0.0)) for point in band],
                [min(100.0, 100 * (point.high or 0.0)) for point in band],
                color=arm.color,
                alpha=0.15,
                linewidth=0,
            )
            ends.append((y[-1], arm))
        budgets = sorted({point.num_labels for points in lines.values() for point in points})
        style.log_budget_axis(axes, budgets)
        axes.margins(y=0.06)
        axes.autoscale_view(scalex=False)
        level = tables.chance_level(results, task)
        if level is not None:
            _draw_chance(axes, 100 * level)
        axes.set_xlabel("labelled examples (log scale)")
        axes.set_ylabel(f"test {tables.metric_name(results, task)}, %")
        style.label_line_ends(axes, ends, height - 0.8)
    return drawn


def _draw_chance(axes: Axes, level: float) -> None:
    """A dotted line at chance; far below all lines only its value, not to squeeze them."""
    low, high = axes.get_ylim()
    near = level > low - (high - low)
    text = "chance" if near else f"chance is {level:.3g}%, below this plot"
    if near:
        axes.axhline(level, color=style.FAINT, linewidth=1, linestyle=":")
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
        row
        for row in comparison_rows(results)
        if (row["task"], row["baseline"]) == (task, baseline)
    ]
    if not rows:
        return None
    slots = _slots(rows)
    height = 0.2 * len(slots) + 0.75
    with style.plot_style():
        drawn = style.new_figure(height)
        axes = drawn.add_subplot()
        axes.axvline(0, color=style.INK, linewidth=1)
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
    shows, difference = outcome(row), 100 * row["difference"]
    colour = {"better": schema.BETTER, "worse": schema.WORSE}.get(shows, "#777777")
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
        color=style.readable_shade(colour),
        annotation_clip=False,
    )


def multipliers(results: dict[str, Any], task: str) -> Figure | None:
    """Label multipliers against labels; an arrow where scratch never gets there."""
    rows = [row for row in results["equivalents"] if row["task"] == task and row["labels"]]
    known = [row for row in rows if row["label_multiplier"]]
    if not known:
        return None
    with style.plot_style():
        drawn = style.new_figure(3.2)
        axes = drawn.add_subplot()
        names = schema.ordered({row["arm"] for row in known})
        for number, name in enumerate(names):
            arm = schema.describe(name)
            nudge = 1.05 ** (number - (len(names) - 1) / 2)  # intervals side by side
            for row in (row for row in known if row["arm"] == name):
                x, y = row["labels"] * nudge, row["label_multiplier"]
                low, high = row["low"] or y, row["high"] or y
                axes.plot([x, x], [low, high], color=arm.color, linewidth=1.4)
                axes.plot([x], [y], marker=arm.marker, color=arm.color)
                if row["beyond"]:
                    _draw_arrow(axes, x, y, up=row["beyond"] == "above", colour=arm.color)
            axes.plot([], [], color=arm.color, marker=arm.marker, label=name)
        axes.axhline(1, color=style.INK, linewidth=1)
        axes.set_yscale("log")
        style.log_budget_axis(axes, sorted({row["labels"] for row in rows}))
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
    with style.plot_style():
        drawn = style.new_figure(3.2)
        axes = drawn.add_subplot()
        for name in schema.ordered({row["arm"] for row in curves}):
            arm = schema.describe(name)
            axes.plot([], [], color=arm.color, marker=arm.marker, label=name)
            for row in (row for row in curves if row["arm"] == name):
                axes.plot(*_series(row["tokens"], row["value"]), color=arm.color, alpha=0.45, lw=1)
                axes.plot(
                    *_series(row["validation_tokens"], row["validation"]),
                    color=arm.color,
                    marker=arm.marker,
                )
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.si_prefixed(value)))
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
    with style.plot_style():
        drawn = style.new_figure(1.0 + 1.7 * lines)
        panels = drawn.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
        names = schema.ordered({row["arm"] for row in curves})
        for axes, labels in zip(panels, budgets, strict=False):
            axes.set_title("all labels" if labels is None else f"{formats.count(labels)} labels")
            for row in (row for row in curves if row["labels"] == labels):
                arm = schema.describe(row["arm"])
                x, y = _series(row["steps"], row["value"])
                axes.plot(x, 100 * y, color=arm.color, linestyle=arm.linestyle)
        for axes in panels[len(budgets) :]:
            axes.set_visible(False)
        for name in names:
            arm = schema.describe(name)
            panels[0].plot([], [], color=arm.color, linestyle=arm.linestyle, label=name)
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


STUDIES = ("matrix", "mixture", "amount")
# Of lines of one panel: a budget each.
_LINES = (("#000000", "s"), (schema.BETTER, "o"))


def pretraining_variant_figures(
    results: dict[str, Any],
) -> Iterator[tuple[str, str, str, Figure | None]]:
    """Section, caption, description and figure of all there are; `results` is tidy."""
    for labels in _budgets(results["matrix"]):
        yield (
            "matrix",
            f"Against a fresh model, {formats.count(labels)} labels, points",
            "grid: pretrained on the format of the line, adapted to the task of the column",
            transfer_matrix(results, labels),
        )
    for labels in _budgets(results["mixture"]):
        yield (
            "mixture",
            f"Against the mixture as it is, {formats.count(labels)} labels, points",
            "grid: a format's weight changed as the line says, and what each task gains or loses",
            mixture_grid(results, labels),
        )
    yield (
        "mixture",
        "Each task by the share of its own format",
        "quality against the share of rows that the task's own format has in the mixture",
        mixture_shares(results),
    )
    yield (
        "amount",
        "Each task by the amount of pretraining data",
        "quality against the share of the pretraining examples used",
        data_amounts(results),
    )


def transfer_matrix(results: dict[str, Any], labels: int) -> Figure | None:
    """Sources by tasks, the tasks of a format side by side."""
    rows = [row for row in results["matrix"] if row["labels"] == labels]
    compared = [row for row in rows if row["difference"] is not None]
    tasks = _by_format(results, rows)
    names = list(tasks)
    starts = [n for n in range(1, len(names)) if tasks[names[n]] != tasks[names[n - 1]]]
    return difference_grid(
        list(dict.fromkeys(row["source"] for row in compared)),
        [task_title(results, name) for name in names],
        {(row["source"], task_title(results, row["task"])): row for row in compared},
        starts,
    )


def mixture_grid(results: dict[str, Any], labels: int) -> Figure | None:
    """Changes of one weight by tasks."""
    rows = [row for row in results["mixture"] if row["labels"] == labels]
    compared = [row for row in rows if row["format"]]
    tasks = _by_format(results, rows)
    lines = {(row["format"], row["factor"]): _changed(row) for row in compared}
    return difference_grid(
        list(lines.values()),
        [task_title(results, name) for name in tasks],
        {(_changed(row), task_title(results, row["task"])): row for row in compared},
    )


def mixture_shares(results: dict[str, Any]) -> Figure | None:
    """The metric against the share of rows of the task's own format, a panel a task."""
    rows = [
        row | {"at": row["shares"][row["modality"]]}
        for row in results["mixture"]
        if row["shares"] and row["format"] in (None, row["modality"])
    ]
    return _panels(results, rows, "share of rows (log scale)", lambda value: f"{100 * value:.0f}%")


def data_amounts(results: dict[str, Any]) -> Figure | None:
    """The metric against the share of examples, a panel a task; dotted from a fresh model."""
    rows = [row | {"at": row["share"]} for row in results["amount"] if row["share"] is not None]
    return _panels(
        results,
        rows,
        "share of the examples (log scale); dotted: none",
        lambda value: str(Fraction(value).limit_denominator(64)),
    )


def _panels(
    results: dict[str, Any], rows: list[Row], words: str, write: Callable[[float], str]
) -> Figure | None:
    """A panel a task: the mean over seeds and its 95% interval at each place, a line a budget."""
    tasks = list(_by_format(results, rows))
    if not tasks:
        return None
    lines = -(-len(tasks) // 2)
    with style.plot_style():
        drawn = style.new_figure(0.7 + 1.5 * lines)
        panels = drawn.subplots(lines, 2, squeeze=False).ravel()
        for n, (axes, task) in enumerate(zip(panels, tasks, strict=False)):
            own = [row for row in rows if row["task"] == task]
            for (colour, marker), labels in zip(_LINES, _budgets(own), strict=False):
                kept = [row for row in own if row["labels"] == labels]
                _line(
                    axes, kept, colour, marker, f"{formats.count(labels)} labels" if not n else ""
                )
            places = sorted({row["at"] for row in own if row["at"]})
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(places))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
            axes.tick_params(labelsize=8)
            axes.set_title(task_title(results, task), fontsize=9)
            axes.set_ylabel(f"{tables.metric_name(results, task)}, %", fontsize=8)
        for axes in panels[len(tasks) :]:
            axes.set_visible(False)
        drawn.supxlabel(words, fontsize=9)
        drawn.legend(loc="outside upper right", ncols=2, fontsize=9)
    return drawn


def _line(axes, rows: list[Row], colour: str, marker: str, label: str) -> None:
    for row in rows:
        if not row["at"]:
            axes.axhline(100 * row["value"], color=colour, linewidth=1, linestyle=":")
    points = sorted(
        (row["at"], tables.seed_mean(row["labels"], row["values"])) for row in rows if row["at"]
    )
    x, y = [at for at, _ in points], [100 * point.mean for _, point in points]
    axes.plot(x, y, color=colour, marker=marker, markersize=3.5, linewidth=1.4, label=label)
    for at, point in points:
        if point.low is not None and point.high is not None:
            axes.plot([at, at], [100 * point.low, 100 * point.high], color=colour, linewidth=1)


def _changed(row: Row) -> str:
    return f"{row['format']} {formats.multiplier(row['factor'])}"


def _budgets(rows: list[Row]) -> list[int]:
    return sorted({row["labels"] for row in rows})


def _by_format(results: dict[str, Any], rows: list[Row]) -> dict[str, str]:
    """The tasks of rows and their format, those of a format side by side."""
    found = dict.fromkeys((row["task"], row["modality"]) for row in rows)
    order = list(dict.fromkeys(modality for _, modality in found))
    return dict(sorted(found, key=lambda each: order.index(each[1])))
