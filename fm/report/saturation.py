"""Where a task cannot tell the arms apart: all of them at the ceiling, or none above the floor."""

from __future__ import annotations

from fm.report import formats
from fm.report.decisions import CLEAR, decision_outcome, decisions, mean_score
from fm.report.schema import Results, Task

CEILING, FLOOR = "ceiling", "floor"
# Every arm at this score or above is at the ceiling, at this one or below at the floor. Accuracy is
# at the floor within some points of the score of naming one class always.
_CEILING, _FLOOR, _ABOVE_CHANCE = 0.97, 0.1, 0.03
# A largest class this much larger than an equal share, as a ratio and in points, has a name.
_UNEQUAL, _UNEQUAL_POINTS = 1.2, 0.05


def majority_level(about: Task) -> tuple[float, str]:
    """Returns the accuracy of always naming the most frequent class, and what to call it.

    Where that is hardly above an equal share, or unknown, it is called chance.
    """
    even = 1 / len(about.classes or [""])
    level = max(about.majority_rate or 0.0, even)
    unequal = level >= _UNEQUAL * even and level - even >= _UNEQUAL_POINTS
    return level, "most frequent class" if unequal else "chance"


def saturated_budgets(results: Results, task: str) -> dict[float, str]:
    """Returns the numbers of labels at which the arms cannot be told apart, `CEILING` or `FLOOR`.

    At the ceiling no clear difference from the best without pretraining may be found besides.
    """
    outcomes = {row.num_labels: decision_outcome(row) for row in decisions(results, task)}
    found = {}
    for num_labels, scores in _scores(results, task).items():
        if len(scores) < 2:
            continue
        if min(scores) >= _CEILING and outcomes.get(num_labels) not in CLEAR:
            found[num_labels] = CEILING
        elif max(scores) <= _floor(results.task(task)):
            found[num_labels] = FLOOR
    return found


def _scores(results: Results, task: str) -> dict[float, list[float]]:
    """The mean scores of all arms by number of labels."""
    cells = [cell for cell in results.cells if cell.task == task and cell.value is not None]
    budgets = sorted({cell.num_labels for cell in cells if cell.num_labels is not None})
    return {
        number: [
            score
            for arm in dict.fromkeys(cell.arm for cell in cells if cell.num_labels == number)
            if (score := mean_score(results, task, arm, number)) is not None
        ]
        for number in budgets
    }


def _floor(about: Task) -> float:
    if about.has_one_class and about.metric == "accuracy":
        return majority_level(about)[0] + _ABOVE_CHANCE
    return _FLOOR


def saturation_sentence(results: Results, task: str) -> str:
    """Returns what is said where the arms cannot be told apart, "" where they can everywhere."""
    found = saturated_budgets(results, task)
    if not found:
        return ""
    scores = _scores(results, task)
    everywhere = set(found) == set(scores)
    parts = []
    for state in (CEILING, FLOOR):
        budgets = [number for number in found if found[number] == state]
        if not budgets:
            continue
        values = [score for number in budgets for score in scores[number]]
        spread = f"{formats.percent(min(values))} to {formats.percent(max(values))}"
        where = "" if everywhere else f" at {formats.listed(map(formats.count, budgets))} labels"
        words = "all are at the ceiling" if state == CEILING else "none has learned it"
        parts.append(f"{words}{where} ({results.task(task).metric} {spread})")
    there = "" if everywhere else " there"
    return f"This task cannot tell the arms apart{there}: {'; '.join(parts)}."
