"""What a study found, in words: what to do at each number of labels, and how sure that is.

A loss is stated as plainly as a win. Words follow from the interval and the adjusted p together
(`fm.report.decisions.outcome`).
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fm.report import formats
from fm.report.decisions import (
    CLEAR,
    comparison,
    decision_outcome,
    decisions,
    excludes_zero,
    mean_score,
    outcome,
    outcome_words,
    smallest_multiplier,
    titles,
)
from fm.report.schema import (
    BEST_RIVAL,
    Claim,
    Comparison,
    Crossing,
    Decision,
    Results,
    capitalize_first,
    parse,
)

NOTHING = "Nothing was compared, so there is nothing to conclude."
_TO_ASCII = {"\N{MINUS SIGN}": "-", "\N{EN DASH}": "-"}
# Lines that a finding quotes; the tables of the report have all.
_MAX_BUDGETS, _MAX_PAIRS, _MAX_NAMED = 4, 5, 4


@dataclasses.dataclass(frozen=True)
class Finding:
    """A headline of the report.

    Attributes:
      subject: the task's title, or what is compared.
      sentences: what was found, the most important first.
      notes: where it ends and how it was measured.
      task: that it is about; None if it is about several.
    """

    subject: str
    sentences: tuple[str, ...]
    notes: tuple[str, ...] = ()
    task: str | None = None

    def __str__(self) -> str:
        first, *others = (*self.sentences, *self.notes)
        return "\n  ".join([f"{self.subject}: {first}", *others])


def headline(results: dict[str, Any]) -> str:
    """Returns the findings of a study as plain text, a few lines for each task.

    Args:
      results: the content of a results.json.

    Raises:
      UserError: `results` is not valid; see `fm.report.schema.parse`.
    """
    found = findings(parse(results))
    text = "\n".join(map(str, found)) if found else NOTHING
    return text.translate(str.maketrans(_TO_ASCII))


def findings(results: Results) -> list[Finding]:
    """Returns the report's headline findings, one per declared claim, or per task if none."""
    if results.claims:
        found = [_claim_finding(results, claim) for claim in results.claims]
    else:
        found = [_task_finding(results, task) for task in results.task_names()]
    return [finding for finding in found if finding]


def _task_finding(results: Results, task: str) -> Finding | None:
    rows = decisions(results, task)
    title = str(results.task(task).title)
    # An ablation compares variants of an arm: none is the best on principle.
    decided = any(row.low is not None for row in rows)
    compared = [row for row in results.comparisons if row.task == task and row.low is not None]
    if rows and (decided or not compared):
        limits = " ".join(
            [*_primary(results, task), *_crossing(results, rows), *_to_decide(results, rows)]
        )
        notes = filter(None, (limits, _design(results, task)))
        return Finding(title, tuple(_advice(results, rows)), tuple(notes), task)
    tallies = _tallies(compared)
    return Finding(title, tuple(tallies)) if tallies else None


def _advice(results: Results, rows: Sequence[Decision]) -> list[str]:
    """What to do at each number of labels.

    Where there are many, neighbors with the same answer share a sentence.
    """
    groups = [[row] for row in rows]
    if len(rows) > _MAX_BUDGETS:
        groups = [list(group) for _, group in itertools.groupby(rows, _answer)]
    picked = sorted({round(n) for n in np.linspace(0, len(groups) - 1, _MAX_BUDGETS)})
    sentences = [_advice_at(results, groups[n]) for n in picked]
    if len(groups) > len(picked):
        sentences[-1] += " Other numbers of labels are in the report's table."
    return sentences


def _answer(row: Decision) -> tuple[str | None, ...]:
    return row.best_arm, row.best_pretrained, row.best_rival, decision_outcome(row)


def _advice_at(results: Results, rows: Sequence[Decision]) -> str:
    row, last = rows[0], rows[-1]
    own, rival = row.best_pretrained, row.best_rival
    title = titles(results, row.task)

    def scored(arm: str | None) -> str:
        return formats.percent(mean_score(results, row.task, arm, row.num_labels))

    best = row.best_arm
    parts = [f"{_imperative(title(best))} ({formats.percent(row.best_value)})"]
    if results.arm(best).is_published:
        # Second best, for those who cannot use the published weights.
        by_score = {arm: mean_score(results, row.task, arm, row.num_labels) for arm in (own, rival)}
        best = max((arm for arm in by_score if arm), key=lambda arm: by_score[arm] or 0, default="")
        if best:
            parts.append(f"without them {_imperative(title(best))} ({scored(best)})")
    elif row.published_value is not None:
        parts.append(f"published weights reach {formats.percent(row.published_value)}")
    relation = _relation(results, row)
    if own and own != best:
        tail = f", {relation}" if rival else ""
        parts.append(f"{title(own)} reaches {scored(own)}{tail}")
    elif rival and rival != best:
        tail = f", {relation}" if own else ""
        parts.append(f"best without pretraining: {rival} ({scored(rival)}){tail}")
    where = f"At {formats.label_budget(row.num_labels)}"
    if last is not row:
        joint = "to" if len(rows) > 2 else "and"
        numbers = f"{formats.count(row.num_labels)} {joint} {formats.count(last.num_labels)}"
        where = f"At {numbers} labels (figures at {formats.count(row.num_labels)})"
    return f"{where}: {'; '.join(parts)}."


