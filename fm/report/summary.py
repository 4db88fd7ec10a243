"""What a study of one task says on its first screen: decision, cost, how sure, next step."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence

from fm.report import formats
from fm.report.decisions import (
    comparison,
    decision_outcome,
    decisions,
    margin_words,
    mean_score,
    outcome,
    titles,
)
from fm.report.records import Comparison, ComputeCost, Decision
from fm.report.saturation import CEILING, saturated_budgets, saturation_sentence
from fm.report.schema import BEST_RIVAL, Results


@dataclasses.dataclass(frozen=True)
class Summary:
    """The first screen of a task.

    Attributes:
      decision: what to do, one or two sentences.
      scores: the scores that it rests on, with the fewest and the most labels.
      cost: CPU time of the pretrained arm and of its best rival; "" if not measured.
      certainty: what the intervals are over, and what was found out about the design.
      next_step: what to run or use.
    """

    decision: str
    scores: str
    cost: str
    certainty: str
    next_step: str


def summarize(results: Results, task: str) -> Summary | None:
    """Returns the first screen of a task, None if nothing was decided on it."""
    rows = decisions(results, task)
    if not rows:
        return None
    return Summary(
        decision=_decision(results, task, rows),
        scores=_scores(results, rows),
        cost=_cost(results, task, rows),
        certainty=_certainty(results, task, rows),
        next_step=_next_step(results, task, rows),
    )


def main_arm(rows: Sequence[Decision]) -> str | None:
    """Returns the pretrained arm that is best at most numbers of labels."""
    return _most_frequent(row.best_pretrained for row in rows)


def imperative(title: str) -> str:
    """Returns `pretrain on your own text` for `pretraining on your own text`; else `use ...`."""
    changed = re.sub(r"^((?:pre|fine-)?train|start)ing\b", r"\1", title)
    return changed if changed != title else f"use {title}"


def primary_comparison(results: Results, task: str, arm: str | None) -> Comparison | None:
    """Returns the declared comparison of an arm with the best rival over all label budgets."""
    rows = (row for row in results.comparisons if row.primary and row.baseline == BEST_RIVAL)
    return next((row for row in rows if (row.task, row.arm) == (task, arm)), None)


def _most_frequent(names: Iterable[str | None]) -> str | None:
    given = [name for name in names if name]
    return max(dict.fromkeys(given), key=given.count, default=None)


def _decision(results: Results, task: str, rows: Sequence[Decision]) -> str:
    budgets = [row.num_labels or 0 for row in rows]
    if set(saturated_budgets(results, task)) >= set(budgets):
        return saturation_sentence(results, task)
    title = titles(results, task)
    first = ""
    published = [row.num_labels or 0 for row in rows if results.arm(row.best_arm).is_published]
    if published:
        name = _most_frequent(row.best_arm for row in rows if row.num_labels in published)
        first = f"{_sentence(imperative(title(name)))}, the best {_where(published, budgets)}. "
    own = main_arm(rows)
    if own is None or all(row.best_rival is None for row in rows):
        best = _most_frequent(row.best_arm for row in rows)
        missing = "pretrained" if own is None else "without pretraining"
        return first or (
            f"{_sentence(imperative(title(best)))}, the best that was run; nothing {missing} was "
            "compared."
        )
    return first + _sentence(_own_decision(results, rows, title(own), bool(published)))


def _own_decision(results: Results, rows: Sequence[Decision], title: str, published: bool) -> str:
    """What own pretraining is worth against the best without it."""
    budgets = [row.num_labels or 0 for row in rows]
    by_outcome: dict[str, list[float]] = {}
    for row in rows:
        by_outcome.setdefault(decision_outcome(row), []).append(row.num_labels or 0)
    better, worse = by_outcome.get("better", []), by_outcome.get("worse", [])
    others = [number for number in budgets if number not in (*better, *worse)]
    rest = f"; no clear difference {_where(others, budgets)}" if others else ""
    do = f"without them {imperative(title)}" if published else imperative(title)
    if better and worse:
        return (
            f"it depends on the number of labels: {title} is ahead {_where(better, budgets)} and "
            f"behind {_where(worse, budgets)}{rest}."
        )
    if better:
        where = _where(better, budgets)
        return f"{do}: it is ahead of everything without pretraining {where}{rest}."
    if worse:
        return (
            f"do not pretrain: it is behind the best without pretraining "
            f"{_where(worse, budgets)}{rest}."
        )
    primary = primary_comparison(results, rows[0].task or "", main_arm(rows))
    found = outcome(primary) if primary is not None else "unknown"
    if primary is not None and found in ("better", "worse"):
        side = "ahead of" if found == "better" else "behind"
        figures = formats.difference(primary.difference, primary.low, primary.high)
        return (
            f"{do if found == 'better' else 'do not pretrain'}: in the mean over all numbers of "
            f"labels it is {side} the best without pretraining, by {figures} points; at no single "
            "number of labels is the difference clear."
        )
    if set(by_outcome) == {"unknown"}:
        return "one seed decides nothing: there is no interval round any difference."
    if set(by_outcome) == {"within"}:
        return (
            f"pretraining makes no difference: it is within {margin_words(rows[0].margin)} of the "
            f"best without it {_where(budgets, budgets)}."
        )
    if set(by_outcome) == {"still improving"}:
        return "not decided: the arm behind was still improving when its training ended."
    return (
        "pretraining is not shown to pay: no clear difference from the best without it "
        f"{_where(budgets, budgets).replace('every', 'any')}."
    )


def _where(some: Sequence[float], budgets: Sequence[float]) -> str:
    """`at 20 and 100 labels`, `up to 100 labels`, `from 400 labels on`, `at every number of`."""
    if len(budgets) > 1 and list(some) == list(budgets):
        ends = f"{formats.count(budgets[0])} to {formats.count(budgets[-1])}"
        return f"at every number of labels ({ends})"
    if len(some) > 2 and list(some) == list(budgets[: len(some)]):
        return f"up to {formats.count(some[-1])} labels"
    if len(some) > 2 and list(some) == list(budgets[-len(some) :]):
        return f"from {formats.count(some[0])} labels on"
    return f"at {formats.listed(map(formats.count, some))} labels"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _scores(results: Results, rows: Sequence[Decision]) -> str:
    """`With 20 labels: in_domain 61.2%; best without pretraining 60.1% (classical); ...`."""
    metric = results.task(rows[0].task).metric
    ends = [rows[0], rows[-1]] if len(rows) > 1 else [rows[0]]
    sentences = []
    for row in ends:

        def scored(arm: str | None, row: Decision = row) -> str:
            return formats.percent(mean_score(results, row.task, arm, row.num_labels))

        parts = []
        if row.best_pretrained:
            parts.append(f"{row.best_pretrained} {scored(row.best_pretrained)}")
        if row.best_rival:
            parts.append(f"best without pretraining {scored(row.best_rival)} ({row.best_rival})")
        if row.published_value is not None:
            parts.append(f"published weights {formats.percent(row.published_value)}")
        if not parts:
            parts.append(f"{row.best_arm} {scored(row.best_arm)}")
        what = f"test {metric} with" if row is rows[0] else "with"
        text = f"{what} {formats.label_budget(row.num_labels)}: {', '.join(parts)}"
        sentences.append(f"{_sentence(text)}.")
    return " ".join(sentences)


def _cost(results: Results, task: str, rows: Sequence[Decision]) -> str:
    own, rival = main_arm(rows), _most_frequent(row.best_rival for row in rows)
    costs = {row.arm: row for row in results.compute_cost if row.task == task}
    clock = "CPU time" if _uses_cpu(costs.values()) else "time"
    parts = []
    if own in costs and (spent := _seconds(costs[own], "pretrain")):
        parts.append(f"Pretraining takes {formats.seconds(spent)} of {clock}, once.")
    for arm in (own, rival):
        if arm in costs and (spent := _seconds(costs[arm], "adapt")) is not None:
            parts.append(f"{arm} takes {formats.seconds(spent)} for each set of labels.")
    if own in costs and (number := costs[own].break_even_tasks) is not None:
        parts.append(
            f"Break-even, the number of tasks from which one shared pretrained model is cheaper "
            f"than a network from scratch for each: {formats.count(number)}."
        )
    return " ".join(parts)


def _uses_cpu(rows: Iterable[ComputeCost]) -> bool:
    return any(row.adapt_cpu_seconds is not None for row in rows)


def _seconds(row: ComputeCost, part: str):
    found = getattr(row, f"{part}_cpu_seconds")
    return getattr(row, f"{part}_seconds") if found is None else found


def _certainty(results: Results, task: str, rows: Sequence[Decision]) -> str:
    about = results.task(task)
    seeds = max(len({cell.seed for cell in results.cells if cell.task == task}), 1)
    if all(row.low is None for row in rows):
        seeds_words = f"{seeds} seed{'s' * (seeds != 1)}"
        return f"No interval was measured ({seeds_words}): chance is not ruled out."
    over = [f"{seeds} seeds (draws of labels and initial weights)"]
    if any(results.arm(row.best_pretrained).pretrained_on is not None for row in rows):
        number = results.num_checkpoints(task)
        over.append(
            "one checkpoint (pretrained network)"
            if number == 1
            else f"{number} checkpoints (networks pretrained separately)"
        )
    if about.test is not None:
        over.append(f"{formats.count(about.test)} test items")
    text = (
        f"95% intervals over {formats.listed(over)}; a difference is called clear if its "
        "interval excludes zero and its p, adjusted for the number of comparisons, is under 0.05."
    )
    found = [row.detectable for row in rows if row.detectable is not None]
    if found:
        low, high = formats.detectable(min(found)), formats.detectable(max(found))
        size = low if low == high else f"{low} to {high}"
        text += (
            " With so few runs no true difference would be found reliably."
            if min(found) > 1
            else f" A true difference of {size} points would be found 4 times in 5."
        )
    return text


def _next_step(results: Results, task: str, rows: Sequence[Decision]) -> str:
    found = saturated_budgets(results, task)
    if results.smoke_test:
        return "Run the study without --profile=quick."
    if set(found) >= {row.num_labels for row in rows}:
        if set(found.values()) == {CEILING}:
            return "Try fewer labels (--label_budgets) or a harder task."
        return "Try more labels (--label_budgets) or longer training; then compare again."
    outcomes = {decision_outcome(row) for row in rows}
    title = titles(results, task)
    own, rival = main_arm(rows), _most_frequent(row.best_rival for row in rows)
    if outcomes == {"unknown"}:
        return "Run more seeds (--seeds), eight or so."
    primary = primary_comparison(results, task, own)
    outcomes |= {outcome(primary)} if primary is not None else set()
    if "better" in outcomes:
        return f"{_sentence(imperative(title(own)))}, with all the labels you have."
    if rival is None:
        return ""
    if "worse" in outcomes:
        return f"{_sentence(imperative(title(rival)))}, with all the labels you have."
    needed = needed_to_decide(results, rows)
    return " ".join([*needed, f"Until it is decided, {imperative(title(rival))}."])


def needed_to_decide(results: Results, rows: Sequence[Decision]) -> Iterator[str]:
    """Yields how many more seeds or test items would decide what is unclear, a sentence or two."""
    by_unit: dict[str, list[str]] = {}
    undecided: list[str] = []
    for row in rows:
        rival = row.rival or row.best_rival
        found = comparison(results, row.task, row.num_labels, row.best_pretrained, rival)
        # Results without checkpoints did not look for what would decide them.
        if found is None or found.checkpoints is None or decision_outcome(row) != "unclear":
            continue
        labels = formats.label_budget(row.num_labels)
        ways = [
            (unit, number)
            for number, unit in (
                (found.seeds_to_decide, _unit("seeds", found.seeds)),
                (found.items_to_decide, _unit("test items", found.items)),
            )
            if number is not None
        ]
        if not ways:
            undecided.append(formats.count(row.num_labels))
        for unit, number in ways:
            by_unit.setdefault(unit, []).append(f"{formats.count(number)} at {labels}")
    for unit, needs in by_unit.items():
        yield f"To decide it takes about so many more {unit}: {formats.listed(needs)}."
    if undecided:
        yield (
            "More seeds or test items alone would not decide it at "
            f"{formats.listed(undecided)} labels."
        )


def _unit(name: str, now: float | None) -> str:
    return name if now is None else f"{name} (now {formats.count(now)})"
