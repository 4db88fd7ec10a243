"""Plots against the number of labels: scores, fitted learning curves and label multipliers.

Like all plots of reports each is a matplotlib figure, or None where there is nothing to draw.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fm.report import formats, style
from fm.report.decisions import decisions, label_multiplier
from fm.report.records import Crossing, LearningCurve
from fm.report.saturation import majority_level, saturated_budgets
from fm.report.schema import BEST_RIVAL, Results, Task
from fm.report.tables import SeedMean, seed_means

# Bands round lines that can be told apart.
_MAX_BANDS = 5


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
            axes.plot(x, y, **style.arm_line(arm))
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
            look = style.arm_line(results.arm(name))
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
