"""What to do at each number of labels: the best arms, their difference, and the word for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from fm.report import formats
from fm.report.records import Comparison, Decision, Difference
from fm.report.schema import Results

_SIGNIFICANT = 0.05
# What to do where an outcome of own pretraining against the best rival says it.
_VERDICTS = {"better": "pretrain", "worse": "do not", "still improving": "still improving"}
# Outcomes that say which of two arms is ahead; all others leave it open.
CLEAR = ("better", "worse")


def outcome(row: Difference) -> str:
    """Classifies a difference by its 95% interval and its adjusted p, which must agree.

    Returns:
      `better` or `worse` (zero outside the interval and adjusted p, if any, under 0.05), `still
      improving` (the same, but the arm behind was not trained to its end), `within` (equivalent
      within the margin), `unclear`, or `unknown` (no interval was measured).
    """
    if row.low is None or row.high is None:
        return "unknown"
    significant = row.p_adjusted is None or row.p_adjusted < _SIGNIFICANT
    if significant and (row.low > 0 or row.high < 0):
        if row.loser_improving:
            return "still improving"
        return "better" if row.low > 0 else "worse"
    if row.p_equivalence is not None and row.p_equivalence < _SIGNIFICANT:
        return "within"
    return "unclear"


def decision_outcome(row: Decision) -> str:
    """Returns the outcome that a decision's verdict states, of own pretraining to all rivals."""
    by_verdict = {verdict: shown for shown, verdict in _VERDICTS.items()}
    if row.verdict in by_verdict:
        return by_verdict[row.verdict]
    shown = outcome(row)
    return "unclear" if shown in _VERDICTS else shown


def outcome_words(row: Difference, shown: str = "") -> str:
    """Returns the outcome, or one given, in words: `within the margin of 1 point`."""
    shown = shown or outcome(row)
    if shown == "within":
        return f"within the margin of {margin_words(row.margin)}"
    if shown == "unclear" and excludes_zero(row):
        return "unclear after adjustment"
    return {
        "unclear": "no clear difference",
        "unknown": "no interval",
        "still improving": "not decided, the arm behind was still improving",
    }.get(shown, shown)


def excludes_zero(row: Difference) -> bool:
    """Returns whether zero lies outside the interval of a difference, adjusted p aside."""
    return (row.low or 0) * (row.high or 0) > 0


def margin_words(margin: float | None) -> str:
    """Formats a margin of equivalence given in 0..1: `1 point`, `2.5 points`."""
    value = f"{100 * (margin or 0.0):g}"
    return f"{value} point{'s' * (value != '1')}"


def decisions(results: Results, task: str | None) -> list[Decision]:
    """Returns what to do on a task at each number of labels, ordered by it.

    The pretrained arm is the best that the user would pretrain; the published weights have a
    column of their own. Results without decisions (older files) have them worked out from their
    cells and comparisons.
    """
    given = [row for row in results.decisions if row.task == task and row.num_labels is not None]
    if given:
        rows = [
            _worked_out(results, task, row.num_labels)
            if results.arm(row.best_pretrained).is_published
            else row
            for row in given
        ]
    else:
        budgets = {cell.num_labels for cell in results.cells if cell.task == task}
        rows = [_worked_out(results, task, number) for number in budgets if number is not None]
    found = [row for row in rows if row is not None and row.best_arm is not None]
    return sorted(found, key=lambda row: row.num_labels or 0)


def mean_score(results: Results, task: str | None, arm: str | None, num_labels: float | None):
    """Returns an arm's mean score over seeds at a number of labels, None if it was not run."""
    values = [cell.value for cell in results.runs(task, arm, num_labels) if cell.value is not None]
    return float(np.mean(values)) if values else None


def _worked_out(results: Results, task: str | None, num_labels: float | None) -> Decision | None:
    means = {
        arm.name: mean
        for arm in results.arms
        if (mean := mean_score(results, task, arm.name, num_labels)) is not None
    }
    if not means:
        return None
    pretrained = [arm for arm in means if results.arm(arm).pretrained_on is not None]
    published = [arm for arm in pretrained if results.arm(arm).is_published]
    own = _best(means, [arm for arm in pretrained if arm not in published])
    rival = _best(means, [arm for arm in means if arm not in pretrained])
    found = Decision(
        task=task,
        num_labels=num_labels,
        best_arm=_best(means, list(means)),
        best_value=max(means.values()),
        published_value=max((means[arm] for arm in published), default=None),
        best_pretrained=own,
        best_rival=rival,
        rival=rival,
    )
    if own is None or rival is None:
        return found
    row = comparison(results, task, num_labels, own, rival)
    if row is None:
        found.difference = means[own] - means[rival]
    else:
        shared = [field for field in Difference.__struct_fields__ if field != "arm"]
        found = msgspec.structs.replace(found, **{name: getattr(row, name) for name in shared})
    found.verdict = _VERDICTS.get(outcome(found), "no clear difference")
    return found


def _best(means: dict[str, float], arms: Sequence[str]) -> str | None:
    return max(arms, key=means.__getitem__, default=None)


def comparison(
    results: Results,
    task: str | None,
    num_labels: float | None,
    arm: str | None,
    baseline: str | None,
) -> Comparison | None:
    """Returns the comparison of two arms at a number of labels, None if there is none."""
    key = task, num_labels, arm, baseline
    rows = (
        row
        for row in results.comparisons
        if (row.task, row.num_labels, row.arm, row.baseline) == key
    )
    return next(rows, None)


def label_multiplier(value: float | None, censored: str | None) -> str:
    """Formats a label multiplier: `1.7x`, `more than 3x` for a bound; "" where it says nothing."""
    if value is None or censored == "below" or (censored and value <= 1):
        return ""
    return f"{'more than ' if censored else ''}{formats.multiplier(value)}"


def smallest_multiplier(results: Results, row: Decision) -> str:
    """Formats the smallest label multiplier of the pretrained arm over all rivals, "" if none.

    It is "" too where a rival is better with the fewest labels that were tried.
    """
    found = [
        each
        for each in results.label_efficiency
        if (each.task, each.num_labels, each.arm) == (row.task, row.num_labels, row.best_pretrained)
        and results.arm(each.rival).pretrained_on is None
        and each.label_multiplier is not None
    ]
    if not found:
        return label_multiplier(row.smallest_multiplier, None)
    if any(each.censored == "below" for each in found):
        return ""
    least = min(found, key=lambda each: each.label_multiplier or 0.0)
    return label_multiplier(least.label_multiplier, least.censored)


def titles(results: Results, task: str | None) -> Callable[[str | None], str]:
    """Returns a function from an arm's name to its title on a task, a noun phrase."""
    noun = results.task(task).data_noun or "data"

    @functools.cache
    def title(arm: str | None) -> str:
        return results.arm(arm).title.replace("{data}", noun)

    return title
