"""What a study found, in words: a decision for each task or claim, then the figures behind it.

A loss is stated as plainly as a win. All words follow from the 95% intervals of the comparisons.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fm.report import formats
from fm.report.schema import (
    Claim,
    Comparison,
    Difference,
    Results,
    capitalize_first,
    parse,
)

NOTHING = "Nothing was compared, so there is nothing to conclude."
_MINUS = "\N{MINUS SIGN}"
# Outcomes as a relation to a baseline, and on their own.
_RELATIONS = {
    "better": "better than",
    "worse": "worse than",
    "unclear": "no clear difference to",
    "unknown": "no interval against",
}
_UNDECIDED = ("unclear", "unknown")
_SHORT = {
    "better": "better",
    "worse": "worse",
    "unclear": "no clear difference",
    "unknown": "no interval",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """A headline of the report: its subject, a short answer and the sentences that support it.

    Attributes:
      subject: the task's title, or what is compared.
      decision: the answer in a few words.
      sentences: the figures behind it.
      asides: how other arms did.
    """

    subject: str
    decision: str
    sentences: tuple[str, ...]
    asides: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([f"{self.subject}: {self.decision}.", *self.sentences, *self.asides])


def outcome(row: Difference) -> str:
    """Classifies a difference by its 95% interval as better, worse, unclear or unknown.

    Returns:
      `better` (interval above zero), `worse` (below), `unclear` (zero inside) or `unknown` (no
      interval was measured).
    """
    if row.low is None or row.high is None:
        return "unknown"
    if row.low > 0:
        return "better"
    return "worse" if row.high < 0 else "unclear"


def headline(results: dict[str, Any]) -> str:
    """Returns the findings of a study as plain text, one line per finding.

    Args:
      results: the content of a results.json.

    Raises:
      UserError: `results` is not valid; see `fm.report.schema.parse`.
    """
    found = findings(parse(results))
    return "\n".join(map(str, found)).replace(_MINUS, "-") if found else NOTHING


def findings(results: Results) -> list[Finding]:
    """Returns the report's headline findings, one per declared claim, or per task if none."""
    if results.claims:
        found = [_claim_finding(results, claim) for claim in results.claims]
    else:
        found = [_task_finding(results, task) for task in results.task_names()]
    return [finding for finding in found if finding]


def _task_finding(results: Results, task: str) -> Finding | None:
    """Whether the first pretrained arm is worth it against the arms that are not pretrained.

    The figures quoted are those at the fewest labels of each outcome, never the best ones.
    """
    rows = [
        row
        for row in results.comparisons
        if row.task == task and results.arm(row.baseline).pretrained_on is None
    ]
    if not rows:
        return None
    arms = results.arm_names(row.arm for row in rows)
    pretrained = [arm for arm in arms if results.arm(arm).pretrained_on is not None]
    leading, *others = pretrained or arms[:1]
    about = results.task(task)

    def title(arm: str | None) -> str:
        return results.arm(arm).title.replace("{data}", about.data_noun or "data")

    baselines = results.arm_names(row.baseline for row in rows if row.arm == leading)
    by_labels: dict[Any, list[Comparison]] = {}
    for baseline in baselines:
        for row in _rows_of(rows, leading, baseline):
            by_labels.setdefault(row.num_labels, []).append(row)
    by_labels = dict(sorted(by_labels.items(), key=lambda item: item[0] or 0))
    groups: dict[tuple, list] = {}
    for num_labels, compared in by_labels.items():
        shown = tuple((row.baseline, outcome(row)) for row in compared)
        groups.setdefault(shown, []).append(num_labels)
    sentences: list[str] = []
    for shown, budgets in groups.items():
        where = _budgets(budgets, list(by_labels))
        subject = "" if sentences else title(leading)
        rows_here = by_labels[budgets[0]]
        quoted = f" at {formats.count(budgets[0])} labels" if len(budgets) > 1 else ""
        figures = [_figure(row) for row in rows_here]
        figures[0] = _figure(rows_here[0], quoted, in_full=not sentences)
        if pretrained and all(each == "better" for _, each in shown):
            against = "; ".join(
                f"{figure}, against {title(row.baseline)}"
                for figure, row in zip(figures, rows_here, strict=True)
            )
            sentence = f"{subject or 'it'} is worth it at {where} ({against})"
        else:
            sentence = f"{subject} at {where}: {_relations(rows_here, figures, title)}".lstrip()
        sentences.append(f"{capitalize_first(sentence)}.")
    decision = _decision(by_labels) if pretrained else "no pretrained arm was compared"
    asides = _asides(rows, others, title)
    return Finding(str(about.title), decision, tuple(sentences), asides)


def _decision(by_labels: Mapping[Any, Sequence[Comparison]]) -> str:
    """Worth it where the arm is better than every baseline; not, where worse than any."""
    outcomes = [{outcome(row) for row in rows} for rows in by_labels.values()]
    worth = [shown == {"better"} for shown in outcomes]
    if all(shown == {"unknown"} for shown in outcomes):
        return "no intervals, so no decision"
    if all(worth):
        return "worth it" if len(worth) == 1 else "worth it at every number of labels tried"
    if any(worth):
        number = sum(worth)
        if all(worth[:number]):
            return "worth it with few labels"
        return "worth it with many labels" if all(worth[-number:]) else "worth it in part"
    return "not worth it" if any("worse" in shown for shown in outcomes) else "no clear advantage"


