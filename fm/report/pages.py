"""Which plots a report holds, and the file name, caption and description of each."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from fm.errors import UserError
from fm.files import atomic_write
from fm.report import formats, plots, schema, style, tables, unified
from fm.report.methodology import methodology_notes, significant_after_correction
from fm.report.schema import Row, capitalize_first, parse, task_names, task_title
from fm.report.tables import comparison_rows, csv_table
from fm.report.verdict import findings, outcome


@dataclasses.dataclass(frozen=True)
class RenderedFigure:
    """One plot: the section and task it belongs to, a safe file name, its words and its PNG."""

    section: str
    task: str | None
    file_name: str
    caption: str
    alt: str
    png: bytes


def render_figures(results: dict[str, Any]) -> list[RenderedFigure]:
    """All plots for which tidy `results` hold data, task by task."""
    drawings: list[RenderedFigure] = []
    for section, task, caption, alt, figure in _figures(results):
        if figure is not None:
            file = _file_name(section, task, {drawing.file_name for drawing in drawings})
            drawings.append(RenderedFigure(section, task, file, caption, alt, style.to_png(figure)))
    return drawings


def _figures(results: dict[str, Any]) -> Iterator[tuple[str, str | None, str, str, Figure | None]]:
    for task in task_names(results):
        name = task_title(results, task)
        yield (
            *("accuracy", task, name),
            f"{name}: test accuracy against the number of labels, one line for each arm",
            plots.accuracy(results, task),
        )
        rows = [row for row in results["comparisons"] if row["task"] == task]
        for baseline in schema.ordered({row["baseline"] for row in rows}):
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
    for labels in unified.multitask_budgets(results):
        yield (
            *("overview", None, f"All tasks, {formats.count(labels)} labels, points"),
            f"grid: differences of pairs of arms on each task at {labels} labels",
            unified.overview_grid(results, labels),
        )
    pretraining = [row for row in results["curves"] if row["kind"] == "pretrain"]
    for task, unit in dict.fromkeys((row["task"], row["unit"]) for row in pretraining):
        name = task_title(results, task)
        yield (
            *("pretraining", task, f"{name}: pretraining, {unit or 'loss'}"),
            f"{name}: {unit or 'loss'} against the number of pieces seen in pretraining",
            plots.pretraining(results, task, unit),
        )
    for unit, words, _ in tables.cost_units(results):
        yield (
            *("bill", None, f"The bill in {words}"),
            f"{words} of each way against the number of tasks",
            tables.amortized_cost_figure(results, unit),
        )
    for section, caption, alt, figure in plots.pretraining_variant_figures(results):
        yield section, None, caption, alt, figure


def _file_name(section: str, task: str | None, taken: set[str]) -> str:
    """A name made of letters, digits and dashes: a task's name must not leave the folder."""
    stem = re.sub(r"[^a-z0-9]+", "-", f"{section}-{task or 'all'}".lower()).strip("-")[:60]
    tries = [f"{stem}.png", *(f"{stem}-{number}.png" for number in range(2, len(taken) + 3))]
    return next(name for name in tries if name not in taken)


# Kinds of data that may be put into the page, and how each begins.
_BEGINS = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/gif": b"GIF8",
    "audio/wav": b"RIFF",
}
_MOST, _LONGEST = 12, 600


def render_report(results: dict[str, Any], drawings: list[RenderedFigure]) -> str:
    """The page as HTML; everything from the results is escaped, nothing is loaded from outside."""
    environment = template_environment()
    environment.filters |= {
        "points": formats.points,
        "interval": formats.interval,
        "percent": formats.percent,
        "p": formats.p_value,
        "count": formats.count,
        "flops": formats.flops,
        "seconds": formats.seconds,
        "bytes": formats.num_bytes,
        "multiplier": formats.multiplier,
        "spread": formats.std_points,
        "plain": formats.config_value,
        "verdict": outcome,
        "embedded": data_uri,
        "short": _short,
        "capital": capitalize_first,
    }
    names = {cell["arm"] for cell in results["cells"]}
    names |= {row[side] for row in results["comparisons"] for side in ("arm", "baseline")}
    return environment.get_template("report.html.jinja").render(
        results=results,
        findings=findings(results),
        claims=unified.claims(results) if results["experiment"] == "unify" else [],
        following=unified.instruction_following_rows(results),
        conditions=unified.CONDITIONS,
        bill=tables.amortized_cost_table(results),
        bill_units=[words for _, words, _ in tables.cost_units(results)],
        break_evens=tables.break_even_rows(results),
        shares=unified.pretraining_shares(results),
        arms=[schema.describe(name) for name in schema.ordered(names)],
        tasks=[(task, task_title(results, task)) for task in task_names(results)],
        accuracies=[_accuracies(results, task) for task in task_names(results)],
        comparisons=_grouped(comparison_rows(results)),
        equivalents=_grouped([_equivalent(results, row) for row in results["equivalents"]]),
        ledger=_grouped(results["ledger"]),
        methods=_grouped(results["methods"]),
        mistakes=_grouped(results["mistakes"]),
        samples=_grouped(results["samples"]),
        most=_MOST,
        titles={row["task"]: task_title(results, row["task"]) for row in _with_task(results)},
        drawings={section: list(group) for section, group in _by_section(drawings).items()},
        survivors=significant_after_correction(results),
        notes=methodology_notes(results),
        config=flatten_config(results["config"]),
        missing=formats.MISSING,
    )


