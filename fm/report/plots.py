"""The plots of a study: each a matplotlib figure, or None where there is nothing to draw."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from fm.report import formats, style
from fm.report.decisions import (
    comparison,
    decision_outcome,
    decisions,
    label_multiplier,
    outcome,
)
from fm.report.forest import OUTCOME_COLORS, DrawRow, draw_difference, forest_plot
from fm.report.saturation import majority_level, saturated_budgets
from fm.report.schema import (
    BEST_RIVAL,
    AblationResults,
    AblationRow,
    Arm,
    Crossing,
    Difference,
    LearningCurve,
    Results,
    Task,
)
from fm.report.style import BETTER
from fm.report.summary import main_arm, primary_comparison
from fm.report.tables import (
    CPU_SECONDS,
    SeedMean,
    amortized_cost_at_fewest_labels,
    cost_rows,
    seed_mean,
    seed_means,
    sorted_comparisons,
)

# Characters of column names that fit side by side under a grid; longer ones are slanted.
_MAX_LEVEL_CHARACTERS = 48
# Bands round lines that can be told apart.
_MAX_BANDS = 5
# Marker of each part of the CPU time, and whether it is hollow, for what is counted apart.
_COST_MARKS = (("o", False), ("s", False), ("^", True), ("D", True))
# Color and marker of each number of labels in the panels of an ablation.
_BUDGET_LOOKS = (("#000000", "s"), (BETTER, "o"))
# Of a plot of decisions: a row's name, its difference and the outcome that it is drawn with.
_DecisionRow = tuple[str, Difference, str]


def accuracy(results: Results, task: str) -> Figure | None:
    """Plots a task's metric against the number of labels, one line per arm, with 95% intervals."""
    means = seed_means(results, task)
    if not means:
        return None
    about, height = results.task(task), 2.7 + 0.2 * max(4, len(means))
    with style.plot_style():
        figure = style.new_figure(height)
        axes = figure.add_subplot()
        ends = []
        floor = _lowest_score(means)
        for name in results.arm_names(means):
            arm, points = results.arm(name), means[name]
            x, y = [point.num_labels for point in points], [100 * point.mean for point in points]
            axes.plot(x, y, **_line(arm))
            # Many bands hide each other: then only the arms that the decisions are about have one.
            decided = [] if results.setting else _decided_arms(results, task)
            shaded = len(means) <= _MAX_BANDS or name in decided
            band = [p for p in points if shaded and p.low is not None and p.high is not None]
            axes.fill_between(
                [point.num_labels for point in band],
                [max(floor, 100 * (point.low or 0.0)) for point in band],
                [min(100.0, 100 * (point.high or 0.0)) for point in band],
                color=arm.color,
                alpha=0.15,
                linewidth=0,
            )
            ends.append((y[-1], arm))
        budgets = sorted({point.num_labels for points in means.values() for point in points})
        style.log_budget_axis(axes, budgets)
        axes.margins(y=0.06)
        axes.autoscale_view(scalex=False)
        saturated = set(saturated_budgets(results, task)) == set(budgets)
        style.score_axis(axes, 20.0 if saturated else 10.0, floor)
        axes.set_xlabel("labeled examples (log scale)")
        if about.has_one_class:
            _draw_chance(axes, about)
        axes.set_ylabel(f"test {about.metric}, %")
        style.label_line_ends(axes, ends, height - 0.8)
    return figure


def _lowest_score(means: Mapping[str, Sequence[SeedMean]]) -> float:
    """The lowest possible score in percent: correlations may be below zero, other metrics not."""
    lowest = min(point.mean for points in means.values() for point in points)
    return 0.0 if lowest >= 0 else -100.0


def _line(arm: Arm) -> dict[str, Any]:
    return {"color": arm.color, "linestyle": arm.linestyle, "marker": arm.marker}


def _draw_chance(axes: Axes, about: Task) -> None:
    """Draws a dotted line at chance; far below all lines it is named under the plot instead.

    Chance is the accuracy of always answering the most frequent class, 1/classes if unknown.
    """
    level, name = majority_level(about)
    level *= 100
    low, high = axes.get_ylim()
    if level < low - (high - low) / 2:
        axes.set_xlabel(f"{axes.get_xlabel()}\n{name}: {level:.3g}%, below this plot")
        return
    axes.axhline(level, color=style.FAINT, linewidth=1, linestyle=":")
    axes.set_ylim(min(low, level - 0.06 * (high - level)), high)
    axes.annotate(
        name,
        (0.99, level),
        xytext=(0, 3),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        color="#666666",
        fontsize=style.SMALL,
        ha="right",
    )


