"""The page: tidy results and plots in, one self-contained HTML text out."""

import base64
import binascii
import json
import re
from typing import Any

import jinja2

from fm.report import arms, bill, formats, summary, unified
from fm.report.gallery import Drawing
from fm.report.notes import notes, survivors
from fm.report.schema import Row, capital, task_names, title
from fm.report.table import comparisons
from fm.report.verdict import findings, verdict

# Kinds of data that may be put into the page, and how each begins.
_BEGINS = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/gif": b"GIF8",
    "audio/wav": b"RIFF",
}
_MOST, _LONGEST = 12, 600


def render(results: dict[str, Any], drawings: list[Drawing]) -> str:
    """The page as HTML; everything from the results is escaped, nothing is loaded from outside."""
    environment = templates()
    environment.filters |= {
        "points": formats.points,
        "interval": formats.interval,
        "percent": formats.percent,
        "p": formats.p_value,
        "count": formats.count,
        "flops": formats.flops,
        "seconds": formats.seconds,
        "bytes": formats.size,
        "multiplier": formats.multiplier,
        "spread": formats.variance,
        "plain": formats.plain,
        "verdict": verdict,
        "embedded": embedded,
        "short": _short,
        "capital": capital,
    }
    names = {cell["arm"] for cell in results["cells"]}
    names |= {row[side] for row in results["comparisons"] for side in ("arm", "baseline")}
    return environment.get_template("report.html.jinja").render(
        results=results,
        findings=findings(results),
        claims=unified.claims(results) if results["experiment"] == "unify" else [],
        following=unified.following(results),
        conditions=unified.CONDITIONS,
        bill=bill.table(results),
        bill_units=[words for _, words, _ in bill.units(results)],
        break_evens=bill.break_evens(results),
        shares=unified.shares(results),
        arms=[arms.describe(name) for name in arms.ordered(names)],
        tasks=[(task, title(results, task)) for task in task_names(results)],
        accuracies=[_accuracies(results, task) for task in task_names(results)],
        comparisons=_grouped(comparisons(results)),
        equivalents=_grouped([_equivalent(results, row) for row in results["equivalents"]]),
        ledger=_grouped(results["ledger"]),
        methods=_grouped(results["methods"]),
        mistakes=_grouped(results["mistakes"]),
        samples=_grouped(results["samples"]),
        most=_MOST,
        titles={row["task"]: title(results, row["task"]) for row in _with_task(results)},
        drawings={section: list(group) for section, group in _by_section(drawings).items()},
        survivors=survivors(results),
        notes=notes(results),
        config=flat(results["config"]),
        missing=formats.MISSING,
    )


def templates() -> jinja2.Environment:
    """The templates of this room: all that is put into them is escaped, a missing name fails."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("fm.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def embedded(data: str | bytes | None, kind: str = "image/png") -> str | None:
    """A file (bytes, or text in base64) as a data URI, or None if it is not of that kind at all."""
    if isinstance(data, str):
        try:
            data = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            return None
    if not data or not data.startswith(_BEGINS[kind]):
        return None
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def flat(config: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as dotted names and values, in its own order."""
    if isinstance(config, dict) and config:
        pairs = [flat(value, f"{prefix}.{key}" if prefix else key) for key, value in config.items()]
        return [pair for group in pairs for pair in group]
    if not prefix:
        return []
    whole = isinstance(config, list | dict)
    return [(prefix, json.dumps(config, ensure_ascii=False) if whole else formats.plain(config))]


def _accuracies(results: dict[str, Any], task: str) -> dict[str, Any]:
    """The numbers behind the accuracy plot: a row for each budget, a cell for each arm."""
    lines = summary.summarise(results, task)
    names = arms.ordered(set(lines))
    points = {(name, point.labels): point for name in names for point in lines[name]}
    budgets = sorted({labels for _, labels in points})
    rows = [(labels, [points.get((name, labels)) for name in names]) for labels in budgets]
    headed = f"{title(results, task)}, {summary.metric(results, task)}"
    return {"title": headed, "arms": names, "rows": rows}


def _equivalent(results: dict[str, Any], row: Row) -> Row:
    """The row with two more: `worth`, in labels from scratch, and `bound`, where the range ends."""
    ratio, labels = row["label_multiplier"], row["labels"]
    lines = summary.summarise(results, row["task"]).get("scratch", [])
    bound = ratio
    if row["beyond"] and bound is None and lines and labels:
        bound = lines[-1 if row["beyond"] == "above" else 0].labels / labels
    worth = ratio * labels if ratio and labels and not row["beyond"] else None
    return row | {"worth": worth, "bound": bound}


def _grouped(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows by task, tasks in order of appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["task"], []).append(row)
    return groups


def _by_section(drawings: list[Drawing]) -> dict[str, list[Drawing]]:
    groups: dict[str, list[Drawing]] = {}
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