def template_environment() -> jinja2.Environment:
    """The templates of this room: all that is put into them is escaped, a missing name fails."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("fm.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_uri(data: str | bytes | None, kind: str = "image/png") -> str | None:
    """A file (bytes, or text in base64) as a data URI, or None if it is not of that kind at all."""
    if isinstance(data, str):
        try:
            data = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            return None
    if not data or not data.startswith(_BEGINS[kind]):
        return None
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def flatten_config(config: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as dotted names and values, in its own order."""
    if isinstance(config, dict) and config:
        pairs = [
            flatten_config(value, f"{prefix}.{key}" if prefix else key)
            for key, value in config.items()
        ]
        return [pair for group in pairs for pair in group]
    if not prefix:
        return []
    whole = isinstance(config, list | dict)
    return [
        (prefix, json.dumps(config, ensure_ascii=False) if whole else formats.config_value(config))
    ]


def _accuracies(results: dict[str, Any], task: str) -> dict[str, Any]:
    """The numbers behind the accuracy plot: a row for each budget, a cell for each arm."""
    lines = tables.seed_means(results, task)
    names = schema.ordered(set(lines))
    points = {(name, point.num_labels): point for name in names for point in lines[name]}
    budgets = sorted({labels for _, labels in points})
    rows = [(labels, [points.get((name, labels)) for name in names]) for labels in budgets]
    headed = f"{task_title(results, task)}, {tables.metric_name(results, task)}"
    return {"title": headed, "arms": names, "rows": rows}


def _equivalent(results: dict[str, Any], row: Row) -> Row:
    """The row with two more: `worth`, in labels from scratch, and `bound`, where the range ends."""
    ratio, labels = row["label_multiplier"], row["labels"]
    lines = tables.seed_means(results, row["task"]).get("scratch", [])
    bound = ratio
    if row["beyond"] and bound is None and lines and labels:
        bound = lines[-1 if row["beyond"] == "above" else 0].num_labels / labels
    worth = ratio * labels if ratio and labels and not row["beyond"] else None
    return row | {"worth": worth, "bound": bound}


def _grouped(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows by task, tasks in order of appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["task"], []).append(row)
    return groups


def _by_section(drawings: list[RenderedFigure]) -> dict[str, list[RenderedFigure]]:
    groups: dict[str, list[RenderedFigure]] = {}
    for drawing in drawings:
        groups.setdefault(drawing.section, []).append(drawing)
    return groups


def _with_task(results: dict[str, Any]) -> list[Row]:
    return [
        row
        for rows in results.values()
        if isinstance(rows, list)
        for row in rows
        if isinstance(row, dict) and "task" in row
    ]


def _short(text: Any) -> str:
    """A beginning that fits a card; of empty lines one stays."""
    text = re.sub(r"\n\s*\n", "\n\n", str(text or ""))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST].rstrip()} …"


def write(results: dict, out: Path) -> Path:
    """Write `report.html`, `table.csv` and `plots/*.png` into the folder `out`.

    The folder is made if need be. No file is ever seen half-written, the page comes last, and a
    report that is already there stays as it was if this one can't be made.

    Args:
        results: the content of a results.json of schema 1. It need hold only the contract's
            fields; a section without data says so in one line.
        out: the folder.

    Returns:
        The path of report.html.

    Raises:
        UserError: `results` is not of schema 1, or `out` is a file.
    """
    tidied = parse(results)
    drawings = render_figures(tidied)
    page, table = render_report(tidied, drawings), csv_table(tidied)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; the report needs a folder")
    (out / "plots").mkdir(parents=True, exist_ok=True)
    for drawing in drawings:
        atomic_write(out / "plots" / drawing.file_name, drawing.png)
    atomic_write(out / "table.csv", table.encode())
    atomic_write(out / "report.html", page.encode())
    return out / "report.html"
