"""The plots of multitask's ablations: grids of differences, and curves in a panel for each task."""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fm.report import formats, style
from fm.report.difference_plots import difference_grid
from fm.report.records import AblationResults, AblationRow
from fm.report.schema import Results
from fm.report.style import BETTER
from fm.report.tables import seed_mean

# Color and marker of each number of labels in the panels of an ablation.
_BUDGET_LOOKS = (("#000000", "s"), (BETTER, "o"))


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
