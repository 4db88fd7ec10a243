"""What other pretraining would have given: transfer between formats, weights, amounts of data."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fm.report import arms, canvas, formats, grids, summary
from fm.report.schema import Row, title

STUDIES = ("matrix", "mixture", "amount")
# Of lines of one panel: a budget each.
_LINES = (("#000000", "s"), (arms.BETTER, "o"))


def figures(results: dict[str, Any]) -> Iterator[tuple[str, str, str, Figure | None]]:
    """Section, caption, description and figure of all there are; `results` is tidy."""
    for labels in _budgets(results["matrix"]):
        yield (
            "matrix",
            f"Against a fresh model, {formats.count(labels)} labels, points",
            "grid: pretrained on the format of the line, adapted to the task of the column",
            matrix(results, labels),
        )
    for labels in _budgets(results["mixture"]):
        yield (
            "mixture",
            f"Against the mixture as it is, {formats.count(labels)} labels, points",
            "grid: a format's weight changed as the line says, and what each task gains or loses",
            mixture(results, labels),
        )
    yield (
        "mixture",
        "Each task by the share of its own format",
        "quality against the share of rows that the task's own format has in the mixture",
        own_shares(results),
    )
    yield (
        "amount",
        "Each task by the amount of pretraining data",
        "quality against the share of the pretraining examples used",
        amounts(results),
    )


def matrix(results: dict[str, Any], labels: int) -> Figure | None:
    """Sources by tasks, the tasks of a format side by side."""
    rows = [row for row in results["matrix"] if row["labels"] == labels]
    compared = [row for row in rows if row["difference"] is not None]
    tasks = _by_format(results, rows)
    names = list(tasks)
    starts = [n for n in range(1, len(names)) if tasks[names[n]] != tasks[names[n - 1]]]
    return grids.grid(
        list(dict.fromkeys(row["source"] for row in compared)),
        [title(results, name) for name in names],
        {(row["source"], title(results, row["task"])): row for row in compared},
        starts,
    )


def mixture(results: dict[str, Any], labels: int) -> Figure | None:
    """Changes of one weight by tasks."""
    rows = [row for row in results["mixture"] if row["labels"] == labels]
    compared = [row for row in rows if row["format"]]
    tasks = _by_format(results, rows)
    lines = {(row["format"], row["factor"]): _changed(row) for row in compared}
    return grids.grid(
        list(lines.values()),
        [title(results, name) for name in tasks],
        {(_changed(row), title(results, row["task"])): row for row in compared},
    )


def own_shares(results: dict[str, Any]) -> Figure | None:
    """The metric against the share of rows of the task's own format, a panel a task."""
    rows = [
        row | {"at": row["shares"][row["modality"]]}
        for row in results["mixture"]
        if row["shares"] and row["format"] in (None, row["modality"])
    ]
    return _panels(results, rows, "share of rows (log scale)", lambda value: f"{100 * value:.0f}%")


def amounts(results: dict[str, Any]) -> Figure | None:
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
    with canvas.style():
        drawn = canvas.figure(0.7 + 1.5 * lines)
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
            axes.set_title(title(results, task), fontsize=9)
            axes.set_ylabel(f"{summary.metric(results, task)}, %", fontsize=8)
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
        (row["at"], summary.point(row["labels"], row["values"])) for row in rows if row["at"]
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