def learning_curves(results: Results, task: str) -> Figure | None:
    """Plots fitted learning curves of the pretrained arm and its best rivals, where they cross.

    Points are means over seeds with 95% intervals; the band is the interval of the number of
    labels at which pretraining stops paying.
    """
    rows = decisions(results, task)
    own = {row.best_pretrained for row in rows}
    rivals = {row.best_rival for row in rows}
    if any(row.rival == BEST_RIVAL for row in results.crossings):
        rivals = {BEST_RIVAL}
    arms = _decided_arms(results, task)
    fits = {row.arm: row for row in results.learning_curves if row.task == task}
    means = seed_means(results, task)
    drawn = [arm for arm in arms if arm in fits and arm in means]
    budgets = sorted({point.num_labels for arm in drawn for point in means[arm]})
    if len(budgets) < 2:
        return None
    height, floor = 3.5, _lowest_score(means)
    with style.plot_style():
        figure = style.new_figure(height)
        axes = figure.add_subplot()
        x = np.geomspace(budgets[0], budgets[-1], 100)
        ends = []
        for name in drawn:
            look = _line(results.arm(name))
            line: dict[str, Any] = look | {"marker": ""}
            mark: dict[str, Any] = look | {"linestyle": "none"}
            y = 100 * _fitted_score(fits[name], x)
            axes.plot(x, y, **line)
            ends.append((float(y[-1]), results.arm(name)))
            for point in means[name]:
                at = point.num_labels
                if point.low is not None and point.high is not None:
                    low, high = max(floor, 100 * point.low), min(100.0, 100 * point.high)
                    axes.plot([at, at], [low, high], color=look["color"], lw=1)
                axes.plot([at], [100 * point.mean], **mark)
        style.log_budget_axis(axes, budgets)
        axes.margins(y=0.06)
        axes.autoscale_view(scalex=False)
        style.score_axis(axes, floor=floor)
        for row in results.crossings:
            if row.task == task and row.arm in own and row.rival in rivals:
                _draw_crossing(axes, row)
        axes.set_xlabel("labeled examples (log scale)")
        axes.set_ylabel(f"test {results.task(task).metric}, %")
        style.label_line_ends(axes, ends, height - 0.8)
    return figure


def _decided_arms(results: Results, task: str) -> list[str]:
    rows = decisions(results, task)
    return results.arm_names(arm for row in rows for arm in (row.best_pretrained, row.best_rival))


def _fitted_score(fit: LearningCurve, labels: np.ndarray) -> np.ndarray:
    """One less the fitted error."""
    return 1 - (fit.asymptote or 0) - (fit.scale or 0) * labels ** -(fit.exponent or 0)


def _draw_crossing(axes: Axes, row: Crossing) -> None:
    left, right = axes.get_xlim()
    if row.labels is None or row.status != "crosses" or not left < row.labels < right:
        return
    axes.axvline(row.labels, color=style.INK, linewidth=1, linestyle="--")
    axes.axvspan(row.low or left, row.high or right, color=style.FAINT, alpha=0.15, linewidth=0)
    axes.set_xlim(left, right)
    axes.annotate(
        f"{formats.count(row.labels)}",
        (row.labels, 0.02),
        xycoords=axes.get_xaxis_transform(),
        xytext=(3, 0),
        textcoords="offset points",
        fontsize=9,
    )


def forest(results: Results, task: str, arm: str) -> Figure | None:
    """Draws a forest plot of an arm's differences from every rival, with 95% intervals.

    Filled marks are differences that keep an adjusted p under 0.05.
    """
    rows = [row for row in sorted_comparisons(results) if (row.task, row.arm) == (task, arm)]
    if not rows:
        return None
    groups: dict[str, list[tuple[str, DrawRow]]] = {}
    for row in rows:
        members = groups.setdefault(f"against {row.baseline}", [])
        draw = functools.partial(draw_difference, row=row)
        members.append((formats.label_budget(row.num_labels), draw))
    return forest_plot(list(groups.items()), f"percentage points (right of 0: {arm} is better)")


