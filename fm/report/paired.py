"""Report of a paired comparison: words, table, CSV, forest plot and page from its results."""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fm.evaluation.power import MAX_COLUMN_FACTOR
from fm.report import formats, style
from fm.report.forest import DrawRow, draw_row, forest_plot
from fm.report.pages import (
    RenderedFigure,
    data_uri,
    flatten_config,
    template_environment,
    write_page,
)
from fm.report.parsing import sanitize
from fm.report.schema import capitalize_first

Row = dict[str, Any]
LEVEL = 0.05
SCORE = "score"
_CSV_COLUMNS = (
    *("arm", "baseline", "metric", "difference", "low", "high", "p", "p_adjusted"),
    *("p_equivalence", "margin", "verdict", "detectable", "seeds", "items", "groups"),
    *("seeds_to_decide", "items_to_decide", "run_variance", "item_variance"),
)
# Columns of the scores of files: key of a cell, heading, and how a value is written.
_SCORE_COLUMNS = (
    ("value", "{metric}", formats.percent),
    ("balanced_accuracy", "balanced accuracy", formats.percent),
    ("macro_f1", "macro-F1", formats.percent),
    ("nll", "NLL", "{:.3f}".format),
    ("ece", "ECE", formats.percent),
)
_WORDS = {
    "better": "better",
    "worse": "worse",
    "equivalent": "equivalent",
    "better within the margin": "better, small",
    "worse within the margin": "worse, small",
    "unclear": "unclear",
}
_MAX_NAME = 16


def in_units(results: Row) -> bool:
    """Returns whether scores are in units of the data, not fractions that are shown as points."""
    return bool(results["tasks"][0].get("in_units", results["config"]["metric"] == SCORE))


def verdict(row: Row) -> str:
    """Returns what a comparison shows: a key of `_WORDS`, from its adjusted and equivalence p.

    `better` and `worse` need an adjusted p below 0.05. Equivalence (two one-sided tests at the
    margin) is tested by itself, so a difference may be there and yet lie within the margin.
    """
    clear = row["p_adjusted"] < LEVEL
    within = row["p_equivalence"] is not None and row["p_equivalence"] < LEVEL
    if not clear:
        return "equivalent" if within else "unclear"
    side = "better" if row["difference"] > 0 else "worse"
    return f"{side} within the margin" if within else side


def headline(results: Row) -> str:
    """Returns the findings as plain text, a line each, and what the intervals cover."""
    lines = [f"{decision}: {figures}" for decision, figures in findings(results)]
    return "\n".join([*lines, coverage_sentence(results)])


def findings(results: Row) -> list[tuple[str, str]]:
    """Returns what each comparison shows, in a few words, and a sentence or two of figures."""
    return [(_decision(results, row), _figures(results, row)) for row in results["comparisons"]]


def _decision(results: Row, row: Row) -> str:
    arm, baseline, shows = row["arm"], row["baseline"], verdict(row)
    margin = margin_words(results)
    if shows == "unclear":
        return f"No clear difference between {arm} and {baseline}"
    if shows == "equivalent":
        return f"{arm} and {baseline} are equivalent within {margin}"
    if shows in ("better", "worse"):
        return f"{arm} is {shows} than {baseline}"
    return f"{arm} is {shows.split()[0]} than {baseline}, but by less than {margin}"


def _figures(results: Row, row: Row) -> str:
    shows = verdict(row)
    of = "in" if in_units(results) else "of"
    text = (
        f"{_signed(results, row['difference'])}{_unit(results, row['difference'])} {of} "
        f"{results['tasks'][0]['metric']}, 95% interval {_interval(results, row)}, p "
        f"{_p(row['p'])}"
    )
    if len(results["comparisons"]) > 1:
        text += f", adjusted for {len(results['comparisons'])} comparisons {_p(row['p_adjusted'])}"
    if "equivalent" in shows or "within" in shows:
        text += f", equivalence p {_p(row['p_equivalence'])}"
    if shows != "unclear":
        return f"{text}."
    if row["detectable"] is not None:
        text += (
            ". The smallest difference these data would have shown, with power 80%, is "
            f"{_plain(results, row['detectable'])}{_unit(results, row['detectable'])}"
        )
    return f"{text}. {to_decide(row)}"


