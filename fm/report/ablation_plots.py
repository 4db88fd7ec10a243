"""The plots of ablations of whole studies: each variant's gain over training from scratch."""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fm.report import formats, style
from fm.report.forest import draw_difference, forest_plot
from fm.report.records import AblationResults, AblationRow, ScalingFit
from fm.report.schema import Results

# Colors and markers of label budgets, fewest first; more budgets begin again.
_BUDGET_LOOKS = (
    *(("#000000", "s"), ("#0072B2", "o"), ("#009E73", "^"), ("#CC79A7", "D")),
    *(("#E69F00", "X"), ("#56B4E9", "v")),
)
# Line styles of model sizes.
_SIZE_LINES = ("-", "--", ":", "-.")


def config_ablation_figures(
    results: Results, ablation: AblationResults
) -> Iterator[tuple[str, Figure | None]] | None:
    """Returns (caption, figure) of each task, one by one; None for another kind of ablation."""
    draw = KINDS.get(ablation.figure.kind)
    if draw is None:
        return None
    tasks = dict.fromkeys(row.task for row in ablation.rows)
    return (
        (
            f"{results.task(task).title}: {ablation.title}",
            draw(results, ablation, [row for row in ablation.rows if row.task == task]),
        )
        for task in tasks
    )


def difference_curve(
    results: Results, ablation: AblationResults, rows: Sequence[AblationRow]
) -> Figure | None:
    """Plots a task's differences with 95% intervals by level, a line per label budget."""
    rows = [row for row in rows if row.difference is not None]
    levels = sorted({row.level for row in rows if isinstance(row.level, int | float)})
    if not levels:
        return None
    with style.plot_style():
        figure = style.new_figure(3.2)
        axes = figure.add_subplot()
        for num_labels, (color, marker), nudge in _budgets(rows):
            own = _by_level(rows, num_labels)
            x = [level * nudge for level, _ in own]
            y = [100 * (row.difference or 0) for _, row in own]
            axes.plot(x, y, color=color, marker=marker, label=f"{formats.count(num_labels)} labels")
            for place, (_, row) in zip(x, own, strict=True):
                _draw_interval(axes, place, row, color)
        axes.axhline(0, color=style.INK, linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(levels))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.set_xlabel(f"{ablation.figure.label or ablation.figure.field} (log scale)")
        axes.set_ylabel("points over scratch")
        figure.legend(loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _by_level(
    rows: Sequence[AblationRow], num_labels: float | None
) -> list[tuple[float, AblationRow]]:
    own = [
        (float(row.level), row)
        for row in rows
        if row.num_labels == num_labels and isinstance(row.level, int | float)
    ]
    return sorted(own, key=lambda pair: pair[0])


def _budgets(
    rows: Sequence[AblationRow],
) -> Iterator[tuple[float | None, tuple[str, str], float]]:
    """Yields each label budget with its look and a factor that puts intervals side by side."""
    budgets = sorted({row.num_labels for row in rows}, key=lambda number: number or 0)
    for n, num_labels in enumerate(budgets):
        yield (
            num_labels,
            _BUDGET_LOOKS[n % len(_BUDGET_LOOKS)],
            1.04 ** (n - (len(budgets) - 1) / 2),
        )


def _draw_interval(axes: Axes, x: float, row: AblationRow, color: str) -> None:
    if row.low is not None and row.high is not None:
        axes.plot([x, x], [100 * row.low, 100 * row.high], color=color, linewidth=1)


def forest(
    results: Results, ablation: AblationResults, rows: Sequence[AblationRow]
) -> Figure | None:
    """Draws a task's differences with 95% intervals, a line per level and label budget."""
    rows = [row for row in rows if row.difference is not None]
    if not rows:
        return None
    groups: dict[str, list[AblationRow]] = {}
    for row in rows:
        groups.setdefault(_level_name(row), []).append(row)
    return forest_plot(
        [
            (
                level,
                [
                    (
                        f"{formats.count(row.num_labels)} labels",
                        functools.partial(draw_difference, row=row),
                    )
                    for row in sorted(own, key=lambda row: row.num_labels or 0)
                ],
            )
            for level, own in groups.items()
        ],
        "points over scratch",
    )


def _level_name(row: AblationRow) -> str:
    """`far: docstrings, 12.3M characters` where the row knows its upstream data, else the level."""
    data = (row.datasets or {}).get(row.task or "")
    if data is None:
        return str(row.level)
    if row.characters is not None:
        return f"{row.level}: {data}, {formats.si_prefixed(row.characters)} characters"
    return f"{row.level}: {data}, {formats.count(row.examples)} examples"


def surface(
    results: Results, ablation: AblationResults, rows: Sequence[AblationRow]
) -> Figure | None:
    """Plots a task's error against pretraining tokens: points measured, lines the fitted surface.

    A color per label budget and a line style per model size.
    """
    rows = [row for row in rows if row.value is not None and row.tokens and row.parameters]
    if not rows:
        return None
    fit = next((each for each in results.scaling_fits if each.task == rows[0].task), None)
    sizes = sorted({row.parameters for row in rows if row.parameters})
    with style.plot_style():
        figure = style.new_figure(3.6)
        axes = figure.add_subplot()
        for num_labels, (color, marker), _ in _budgets(rows):
            axes.plot(
                [], [], color=color, marker=marker, label=f"{formats.count(num_labels)} labels"
            )
            for size, line in zip(sizes, _SIZE_LINES, strict=False):
                own = [
                    row for row in rows if (row.num_labels, row.parameters) == (num_labels, size)
                ]
                tokens = [row.tokens or 0 for row in own]
                errors = [100 * (1 - (row.value or 0)) for row in own]
                axes.plot(tokens, errors, color=color, marker=marker, linestyle="")
                if fit is not None and tokens:
                    x = np.geomspace(min(tokens), max(tokens), 30)
                    y = [100 * fitted_error(fit, size, each, num_labels or 1) for each in x]
                    axes.plot(x, y, color=color, linestyle=line, linewidth=1.2)
        for size, line in zip(sizes, _SIZE_LINES, strict=False):
            label = f"{formats.si_prefixed(size)} parameters"
            axes.plot([], [], color=style.FAINT, linestyle=line, label=label)
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(
            FixedLocator(sorted({row.tokens for row in rows if row.tokens}))
        )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.si_prefixed(value)))
        axes.set_xlabel("tokens seen in pretraining (log scale)")
        axes.set_ylabel("test error, %")
        figure.legend(loc="outside lower center", ncols=3, fontsize=style.SMALL)
    return figure


def fitted_error(fit: ScalingFit, parameters: float, tokens: float, num_labels: float) -> float:
    """Returns the error of a fitted surface at one point."""
    at = {"parameters": parameters, "tokens": tokens, "labels": num_labels}
    error = fit.floor or 0.0
    for term in fit.terms:
        if term.exponent is not None and term.scale is not None and term.center:
            error += term.scale * (at[term.axis or "labels"] / term.center) ** -term.exponent
    return error


KINDS: dict[str, Callable[[Results, AblationResults, Sequence[AblationRow]], Figure | None]] = {
    "difference_curve": difference_curve,
    "forest": forest,
    "surface": surface,
}