def _imperative(title: str) -> str:
    """`pretrain on your own text` from `pretraining on your own text`; else `use ...`."""
    changed = re.sub(r"^((?:pre|fine-)?train|start)ing\b", r"\1", title)
    return changed if changed != title else f"use {title}"


def _relation(results: Results, row: Decision) -> str:
    """How the pretrained arm does against the best rival: `no clear difference (+1.1 [...])`."""
    shown = decision_outcome(row)
    figures = formats.difference(row.difference, row.low, row.high)
    if row.rival not in (None, row.best_rival):
        figures += f" against {row.rival}"
    if shown == "better":
        worth = smallest_multiplier(results, row)
        worth = f", worth {worth} as many labels" if worth else ""
        return f"pretraining is better ({figures}{worth})"
    if shown in ("unclear", "within") and excludes_zero(row):
        figures += f", adjusted p {formats.p_value(row.p_adjusted)}"
    return f"{outcome_words(row, shown)} ({figures})"


def _primary(results: Results, task: str) -> Iterator[str]:
    """The declared comparison with the best rival over all label budgets."""
    for row in results.comparisons:
        if row.primary and row.task == task and row.baseline == BEST_RIVAL:
            figures = formats.difference(row.difference, row.low, row.high)
            yield (
                f"Mean over all label budgets, {row.arm} against the best without pretraining, "
                f"declared as primary: {outcome_words(row)} ({figures})."
            )


def _crossing(results: Results, rows: Sequence[Decision]) -> Iterator[str]:
    """Where the first of the best rivals catches up, by the fitted learning curves."""
    arms = {row.best_pretrained for row in rows}
    found = [row for row in results.crossings if row.task == rows[0].task and row.arm in arms]
    rivals = {row.best_rival for row in rows}
    if any(row.rival == BEST_RIVAL for row in found):
        rivals = {BEST_RIVAL}
    found = [row for row in found if row.rival in rivals]
    if not found:
        return
    by_status: dict[str | None, list[Crossing]] = {}
    for row in found:
        by_status.setdefault(row.status, []).append(row)
    most = formats.count(max(row.num_labels or 0 for row in rows))
    if never := by_status.get("never ahead"):
        yield (
            f"By the fitted curves pretraining is at no number of labels up to {most} ahead of "
            f"{_named(never[0].rival)}."
        )
    elif crossed := by_status.get("crosses"):
        first = min(crossed, key=lambda row: row.labels or 0)
        low = "fewer than measured" if first.low is None else formats.count(first.low)
        high = f"more than {most}" if first.high is None else formats.count(first.high)
        yield (
            f"By the fitted curves pretraining stops paying at about {formats.count(first.labels)} "
            f"labels (95% interval {low} to {high}), where {_named(first.rival)} catches up."
        )
    elif "unclear" in by_status:
        yield "The fitted curves do not say where pretraining stops paying."
    else:
        yield (
            f"By the fitted curves pretraining stays ahead up to {most} labels; where it stops "
            "paying is beyond what was measured."
        )


def _named(rival: str | None) -> str:
    return "the best arm without pretraining" if rival == BEST_RIVAL else str(rival)


def _to_decide(results: Results, rows: Sequence[Decision]) -> Iterator[str]:
    """How many more seeds or test items would decide what is unclear."""
    needs: dict[str, list[str]] = {}
    for row in rows:
        rival = row.rival or row.best_rival
        found = comparison(results, row.task, row.num_labels, row.best_pretrained, rival)
        # Results without checkpoints did not look for what would decide them.
        if found is None or found.checkpoints is None or decision_outcome(row) != "unclear":
            continue
        ways = [
            f"{formats.count(number)} more {unit} (now {formats.count(now)})"
            for number, now, unit in (
                (found.seeds_to_decide, found.seeds, "seeds"),
                (found.items_to_decide, found.items, "test items"),
            )
            if number is not None
        ]
        needs.setdefault(" or ".join(ways), []).append(formats.count(row.num_labels))
    yield from (
        f"To decide it at {listed(budgets)} labels takes about {ways}."
        if ways
        else f"More seeds or test items alone would not decide it at {listed(budgets)} labels."
        for ways, budgets in needs.items()
    )


