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
    decision_outcome,
    decisions,
    excludes_zero,
    mean_score,
    outcome,
    outcome_words,
    smallest_multiplier,
    titles,
)
from fm.report.formats import listed
from fm.report.parsing import parse
from fm.report.records import AblationRow, Comparison, Crossing, Decision, Difference
from fm.report.schema import BEST_RIVAL, Claim, Results, capitalize_first
from fm.report.summary import Summary, imperative, needed_to_decide, summarize

NOTHING = "Nothing was compared, so there is nothing to conclude."
SMOKE_TEST = "Smoke test, do not quote: the quick profile is too small to conclude anything from."
# What an arm is that has a clear outcome against another.
_AHEAD = {"better": "ahead", "worse": "behind"}
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
      summary: the first screen of a task that has decisions.
    """

    subject: str
    sentences: tuple[str, ...]
    notes: tuple[str, ...] = ()
    task: str | None = None
    summary: Summary | None = None

    def __str__(self) -> str:
        decision = (self.summary.decision,) if self.summary else ()
        first, *others = (*decision, *self.sentences, *self.notes)
        return "\n  ".join([f"{self.subject}: {first}", *others])


def headline(results: dict[str, Any]) -> str:
    """Returns the findings of a study as plain text, a few lines for each task.

    Args:
      results: the content of a results.json.

    Raises:
      UserError: `results` is not valid; see `fm.report.parsing.parse`.
    """
    parsed = parse(results)
    found = findings(parsed)
    text = "\n".join(map(str, found)) if found else NOTHING
    return f"{SMOKE_TEST}\n{text}" if parsed.smoke_test else text


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
    if results.setting:
        return _variants_finding(results, task)
    # An ablation compares variants of an arm: none is the best on principle.
    decided = any(row.low is not None for row in rows)
    compared = [row for row in results.comparisons if row.task == task and row.low is not None]
    if rows and (decided or not compared):
        limits = " ".join(
            [*_primary(results, task), *_crossing(results, rows), *needed_to_decide(results, rows)]
        )
        notes = filter(None, (limits, _design(results, task)))
        advice = tuple(_advice(results, rows))
        return Finding(title, advice, tuple(notes), task, summarize(results, task))
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
    parts = [f"{imperative(title(best))} ({formats.percent(row.best_value)})"]
    if results.arm(best).is_published:
        # Second best, for those who cannot use the published weights.
        by_score = {arm: mean_score(results, row.task, arm, row.num_labels) for arm in (own, rival)}
        best = max((arm for arm in by_score if arm), key=lambda arm: by_score[arm] or 0, default="")
        if best:
            parts.append(f"without them {imperative(title(best))} ({scored(best)})")
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
                f"Mean over all numbers of labels, {row.arm} against the best without pretraining, "
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
    if len(counts) > _MAX_NAMED:
        number = f"{formats.count(min(counts))} to {formats.count(max(counts))}"
    return (
        f"scored by each of the {len(before)} variants, before which at least {number} "
        f"configuration{'s' * (counts[-1] != 1)} had been scored on these items"
    )


def _variants_finding(results: Results, task: str) -> Finding | None:
    """What the values of a setting, or the variants of an ablation, make of a difference."""
    compared = [row for row in results.comparisons if row.task == task and row.low is not None]
    gains = [
        row
        for ablation in results.ablations
        for row in ablation.rows
        if row.task == task and row.difference is not None and row.num_labels is not None
    ]
    if gains:
        # The gains say what the unclear ones of these say.
        clear = {(row.arm, row.baseline) for row in compared if outcome(row) in CLEAR}
        compared = [row for row in compared if (row.arm, row.baseline) in clear]
    sentences = [*_gains(gains), *_tallies(compared)]
    if not sentences:
        return None
    return Finding(str(results.task(task).title), tuple(sentences), (_design(results, task),), task)


def _gains(rows: Sequence[AblationRow]) -> list[str]:
    """At the fewest and the most labels, the variants with the largest and the smallest gain."""
    budgets = sorted({row.num_labels or 0 for row in rows})
    sentences = []
    for num_labels in dict.fromkeys((budgets[0], budgets[-1]) if budgets else ()):
        own = [row for row in rows if row.num_labels == num_labels]
        most = max(own, key=lambda row: row.difference or 0)
        least = min(own, key=lambda row: row.difference or 0)
        clear = sum(outcome(row) in CLEAR for row in own)
        sentences.append(
            f"At {formats.label_budget(num_labels)} the gain over training from scratch is largest "
            f"with “{_level(most)}” ({_figures(most)}) and smallest with “{_level(least)}” "
            f"({_figures(least)}); {clear or 'none'} of {len(own)} "
            f"gains {'is' if clear <= 1 else 'are'} clear."
        )
    return sentences


def _level(row: AblationRow) -> str:
    return row.variant or str(row.level)


def _figures(row: Difference) -> str:
    return formats.difference(row.difference, row.low, row.high)


def _tallies(rows: Sequence[Comparison]) -> list[str]:
    """A sentence for each pair of arms, with the figure at the fewest labels."""
    pairs: dict[tuple, list[Comparison]] = {}
    for row in sorted(rows, key=lambda row: row.num_labels or 0):
        if row.num_labels is not None:
            pairs.setdefault((row.arm, row.baseline), []).append(row)
    sentences = []
    # What is clear comes first, then what is largest.
    order = sorted(
        pairs.items(),
        key=lambda pair: (
            -sum(outcome(row) in CLEAR for row in pair[1]),
            -abs(pair[1][0].difference or 0),
        ),
    )
    for (arm, baseline), each in order[:_MAX_PAIRS]:
        by_words: dict[str, list[str]] = {}
        for row in each:
            by_words.setdefault(outcome_words(row), []).append(formats.count(row.num_labels))
        told = ", ".join(f"{words} at {listed(where)} labels" for words, where in by_words.items())
        first = each[0]
        where = formats.label_budget(first.num_labels)
        pair = _pair(str(arm), str(baseline))
        sentences.append(f"{pair}: {told} ({_figures(first)} at {where}).")
    if len(pairs) > _MAX_PAIRS:
        sentences[-1] += " Other pairs are in the report's table."
    return sentences


def _pair(arm: str, baseline: str) -> str:
    """`in_domain with steps=2 instead of 1` of two variants of an arm, else `a against b`."""
    own, rival = (re.fullmatch(r"(.+?), ([^,=]+)=(.*)", name) for name in (arm, baseline))
    if own and rival and own.groups()[:2] == rival.groups()[:2]:
        return f"{own[1]} with {own[2]}={own[3]} instead of {rival[3]}"
    return f"{arm} against {baseline}"


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
    clear = [_AHEAD[word] for word in CLEAR if word in outcomes]
    if not clear:
        decision = "no clear difference on any task"
    elif len(outcomes) == 1:
        decision = f"{clear[0]} on every task"
    elif len(clear) == 2:
        decision = "ahead on some tasks, behind on others"
    else:
        other = "behind" if clear == ["ahead"] else "ahead"
        decision = f"{clear[0]} on some tasks, clearly {other} on none"
    sentences = (_claim_sentence(results, rows) for rows in by_labels.values())
    return Finding(capitalize_first(claim.text), (f"{decision}.", *sentences))


def _claim_sentence(results: Results, rows: Sequence[Comparison]) -> str:
    """`With 30 labels: ahead on 1 of 3 tasks (digits +10.0 points), behind on none; ...`."""
    by_outcome: dict[str, list[Comparison]] = {word: [] for word in CLEAR}
    for row in rows:
        by_outcome.setdefault(outcome_words(row), []).append(row)
    total = f"{len(rows)} task{'s' * (len(rows) != 1)}"
    parts = []
    for word in CLEAR:
        each = by_outcome.pop(word)
        names = [f"{results.task(row.task).title} {formats.points(row.difference)}" for row in each]
        # Every loss is named.
        if word != "worse" and len(names) > _MAX_NAMED:
            names[_MAX_NAMED:] = [f"{len(names) - _MAX_NAMED} more"]
        named = f" ({', '.join(names)} points)" if names else ""
        of = f" of {total}" if not parts else ""
        parts.append(f"{_AHEAD[word]} on {len(each) or 'none'}{of}{named}")
    rest = [f"{words} on {len(each)}" for words, each in by_outcome.items()]
    text = "; ".join([", ".join(parts), *([", ".join(rest)] if rest else [])])
    return f"With {formats.label_budget(rows[0].num_labels)}: {text}."
