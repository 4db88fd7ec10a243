"""The numbers of a report as tables: means over seeds, comparisons, costs; as text and CSV."""

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from fm.evaluation.statistics import mean_interval
from fm.report import formats
from fm.report.decisions import (
    decision_outcome,
    decisions,
    mean_score,
    outcome,
    outcome_words,
    smallest_multiplier,
)
from fm.report.parsing import parse
from fm.report.records import ChangedInstructionScore, Comparison, Curve, Decision
from fm.report.schema import Results

# Unit, its name on the page, and how a value is written.
COST_UNITS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("flops", "computing", formats.flops),
    ("seconds", "time", formats.seconds),
    ("parameters", "parameters kept", formats.si_prefixed),
)

# Wordings of an instruction, see `fm.study.multitask_instructions`.
CONDITIONS = ("held out", "trained", "dropped", "swapped")

_HEADINGS = ("task", "labels", "arm − baseline", "points", "95% interval", "adj. p", "least", "")
_LEFT_ALIGNED = (0, 2, 7)
_MAX_WIDTH = 100
_CSV_COLUMNS = (
    *("task", "num_labels", "arm", "baseline", "difference", "low", "high", "p", "p_adjusted"),
    *("p_equivalence", "margin", "detectable", "seeds", "checkpoints", "items", "groups"),
    *("seeds_to_decide", "items_to_decide", "primary", "run_variance", "item_variance"),
)
# Scores beside the task's metric: field, heading, and how a value is written.
EXTRA_SCORES: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("balanced_accuracy", "balanced accuracy", formats.percent),
    ("macro_f1", "macro-F1", formats.percent),
    ("mean_absolute_error", "mean absolute error", formats.three_digits),
    ("nll", "NLL, nats", formats.three_digits),
    ("ece", "ECE", formats.percent),
)
# Parts of an arm's CPU time, of compute_cost or (means over seeds) of cells.
CPU_SECONDS: tuple[tuple[str, str], ...] = (
    ("pretrain_cpu_seconds", "pretraining"),
    ("adapt_cpu_seconds", "adapting"),
    ("compile_seconds", "compiling"),
    ("feature_cpu_seconds", "features"),
)


@dataclasses.dataclass(frozen=True)
class SeedMean:
    """An arm's mean score over seeds at one number of labels; no interval for a single seed."""

    num_labels: float
    mean: float
    low: float | None
    high: float | None
    seeds: int


def seed_mean(num_labels: float, values: list[float]) -> SeedMean:
    """Returns the mean of per-seed scores with its 95% t interval."""
    if len(values) == 1:
        return SeedMean(num_labels, float(np.mean(values)), None, None, 1)
    found = mean_interval(np.array(values))
    return SeedMean(num_labels, found.mean, found.low, found.high, len(values))


def seed_means(results: Results, task: str) -> dict[str, list[SeedMean]]:
    """Returns each arm's means over seeds on a task, ordered by number of labels."""
    values: dict[str, dict[float, list[float]]] = {}
    for cell in results.cells:
        if cell.task == task and cell.value is not None and cell.num_labels is not None:
            by_labels = values.setdefault(cell.arm or "", {})
            by_labels.setdefault(cell.num_labels, []).append(cell.value)
    return {
        arm: [seed_mean(num_labels, by_labels[num_labels]) for num_labels in sorted(by_labels)]
        for arm, by_labels in values.items()
    }


def score_table(results: Results, task: str) -> dict[str, Any]:
    """Returns a task's mean scores: by number of labels, a row per arm with all its scores."""
    means = seed_means(results, task)
    cells = [cell for cell in results.cells if cell.task == task]
    extra = [each for each in EXTRA_SCORES if any(getattr(cell, each[0]) for cell in cells)]
    groups: dict[float, list[tuple[str, SeedMean, list[str]]]] = {}
    for arm in results.arm_names(means):
        for mean in means[arm]:
            runs = results.runs(task, arm, mean.num_labels)
            others = [write(_mean(runs, field)) for field, _, write in extra]
            groups.setdefault(mean.num_labels, []).append((arm, mean, others))
    about = results.task(task)
    return {
        "title": about.title,
        "lowest": -1 if about.target == "value" else 0,
        "columns": [about.metric, *(words for _, words, _ in extra)],
        "groups": sorted(groups.items()),
    }


def _mean(rows: Iterable[Any], field: str) -> float | None:
    values = [value for row in rows if (value := getattr(row, field)) is not None]
    return float(np.mean(values)) if values else None


def cost_rows(results: Results, task: str | None) -> list[dict[str, Any]]:
    """Returns a task's `compute_cost` rows, each with the arm's CPU seconds by part.

    Compilation and features are means over seeds at the row's number of labels, or over all.
    """
    return [
        {
            "row": row,
            "cpu": {
                field: getattr(row, field)
                if hasattr(row, field)
                else _mean(results.runs(task, row.arm, row.num_labels), field)
                for field, _ in CPU_SECONDS
            },
        }
        for row in results.compute_cost
        if row.task == task
    ]


def decision_table(results: Results, task: str) -> list[dict[str, Any]]:
    """Returns a row per number of labels: the decision, and the scores and words that it needs."""
    return [
        {
            "row": row,
            "own_value": mean_score(results, task, row.best_pretrained, row.num_labels),
            "rival_value": mean_score(results, task, row.best_rival, row.num_labels),
            "outcome": decision_outcome(row),
            "multiplier": smallest_multiplier(results, row),
            "verdict": _verdict(row),
        }
        for row in decisions(results, task)
    ]