def decision_forest(results: Results, task: str) -> Figure | None:
    """Draws the differences that the decisions rest on, with 95% intervals, by number of labels.

    First those of the best own pretraining from the best arm without, the two of highest mean score
    that the text above the plot names, with the declared mean over all budgets. An arm is ahead
    only if it is ahead of every arm without pretraining: where another than the best one is hardest
    to be ahead of, the difference from that one follows. Last those from the first arm without
    pretraining, the plain reference.
    """
    rows = [row for row in decisions(results, task) if row.difference is not None]
    if not rows:
        return None
    arm = main_arm(rows)
    best: list[_DecisionRow] = []
    hardest: dict[str, list[_DecisionRow]] = {}
    for row in rows:
        name, verdict = formats.label_budget(row.num_labels), decision_outcome(row)
        from_best = comparison(results, task, row.num_labels, row.best_pretrained, row.best_rival)
        if row.rival in (None, row.best_rival) or from_best is None:
            best.append((name, row, verdict))
            continue
        # A clear difference from the best rival alone is not drawn as a clear decision.
        agrees = outcome(from_best) == verdict
        best.append((name, from_best, verdict if agrees else "unclear"))
        hardest.setdefault(str(row.rival), []).append((name, row, verdict))
    primary = primary_comparison(results, task, arm)
    if primary is not None:
        best.append((formats.label_budget(None), primary, outcome(primary)))
    groups = [("own pretraining − best without pretraining", best)]
    rivals = results.arm_names(row.baseline for row in results.comparisons if row.task == task)
    reference = next((name for name in rivals if results.arm(name).pretrained_on is None), None)
    for rival, members in hardest.items():
        # The differences from the reference are all drawn below.
        if rival != reference:
            groups.append((f"own pretraining − {rival}, hardest to beat", members))
    found = [
        comparison(results, task, row.num_labels, row.best_pretrained, reference) for row in rows
    ]
    against = [row for row in (*found, comparison(results, task, None, arm, reference)) if row]
    if against and any(row.best_rival != reference for row in rows):
        names = [formats.label_budget(row.num_labels) for row in against]
        rows_of: list[_DecisionRow] = [
            (name, row, outcome(row)) for name, row in zip(names, against, strict=True)
        ]
        groups.append((f"own pretraining − {reference}", rows_of))
    return forest_plot(
        [
            (
                heading,
                [
                    (name, functools.partial(draw_difference, row=row, shown=shown))
                    for name, row, shown in members
                ],
            )
            for heading, members in groups
        ],
        "percentage points (right of 0: pretraining is better)",
    )


def multipliers(results: Results, task: str, arm: str) -> Figure | None:
    """Plots an arm's label multipliers against every rival; arrows mark lower bounds."""
    rows = [
        row
        for row in results.label_efficiency
        if (row.task, row.arm) == (task, arm) and row.num_labels
    ]
    known = [row for row in rows if label_multiplier(row.label_multiplier, row.censored)]
    names = results.arm_names(row.rival for row in known)
    if not names:
        return None
    with style.plot_style():
        figure = style.new_figure(3.2)
        axes = figure.add_subplot()
        for number, name in enumerate(names):
            rival = results.arm(name)
            look: dict[str, Any] = {"color": rival.color, "marker": rival.marker}
            nudge = 1.05 ** (number - (len(names) - 1) / 2)  # intervals side by side
            for row in (row for row in known if row.rival == name):
                x, y = (row.num_labels or 0) * nudge, row.label_multiplier or 0
                axes.plot([x, x], [row.low or y, row.high or y], color=rival.color, linewidth=1.4)
                axes.plot([x], [y], **look)
                if row.censored:
                    arrow = {"arrowstyle": "<-", "color": rival.color, "lw": 1.4, "shrinkB": 3}
                    axes.annotate(
                        *("", (x, y)),
                        xytext=(0, 16),
                        textcoords="offset points",
                        arrowprops=arrow,
                    )
            axes.plot([], [], label=name, **look)
        axes.axhline(1, color=style.INK, linewidth=1)
        axes.set_yscale("log")
        style.log_budget_axis(axes, sorted({row.num_labels or 0 for row in rows}))
        left, right = axes.get_xlim()
        axes.set_xlim(left / 1.05, right * 1.05)
        low, high = axes.get_ylim()
        low, high = low / 1.15, high * 1.4  # room for the arrows
        axes.set_ylim(low, high)
        ticks = [part * 10**power for power in range(-2, 3) for part in (1, 1.5, 2, 3, 5, 7)]
        axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.set_xlabel("labeled examples (log scale)")
        axes.set_ylabel("labels the rival would need")
        style.legend_below(figure, ncols=3)
    return figure


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
            axes.plot([row.num_tasks for row in own], y, **_line(results.arm(name)))
            ends.append((y[-1], results.arm(name)))
        axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.si_prefixed(value)))
        axes.set_xlabel("tasks")
        axes.set_ylabel({"flops": "FLOPs", "seconds": "seconds"}.get(unit, unit))
        style.label_line_ends(axes, ends, height - 0.8)
    return figure