def _asides(rows: list[Comparison], arms: list[str], title: Any) -> tuple[str, ...]:
    """How the other pretrained arms did against the first baseline, equal tallies together."""
    tallies: dict[str, list[str]] = {}
    for arm in arms:
        baseline = next(row.baseline for row in rows if row.arm == arm)
        tally = _tally(_rows_of(rows, arm, baseline), title(baseline))
        tallies.setdefault(tally, []).append(title(arm))
    return tuple(
        f"{capitalize_first(_listed(titles))}: {tally}." for tally, titles in tallies.items()
    )


def _rows_of(rows: list[Comparison], arm: str, baseline: str | None) -> list[Comparison]:
    chosen = [row for row in rows if row.arm == arm and row.baseline == baseline]
    return sorted(chosen, key=lambda row: row.num_labels or 0)


def _tally(rows: list[Comparison], baseline: str) -> str:
    """`better than training from scratch at 2 of 4 label budgets, no clear difference at 2`."""
    outcomes = [outcome(row) for row in rows]
    first, *rest = [each for each in _RELATIONS if each in outcomes]
    budgets = f"{len(rows)} label budget{'s' * (len(rows) > 1)}"
    every = "any of the" if first in _UNDECIDED else "all"
    number = f"{outcomes.count(first)} of {budgets}" if rest else f"{every} {budgets}"
    if len(rows) == 1:
        number = f"{formats.count(rows[0].num_labels)} labels"
    parts = [f"{_SHORT[each]} at {outcomes.count(each)}" for each in rest]
    return ", ".join([f"{_RELATIONS[first]} {baseline} at {number}", *parts])


def _relations(rows: Sequence[Comparison], figures: Sequence[str], title: Any) -> str:
    """`better than training from scratch (+4.5), no clear difference to the baseline (-1.7)`."""
    by_outcome: dict[str, list[str]] = {}
    for row, figure in zip(rows, figures, strict=True):
        by_outcome.setdefault(outcome(row), []).append(f"{title(row.baseline)} ({figure})")
    return ", ".join(
        f"{_RELATIONS[shown]} {(' or ' if shown in _UNDECIDED else ' and ').join(baselines)}"
        for shown, baselines in by_outcome.items()
    )


def _figure(row: Comparison, where: str = "", in_full: bool = False) -> str:
    """`+12.2 points at 20 labels, 95% interval 7.8 to 16.5`, or in short `+12.2, 7.8 to 16.5`."""
    text = f"{formats.points(row.difference)}{' points' if in_full else ''}{where}"
    if outcome(row) == "unknown":
        return text
    interval = formats.interval(row.low, row.high)
    return f"{text}, {'95% interval ' if in_full else ''}{interval}"


def _budgets(chosen: Sequence[Any], tried: Sequence[Any]) -> str:
    """`20 to 150 labels` for three or more in a row of those tried, `20 and 150 labels` else."""
    runs: list[list[Any]] = []
    for place, num_labels in enumerate(tried):
        if num_labels in chosen:
            if runs and tried[place - 1] in chosen:
                runs[-1].append(num_labels)
            else:
                runs.append([num_labels])
    parts: list[str] = []
    for run in runs:
        written = [formats.count(num_labels) for num_labels in run]
        parts += [f"{written[0]} to {written[-1]}"] if len(run) > 2 else written
    return f"{_listed(parts)} labels"


def _listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _claim_finding(results: Results, claim: Claim) -> Finding | None:
    """On how many tasks an arm is ahead of another, at each number of labels."""
    rows = [
        row
        for row in results.comparisons
        if (row.arm, row.baseline) == (claim.arm, claim.baseline) and row.difference is not None
    ]
    if not rows:
        return None
    by_labels: dict[Any, list[Comparison]] = {}
    for row in sorted(rows, key=lambda row: row.num_labels or 0):
        by_labels.setdefault(row.num_labels, []).append(row)
    outcomes = {outcome(row) for row in rows}
    if outcomes == {"better"}:
        decision = "ahead on every task"
    elif "better" in outcomes:
        decision = "ahead on some tasks, " + (
            "behind on others" if "worse" in outcomes else "clearly behind on none"
        )
    elif "worse" in outcomes:
        decision = "ahead on no task, behind on some"
    else:
        decision = "no clear difference on any task"
    sentences = tuple(
        _claim_sentence(num_labels, compared, claim.margin)
        for num_labels, compared in by_labels.items()
    )
    return Finding(capitalize_first(claim.text), decision, sentences)


def _claim_sentence(num_labels: Any, rows: list[Comparison], margin: float | None) -> str:
    """On how many tasks the arm is ahead at one number of labels, and on which it is behind."""
    ahead = [row.task for row in rows if outcome(row) == "better"]
    behind = [str(row.task) for row in rows if outcome(row) == "worse"]
    text = f"At {formats.count(num_labels)} labels ahead on {len(ahead)} of {len(rows)} tasks"
    text += f", behind on {len(behind)}" + (f" ({', '.join(behind)})" if behind else "")
    if margin is not None:
        within = sum((row.difference or 0) >= -margin / 100 for row in rows)
        text += f", within {margin:g} point{'s' * (margin != 1)} or better on {within}"
    mean = sum(row.difference or 0 for row in rows) / len(rows)
    return f"{text}, {formats.points(mean)} points on average."