def _verdict(row: Decision) -> str:
    shown = decision_outcome(row)
    words = {"better": "pretrain", "worse": "do not pretrain"}
    return words.get(shown, outcome_words(row, shown))


def sorted_comparisons(results: Results) -> list[Comparison]:
    """Returns the comparisons by task, baseline, arm and number of labels, all budgets last."""
    tasks = {task: place for place, task in enumerate(results.task_names())}
    arms = {arm.name: place for place, arm in enumerate(results.arms)}
    return sorted(
        results.comparisons,
        key=lambda row: (
            tasks.get(row.task or "", len(tasks)),
            arms.get(row.baseline or "", len(arms)),
            arms.get(row.arm or "", len(arms)),
            math.inf if row.num_labels is None else row.num_labels,
        ),
    )


def text_table(results: dict) -> str:
    """Returns the comparisons as a plain-text table, at most 100 columns wide.

    Differences are in percentage points, higher better; `least` is the smallest difference that
    the design would have seen; no final newline.

    Args:
      results: the content of a results.json.

    Raises:
      UserError: `results` is not valid; see `fm.report.parsing.parse`.
    """
    rows = sorted_comparisons(parse(results))
    if not rows:
        return "No comparisons."
    cells = [_HEADINGS, *(_text_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADINGS))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in _LEFT_ALIGNED else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(line[:_MAX_WIDTH] for line in lines)


def _text_cells(row: Comparison) -> tuple[str, ...]:
    cells = (
        "all" if row.num_labels is None else formats.count(row.num_labels),
        f"{_shorten(row.arm, 13)} − {_shorten(row.baseline, 10)}",
        formats.points(row.difference),
        formats.interval(row.low, row.high),
        formats.p_value(row.p_adjusted),
        formats.detectable(row.detectable).replace("over ", ">"),
        "improving" if outcome(row) == "still improving" else outcome(row),
    )
    return (_shorten(row.task, 12), *cells)


def _shorten(text: str | None, width: int) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= width else text[: width - 1] + "…"


def comparisons_csv(results: Results) -> str:
    """Returns the score differences between arms as CSV text, with p-values and variances."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for row in sorted_comparisons(results):
        variance = row.variance
        variances = (variance.run, variance.item) if variance else (None, None)
        writer.writerow([*(getattr(row, name) for name in _CSV_COLUMNS[:-2]), *variances])
    return out.getvalue()


def instruction_following_rows(results: Results) -> list[dict[str, Any]]:
    """Returns a row per task: its score under each instruction wording, None if not measured."""
    found: dict[tuple, ChangedInstructionScore] = {
        (row.task, row.condition): row for row in results.instruction_following
    }
    return [
        {"task": task, "metric": metric, "cells": [found.get((task, each)) for each in CONDITIONS]}
        for task, metric in dict.fromkeys((row.task, row.metric) for row in found.values())
    ]


def pretraining_token_shares(curves: Iterable[Curve]) -> list[tuple[str | None, float]]:
    """Returns each modality with its fraction of a joint model's pretraining tokens."""
    return [(row.task, row.share) for row in curves if row.share is not None]


def cost_units(results: Results) -> list[tuple[str, str, Callable[[float | None], str]]]:
    """Returns (field, label, formatter) of each cost unit that all amortized cost rows have."""
    rows = results.amortized_cost
    return [unit for unit in COST_UNITS if all(getattr(row, unit[0]) is not None for row in rows)]


def amortized_cost_table(results: Results) -> dict[str, Any]:
    """Returns a table per cost unit: amortized cost by arm (rows) and number of tasks (columns)."""
    rows = amortized_cost_at_fewest_labels(results)
    counts = sorted({row.num_tasks for row in rows})
    found = {(row.arm, row.num_tasks): row for row in rows}
    arms = results.arm_names(row.arm for row in rows)
    groups = [
        (words, [(arm, [write(getattr(found[arm, k], unit)) for k in counts]) for arm in arms])
        for unit, words, write in cost_units(results)
    ]
    return {"counts": counts, "groups": groups, "num_labels": rows[0].num_labels if rows else None}


def amortized_cost_at_fewest_labels(results: Results) -> list:
    """Returns the `amortized_cost` rows with the fewest labels, sorted by number of tasks."""
    fewest = min((row.num_labels or 0 for row in results.amortized_cost), default=0)
    rows = [row for row in results.amortized_cost if (row.num_labels or 0) == fewest]
    return sorted(rows, key=lambda row: row.num_tasks or 0)


def break_even_rows(results: Results) -> list[dict[str, Any]]:
    """Returns a table row per pair of arms with the break-even number of tasks per cost unit."""
    return [
        {
            "arm": row.arm,
            "baseline": row.baseline,
            "cells": [_break_even_cell(row, unit) for unit, _, _ in cost_units(results)],
            "compared": f"{len(row.tasks or [])} of {len(results.tasks)}",
            "note": _unreached(results, row),
        }
        for row in results.break_even
    ]


def _break_even_cell(row: Any, unit: str) -> str:
    if not row.tasks:
        return formats.MISSING
    first, last = getattr(row, unit), getattr(row, f"{unit}_until")
    if first is not None:
        return "always" if first == 1 else f"from {formats.count(first)} tasks"
    return "never" if last is None else f"only up to {formats.count(last)}"


def _unreached(results: Results, row: Any) -> str:
    """Which arm does not reach the other's quality, and on which tasks."""
    missed: dict[str, list[str]] = {}
    for each in row.never or []:
        missed.setdefault(each.arm, []).append(str(results.task(each.task).title))
    return "; ".join(
        f"{arm} never gets there on {', '.join(titles)}" for arm, titles in missed.items()
    )