def difference_grid(
    lines: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[tuple[str, str], Difference],
    rules: Sequence[int] = (),
) -> Figure | None:
    """Draws a grid of differences in percentage points as colored cells (blue is better).

    Blue is better, vermillion worse, the stronger the larger; where the interval holds zero, or
    there is none, the cell is gray.

    Args:
      lines: names of the lines from the top.
      columns: names of the columns from the left.
      cells: comparisons by line and column.
      rules: columns before which a vertical line is drawn.
    """
    known = {place: row for place, row in cells.items() if row.difference is not None}
    if not known:
        return None
    clear = [abs(row.difference or 0) for row in known.values() if outcome(row) in OUTCOME_COLORS]
    most = max(clear, default=1.0) or 1.0
    size = min(style.SMALL, 72.0 / len(columns))
    with style.plot_style():
        figure = style.new_figure(1.1 + 0.36 * len(lines))
        axes = figure.add_subplot()
        for (line, column), row in known.items():
            x, y = columns.index(column), lines.index(line)
            color = _cell_color(row, most)
            axes.add_patch(
                Rectangle((x, y), 1, 1, facecolor=color, edgecolor="white", linewidth=1.5)
            )
            dark = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] < 0.55
            axes.annotate(
                formats.points(row.difference),
                (x + 0.5, y + 0.5),
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
        axes.set_xticks([n + 0.5 for n in range(len(columns))], columns, fontsize=style.SMALL)
        if max(map(len, columns)) * len(columns) > _MAX_LEVEL_CHARACTERS:
            for text in axes.get_xticklabels():
                text.set(rotation=35, ha="right", rotation_mode="anchor")
        axes.tick_params(length=0)
        axes.grid(False)
        axes.spines[:].set_visible(False)
    return figure


def _cell_color(row: Difference, most: float) -> tuple[float, float, float]:
    name = OUTCOME_COLORS.get(outcome(row))
    if name is None:
        return to_rgb("#ececec")
    strength = 0.25 + 0.65 * abs(row.difference or 0) / most
    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(name))
    return red, green, blue


def overview_of_differences(results: Results, num_labels: float | None) -> Figure | None:
    """Draws a grid of score differences, tasks by pairs of arms, at one number of labels."""
    cells = {
        (str(results.task(row.task).title), f"{row.arm} − {row.baseline}"): row
        for row in results.comparisons
        if row.num_labels == num_labels
    }
    lines, columns = (list(dict.fromkeys(place[n] for place in cells)) for n in (0, 1))
    return difference_grid(lines, columns, cells)


def ablation_figures(
    results: Results, ablation: AblationResults
) -> Iterator[tuple[str, Figure | None]]:
    """Yields (caption, figure) of an ablation."""
    if ablation.figure.kind == "curve":
        points = [
            (float(row.level), row) for row in ablation.rows if isinstance(row.level, int | float)
        ]
        yield (
            ablation.title,
            _panels(results, points, f"{ablation.figure.field} (log scale); dotted: 0", _fraction),
        )
        return
    for num_labels in _budgets(ablation.rows):
        yield (
            f"{ablation.title}: {formats.count(num_labels)} labels, points",
            ablation_difference_grid(results, ablation, num_labels),
        )
    shares = [
        (row.shares[row.modality or ""], row)
        for row in ablation.rows
        if row.shares and row.changed_modality in (None, row.modality)
    ]
    yield (
        "Each task by the share of its own modality",
        _panels(results, shares, "share of rows (log scale)", lambda value: f"{value:.0%}"),
    )