def _design(results: Results, task: str) -> str:
    """What the figures of a task are: metric, seeds, items, checkpoints."""
    about = results.task(task)
    seeds = max(len({cell.seed for cell in results.cells if cell.task == task}), 1)
    parts = [f"Mean {about.metric} over {seeds} seed{'s' * (seeds != 1)}"]
    if about.test is not None:
        parts[0] += f" and {formats.count(about.test)} test items"
    arms = {row.arm for row in results.comparisons if row.task == task}
    if any(results.arm(arm).pretrained_on is not None for arm in arms):
        number = results.num_checkpoints(task)
        parts.append("for this checkpoint" if number == 1 else f"over {number} checkpoints")
    if sealed := scored_before(results, task):
        parts.append(sealed)
    return f"{', '.join(parts)}; differences in points [95% interval]."


def scored_before(results: Results, task: str | None) -> str:
    """Returns how often a task's test items had been scored, `scored once`; "" if unknown."""
    variants = list(results.task(task).variant_test_slices.values())
    if len(variants) > 1:
        return _scored_by_variants([each.scored_before for each in variants])
    about = results.task(task).test_slice
    if about is None or about.scored_before is None:
        return ""
    if about.scored_before == 0:
        return "scored once"
    if isinstance(about.scored_before, str):
        return "how often these items had been scored before is unknown"
    number = formats.count(about.scored_before)
    many = about.scored_before != 1
    return f"at least {number} configuration{'s' * many} had been scored on these items before"


def _scored_by_variants(before: Sequence[float | str | None]) -> str:
    """How often test items had been scored before each of the studies set side by side."""
    if any(isinstance(each, str) for each in before):
        return "how often these items had been scored before is unknown"
    counts = [each for each in before if isinstance(each, int | float)]
    if len(counts) < len(before):
        return ""
    number = listed([formats.count(each) for each in counts])
    return (
        f"scored by each of the {len(before)} variants, before which at least {number} "
        f"configuration{'s' * (counts[-1] != 1)} had been scored on these items"
    )


def _tallies(rows: Sequence[Comparison]) -> list[str]:
    """A sentence for each pair of arms, with the figure at the fewest labels."""
    pairs: dict[tuple, list[Comparison]] = {}
    for row in sorted(rows, key=lambda row: row.num_labels or 0):
        if row.num_labels is not None:
            pairs.setdefault((row.arm, row.baseline), []).append(row)
    sentences = []
    for (arm, baseline), each in list(pairs.items())[:_MAX_PAIRS]:
        words = [outcome_words(row) for row in each]
        counted = ", ".join(
            f"{word} at {words.count(word)} of {len(each)} label budgets"
            for word in dict.fromkeys(words)
        )
        first = each[0]
        figures = formats.difference(first.difference, first.low, first.high)
        where = formats.label_budget(first.num_labels)
        sentences.append(f"{arm} against {baseline}: {counted} ({figures} at {where}).")
    if len(pairs) > _MAX_PAIRS:
        sentences[-1] += " Other pairs are in the report's table."
    return sentences


def listed(parts: Sequence[str]) -> str:
    """Returns the parts as `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _claim_finding(results: Results, claim: Claim) -> Finding | None:
    """On which tasks an arm is better and worse than another, at each number of labels."""
    by_labels: dict[Any, list[Comparison]] = {}
    for row in sorted(results.comparisons, key=lambda row: row.num_labels or 0):
        pair = row.arm, row.baseline
        if pair == (claim.arm, claim.baseline) and None not in (row.difference, row.num_labels):
            by_labels.setdefault(row.num_labels, []).append(row)
    if not by_labels:
        return None
    outcomes = {outcome(row) for rows in by_labels.values() for row in rows}
    clear = [word for word in CLEAR if word in outcomes]
    if not clear:
        decision = "no clear difference on any task"
    elif outcomes == {clear[0]}:
        decision = f"{clear[0]} on every task"
    elif len(clear) == 2:
        decision = "better on some tasks, worse on others"
    else:
        other = "worse" if clear == ["better"] else "better"
        decision = f"{clear[0]} on some tasks, clearly {other} on none"
    sentences = (_claim_sentence(results, rows) for rows in by_labels.values())
    return Finding(capitalize_first(claim.text), (f"{decision}.", *sentences))


def _claim_sentence(results: Results, rows: Sequence[Comparison]) -> str:
    """`At 30 labels, of 3 tasks: better on 1 (digits), worse on 1 (words), no clear ... on 1.`"""
    by_outcome: dict[str, list[Comparison]] = {word: [] for word in CLEAR}
    for row in rows:
        by_outcome.setdefault(outcome_words(row), []).append(row)
    parts = []
    for word, each in by_outcome.items():
        names = [f"{results.task(row.task).title} {formats.points(row.difference)}" for row in each]
        # Every loss is named.
        if word != "worse" and len(names) > _MAX_NAMED:
            names[_MAX_NAMED:] = [f"{len(names) - _MAX_NAMED} more"]
        named = f" ({', '.join(names)})" if word in CLEAR and names else ""
        parts.append(f"{word} on {len(each)}{named}")
    where = formats.label_budget(rows[0].num_labels)
    return f"At {where}, of {len(rows)} task{'s' * (len(rows) != 1)}: {', '.join(parts)}."