def _p(value: float | None) -> str:
    return formats.p_value(value).replace("<", "below ")


def to_decide(row: Row) -> str:
    """Returns how many more seeds or items would show a difference of the size found."""
    ways = [
        f"{formats.count(row[f'{what}_to_decide'])} more {what}"
        for what in ("seeds", "items")
        if row[f"{what}_to_decide"] is not None
    ]
    if not ways and row["seeds"] == 1:
        return (
            f"Even {MAX_COLUMN_FACTOR} times as many items would not show a difference as small as "
            "that found."
        )
    if not ways:
        return (
            "Neither more seeds alone nor more items alone would show a difference as small as "
            "that found."
        )
    return f"If the difference is as large as found, {' or '.join(ways)} would show it."


def coverage_sentence(results: Row) -> str:
    """Returns what the intervals cover: new items, new groups, new runs."""
    task = results["tasks"][0]
    seeds = len(results["seed_names"])
    items = f"the {formats.count(task['test'])} test items"
    if task["item_group"]:
        items += f" in {formats.count(task['groups'])} groups"
    if seeds == 1:
        return (
            f"One run of each: intervals cover the choice of {items} only. Another seed could give "
            "another difference, by an amount that one run cannot show."
        )
    return f"Intervals cover the choice of {items} and new runs, judged by {seeds} seeds."


def text_table(results: Row) -> str:
    """Returns the scores and the comparisons as plain-text tables, at most 100 columns wide."""
    headings = [[name for name, _ in score_columns(results)]]
    scores = [[each["name"], *each["cells"]] for each in score_rows(results)]
    compared = [
        [
            f"{_shorten(row['arm'])} − {_shorten(row['baseline'])}",
            _signed(results, row["difference"]),
            _interval(results, row),
            formats.p_value(row["p"]),
            formats.p_value(row["p_adjusted"]),
            formats.p_value(row["p_equivalence"]),
            _WORDS[verdict(row)],
        ]
        for row in results["comparisons"]
    ]
    unit = results["tasks"][0]["metric"] if in_units(results) else "points"
    heading = ["arm − baseline", unit, "95% interval", "p", "adjusted", "equiv.", ""]
    scores = [[_shorten(row[0]), *row[1:]] for row in scores]
    tables = [["", *headings[0]], *scores], [heading, *compared]
    return "\n\n".join(_aligned(table) for table in tables)