def ablation_difference_grid(
    results: Results, ablation: AblationResults, num_labels: float
) -> Figure | None:
    """Draws a grid of score differences from the baseline variant: rows variants, columns tasks."""
    rows = [row for row in ablation.rows if row.num_labels == num_labels]
    tasks = _tasks_by_modality(rows)
    names = list(tasks)
    cells = {
        (_variant_name(row), str(results.task(row.task).title)): row
        for row in rows
        if row.difference is not None
    }
    return difference_grid(
        list(dict.fromkeys(line for line, _ in cells)),
        [str(results.task(name).title) for name in names],
        cells,
        [n for n in range(1, len(names)) if tasks[names[n]] != tasks[names[n - 1]]],
    )


def _variant_name(row: AblationRow) -> str:
    if row.changed_modality and isinstance(row.level, int | float):
        return f"{row.changed_modality} {formats.multiplier(row.level)}"
    return str(row.level)


def _fraction(value: float) -> str:
    return str(Fraction(value).limit_denominator(64)) if value < 1 else f"{value:g}"


def _panels(
    results: Results,
    points: list[tuple[float, AblationRow]],
    x_label: str,
    write: Callable[[float], str],
) -> Figure | None:
    """A panel a task: mean and 95% interval over seeds at each x, a line a number of labels."""
    tasks = list(_tasks_by_modality([row for _, row in points]))
    if not tasks:
        return None
    lines = -(-len(tasks) // 2)
    with style.plot_style():
        figure = style.new_figure(0.7 + 1.5 * lines)
        panels = figure.subplots(lines, 2, squeeze=False).ravel()
        for n, (axes, task) in enumerate(zip(panels, tasks, strict=False)):
            own = [(x, row) for x, row in points if row.task == task]
            budgets = _budgets([row for _, row in own])
            for (color, marker), num_labels in zip(_BUDGET_LOOKS, budgets, strict=False):
                label = "" if n else f"{formats.count(num_labels)} labels"
                chosen = [(x, row) for x, row in own if row.num_labels == num_labels]
                _draw_variants(axes, chosen, color, marker, label)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(FixedLocator(sorted({x for x, _ in own if x})))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
            axes.tick_params(labelsize=style.SMALL)
            axes.set_title(results.task(task).title, fontsize=9)
            axes.set_ylabel(f"{results.task(task).metric}, %", fontsize=style.SMALL)
        for axes in panels[len(tasks) :]:
            axes.set_visible(False)
        figure.supxlabel(x_label, fontsize=9)
        figure.legend(loc="outside upper right", ncols=2, fontsize=9)
    return figure


def _draw_variants(
    axes: Axes,
    points: list[tuple[float, AblationRow]],
    color: str,
    marker: str,
    label: str,
) -> None:
    for x, row in points:
        if not x:
            axes.axhline(100 * (row.value or 0), color=color, linewidth=1, linestyle=":")
    means = sorted(
        ((x, seed_mean(0, list(row.values))) for x, row in points if x), key=lambda pair: pair[0]
    )
    x, y = [x for x, _ in means], [100 * mean.mean for _, mean in means]
    axes.plot(x, y, color=color, marker=marker, markersize=3.5, linewidth=1.4, label=label)
    for x, mean in means:
        if mean.low is not None and mean.high is not None:
            axes.plot([x, x], [100 * mean.low, 100 * mean.high], color=color, linewidth=1)


def _budgets(rows: Sequence[AblationRow]) -> list[Any]:
    return sorted({row.num_labels for row in rows}, key=lambda number: number or 0)


def _tasks_by_modality(rows: Sequence[AblationRow]) -> dict[str | None, str | None]:
    """The tasks of rows and their modality, those of a modality side by side."""
    found = dict.fromkeys((row.task, row.modality) for row in rows)
    order = list(dict.fromkeys(modality for _, modality in found))
    return dict(sorted(found, key=lambda each: order.index(each[1])))
