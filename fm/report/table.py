"""The comparison table: for the terminal and as CSV."""

import csv
import io
from typing import Any

from fm.report import arms, formats
from fm.report.schema import Row, task_names, tidy
from fm.report.verdict import verdict

_HEADINGS = (
    "task",
    "labels",
    "arm - baseline",
    "points",
    "95% interval",
    "p",
    "Holm p",
    "seeds",
    "",
)
_WIDTH = 100
_COLUMNS = (
    *("task", "labels", "arm", "baseline", "difference", "low", "high", "p", "p_adjusted"),
    *("seeds", "items", "run_variance", "item_variance"),
)


def comparisons(results: dict[str, Any]) -> list[Row]:
    """The comparisons of tidy `results` by task, baseline, arm and labels, in the fixed orders."""
    tasks = {task: place for place, task in enumerate(task_names(results))}
    rows = results["comparisons"]
    names = {row["arm"] for row in rows} | {row["baseline"] for row in rows}
    place = {name: number for number, name in enumerate(arms.ordered(names))}
    return sorted(
        rows,
        key=lambda row: (
            tasks.get(row["task"], len(tasks)),
            place[row["baseline"]],
            place[row["arm"]],
            row["labels"] or 0,
        ),
    )


def text_table(results: dict) -> str:
    """The comparison table in plain text, at most 100 columns wide, without a last newline.

    Differences are in percentage points, higher better.

    Raises:
        UserError: `results` is not of schema 1.
    """
    rows = comparisons(tidy(results))
    if not rows:
        return "No comparisons."
    lines = [_HEADINGS, *(_line(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    left = {0, 2, 8}
    text = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    lines = [text[0], "-" * max(map(len, text)), *text[1:]]
    return "\n".join(line[:_WIDTH] for line in lines)


def csv_table(results: dict[str, Any]) -> str:
    """The comparisons of tidy `results` as CSV: fractions and variances, unrounded."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in comparisons(results):
        parts = row["variance"] or {}
        variances = {"run_variance": parts.get("run"), "item_variance": parts.get("item")}
        writer.writerow(row | variances)
    return out.getvalue()


def _line(row: Row) -> tuple[str, ...]:
    cells = (
        row["task"],
        formats.count(row["labels"]),
        f"{_fit(row['arm'], 10)} - {_fit(row['baseline'], 10)}",
        formats.points(row["difference"]),
        formats.interval(row["low"], row["high"]),
        formats.p_value(row["p"]),
        formats.p_value(row["p_adjusted"]),
        formats.count(row["seeds"]),
        verdict(row),
    )
    ascii_figures = str.maketrans({"\N{MINUS SIGN}": "-", formats.MISSING: "-"})
    return (_fit(cells[0], 12), *(cell.translate(ascii_figures) for cell in cells[1:]))


def _fit(text: str, width: int) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= width else text[: width - 3] + "..."