def _aligned(table: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    left = (0, len(widths) - 1) if table[0][-1] == "" else (0,)
    lines = [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def score_columns(results: Row) -> list[tuple[str, str]]:
    """Returns (heading, key) of the figures that any file has."""
    metric = results["tasks"][0]["metric"]
    return [
        (heading.format(metric=metric), key)
        for key, heading, _ in _SCORE_COLUMNS
        if heading != metric and any(cell[key] is not None for cell in results["cells"])
    ]


def score_rows(results: Row) -> list[Row]:
    """Returns a row per file: its name and its figures as text, means over seeds."""
    writers = {key: write for key, _, write in _SCORE_COLUMNS}
    if in_units(results):
        writers["value"] = "{:.4g}".format
    rows = []
    for arm in results["arms"]:
        cells = [cell for cell in results["cells"] if cell["arm"] == arm["name"]]
        texts = []
        for _, key in score_columns(results):
            values = [cell[key] for cell in cells if cell[key] is not None]
            texts.append(writers[key](sum(values) / len(values)) if values else formats.MISSING)
        rows.append({"name": arm["name"], "cells": texts})
    return rows


def comparisons_csv(results: Row) -> str:
    """Returns the comparisons as CSV, unrounded."""
    out = io.StringIO()
    table = csv.DictWriter(out, _CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for row in results["comparisons"]:
        variance = row["variance"]
        table.writerow(
            row
            | {"metric": results["config"]["metric"], "verdict": _WORDS[verdict(row)]}
            | {f"{source}_variance": variance[source] for source in ("run", "item")}
        )
    return out.getvalue()


def write(results: Row, out_dir: Path) -> Path:
    """Writes report.html, table.csv and plots/differences.png; returns the path of report.html.

    Raises:
      UserError: `out_dir` is a file.
    """
    results = sanitize(results)
    caption = f"Differences in {results['tasks'][0]['metric']}"
    alt = f"{caption}: each file minus the other with its 95% interval"
    png = style.to_png(forest(results))
    figure = RenderedFigure("differences", None, "differences.png", caption, alt, png)
    return write_page(out_dir, render(results, figure), [figure], comparisons_csv(results))


def render(results: Row, figure: RenderedFigure) -> str:
    """Returns the report as a self-contained HTML page; all result values are escaped."""
    environment = template_environment()
    environment.filters |= {
        "count": formats.count,
        "p": formats.p_value,
        "signed": lambda value: _signed(results, value),
        "plain": lambda value: _plain(results, value),
        "interval": lambda row: _interval(results, row),
        "spread": lambda variance: _plain(
            results, None if variance is None else max(variance, 0.0) ** 0.5
        ),
        "data_uri": data_uri,
    }
    rows = [
        row | {"shows": verdict(row), "words": _WORDS[verdict(row)]}
        for row in results["comparisons"]
    ]
    return environment.get_template("paired.html.jinja").render(
        results=results,
        task=results["tasks"][0],
        metric=capitalize_first(results["tasks"][0]["metric"]),
        findings=[
            {"decision": decision, "figures": figures} for decision, figures in findings(results)
        ],
        coverage=coverage_sentence(results),
        one_run=len(results["seed_names"]) == 1,
        rows=rows,
        columns=[heading for heading, _ in score_columns(results)],
        scores=score_rows(results),
        calibrated=any(cell["ece"] is not None for cell in results["cells"]),
        unit=results["tasks"][0]["metric"] if in_units(results) else "points",
        figure=figure,
        config=flatten_config(results["config"]),
        margin=margin_words(results),
        missing=formats.MISSING,
    )


def forest(results: Row) -> Figure:
    """Draws every difference with its 95% interval; the margin of equivalence is a gray band."""
    groups: dict[str, list[tuple[str, DrawRow]]] = {}
    for row in results["comparisons"]:
        draw = functools.partial(_draw_difference, row=row, results=results)
        groups.setdefault(f"against {row['baseline']}", []).append((row["arm"], draw))
    scale = 1 if in_units(results) else 100
    margin = results["config"]["margin"]
    words = "" if scale == 1 else ", percentage points"
    figure = forest_plot(
        list(groups.items()), f"difference{words} (right of 0: better)", row_height=0.26
    )
    if margin is not None:
        figure.axes[0].axvspan(-scale * margin, scale * margin, color="#eeeeee", zorder=0)
    return figure


def _draw_difference(axes: Axes, place: int, row: Row, results: Row) -> None:
    scale = 1 if in_units(results) else 100
    text = f"{_signed(results, row['difference'])} [{_interval(results, row)}]"
    ends = (scale * row["low"], scale * row["high"])
    draw_row(axes, place, verdict(row).split()[0], scale * row["difference"], ends, text)


def margin_words(results: Row) -> str:
    """Returns the margin of equivalence with its unit; "" without one."""
    margin = results["config"]["margin"]
    if margin is None:
        return ""
    if in_units(results):
        return f"{margin:g}"
    return f"{100 * margin:g} point{'s' * (100 * margin != 1)}"


def _signed(results: Row, value: float | None) -> str:
    if not in_units(results):
        return formats.points(value)
    if value is None:
        return formats.MISSING
    return f"{value:+.3g}".replace("-", "\N{MINUS SIGN}")


def _plain(results: Row, value: float | None) -> str:
    if not in_units(results):
        return formats.points(value, signed=False)
    return formats.MISSING if value is None else f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _interval(results: Row, row: Row) -> str:
    return f"{_plain(results, row['low'])} to {_plain(results, row['high'])}"


def _unit(results: Row, value: float) -> str:
    if in_units(results):
        return ""
    return " point" if _plain(results, value).strip("\N{MINUS SIGN}") == "1.0" else " points"


def _shorten(name: str, width: int = _MAX_NAME) -> str:
    return name if len(name) <= width else f"{name[: width - 3]}..."
