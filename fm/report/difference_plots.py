"""Plots of differences between arms: forests with intervals, and grids of colored cells."""

import functools
from collections.abc import Mapping, Sequence

from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fm.report import formats, style
from fm.report.decisions import comparison, decision_outcome, decisions, outcome
from fm.report.forest import OUTCOME_COLORS, DrawRow, draw_difference, forest_plot
from fm.report.records import Difference
from fm.report.schema import Results
from fm.report.summary import main_arm, primary_comparison
from fm.report.tables import sorted_comparisons

# Characters of column names that fit side by side under a grid; longer ones are slanted.
_MAX_LEVEL_CHARACTERS = 48
# Of a plot of decisions: a row's name, its difference and the outcome that it is drawn with.
_DecisionRow = tuple[str, Difference, str]


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
