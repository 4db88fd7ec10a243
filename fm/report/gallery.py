"""Which plots a report holds, and the file name, caption and description of each."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure

from fm.report import arms, bill, canvas, formats, plots, studies, unified
from fm.report.schema import task_names, title


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One plot: the section and task it belongs to, a safe file name, its words and its PNG."""

    section: str
    task: str | None
    file: str
    caption: str
    alt: str
    png: bytes


def draw(results: dict[str, Any]) -> list[Drawing]:
    """All plots for which tidy `results` hold data, task by task."""
    drawings: list[Drawing] = []
    for section, task, caption, alt, figure in _figures(results):
        if figure is not None:
            file = _file_name(section, task, {drawing.file for drawing in drawings})
            drawings.append(Drawing(section, task, file, caption, alt, canvas.png(figure)))
    return drawings


def _figures(results: dict[str, Any]) -> Iterator[tuple[str, str | None, str, str, Figure | None]]:
    for task in task_names(results):
        name = title(results, task)
        yield (
            *("accuracy", task, name),
            f"{name}: test accuracy against the number of labels, one line for each arm",
            plots.accuracy(results, task),
        )
        rows = [row for row in results["comparisons"] if row["task"] == task]
        for baseline in arms.ordered({row["baseline"] for row in rows}):
            yield (
                *("differences", task, f"{name}, against {baseline}"),
                f"{name}: differences of each arm to {baseline} with 95% intervals",
                plots.forest(results, task, baseline),
            )
        yield (
            *("multiplier", task, name),
            f"{name}: how many times the labels training from scratch would need",
            plots.multipliers(results, task),
        )
        yield (
            *("adaptation", task, f"{name}: learning from labels"),
            f"{name}: quality against training steps, one panel for each label budget",
            plots.adaptation(results, task),
        )
    for labels in unified.budgets(results):
        yield (
            *("overview", None, f"All tasks, {formats.count(labels)} labels, points"),
            f"grid: differences of pairs of arms on each task at {labels} labels",
            unified.overview(results, labels),
        )
    pretraining = [row for row in results["curves"] if row["kind"] == "pretrain"]
    for task, unit in dict.fromkeys((row["task"], row["unit"]) for row in pretraining):
        name = title(results, task)
        yield (
            *("pretraining", task, f"{name}: pretraining, {unit or 'loss'}"),
            f"{name}: {unit or 'loss'} against the number of pieces seen in pretraining",
            plots.pretraining(results, task, unit),
        )
    for unit, words, _ in bill.units(results):
        yield (
            *("bill", None, f"The bill in {words}"),
            f"{words} of each way against the number of tasks",
            bill.figure(results, unit),
        )
    for section, caption, alt, figure in studies.figures(results):
        yield section, None, caption, alt, figure


def _file_name(section: str, task: str | None, taken: set[str]) -> str:
    """A name made of letters, digits and dashes: a task's name must not leave the folder."""
    stem = re.sub(r"[^a-z0-9]+", "-", f"{section}-{task or 'all'}".lower()).strip("-")[:60]
    tries = [f"{stem}.png", *(f"{stem}-{number}.png" for number in range(2, len(taken) + 3))]
    return next(name for name in tries if name not in taken)
