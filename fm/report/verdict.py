"""What the comparisons say, in words: one sentence, a loss as plainly as a win."""

import dataclasses
from typing import Any

from fm.report import formats, schema
from fm.report.schema import Row, capitalize_first, parse, task_names

_DATA = {"text": "text", "image": "images", "audio": "sound", "video": "video"}
NOTHING = "Nothing was compared, so there is nothing to conclude."
_MINUS = "\N{MINUS SIGN}"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one task showed: of the leading arm, and (it may be empty) of the other arms."""

    task: str
    main: str
    aside: str


def outcome(row: Row) -> str:
    """What one comparison shows by its 95% interval.

    Returns:
        `better` (interval above zero), `worse` (below), `unclear` (zero inside) or `unknown`
        (no interval was measured).
    """
    if row["low"] is None or row["high"] is None:
        return "unknown"
    if row["low"] > 0:
        return "better"
    return "worse" if row["high"] < 0 else "unclear"


def comparison_headline(results: dict) -> str:
    """One sentence over all tasks, made from the comparisons alone, in ASCII figures.

    The figure quoted is always the one at the fewest labels, and that at the most labels where
    the verdict there is another; never the best one.

    Raises:
        UserError: `results` is not of schema 1.
    """
    found = findings(parse(results))
    if not found:
        return NOTHING
    sentence = "; ".join(
        f"{finding.task}: {finding.main}" + f", while {finding.aside}" * bool(finding.aside)
        for finding in found
    )
    return f"{capitalize_first(sentence)}.".replace(_MINUS, "-")


def findings(results: dict[str, Any]) -> list[Finding]:
    """The finding of each compared task; `results` is tidy."""
    found = [_finding(results, task) for task in task_names(results)]
    return [finding for finding in found if finding]


def _finding(results: dict[str, Any], task: str) -> Finding | None:
    rows = [row for row in results["comparisons"] if row["task"] == task]
    rows = [row for row in rows if row["baseline"] in ("scratch", "classical")]
    if not rows:
        return None
    names = {row["arm"] for row in rows}
    data = _DATA.get(_modality(results, task), "data")
    leading, *others = schema.pretrained(names) or [schema.ordered(names)[0]]
    clause = schema.describe(leading).title.replace("{data}", data)
    scratch, classical = _pick(rows, leading, "scratch"), _pick(rows, leading, "classical")
    if scratch:
        clause += f" {_tally(scratch, 'training from scratch')} ({_evidence(scratch)})"
    if classical:
        tally = _tally(classical, "the classical baseline")
        if scratch and _kinds(scratch)[0] == _kinds(classical)[0]:
            joiner = " and " if len(_kinds(scratch)) == 1 else ", and "
            tally = joiner + tally.removeprefix("beats ")
        else:
            tally = f", but {tally}" if scratch else f" {tally}"
        clause += f"{tally} ({_evidence(classical)})"
    if not schema.pretrained(names):
        clause += ", and no pretrained arm was compared"
    return Finding(task, clause, _aside(rows, others, data))


def _aside(rows: list[Row], others: list[str], data: str) -> str:
    """How the other pretrained arms did against scratch, those of equal tallies together."""
    tallies: dict[str, list[str]] = {}
    for name in others:
        chosen = _pick(rows, name, "scratch")
        if chosen:
            tallies.setdefault(_tally(chosen, "scratch"), []).append(name)
    return ", and ".join(
        f"{schema.describe(names[0]).title.replace('{data}', data)} {tally}"
        if len(names) == 1
        else f"each of {', '.join(names[:-1])} and {names[-1]} {tally}"
        for tally, names in tallies.items()
    )


def _pick(rows: list[Row], arm: str, baseline: str) -> list[Row]:
    chosen = [row for row in rows if row["arm"] == arm and row["baseline"] == baseline]
    return sorted(chosen, key=lambda row: row["labels"] or 0)


def _kinds(rows: list[Row]) -> list[str]:
    found = {outcome(row) for row in rows}
    return [kind for kind in ("better", "worse", "unclear", "unknown") if kind in found]


def _tally(rows: list[Row], baseline: str) -> str:
    """`beats <baseline> at 2 of 4 budgets, does worse at 1 and shows no clear difference at 1`."""
    phrases = {
        "better": f"beats {baseline}",
        "worse": f"does worse than {baseline}",
        "unclear": f"shows no clear difference to {baseline}",
        "unknown": f"has no interval against {baseline}",
    }
    short = {
        "worse": "does worse",
        "unclear": "shows no clear difference",
        "unknown": "has no interval",
    }
    first, *rest = _kinds(rows)
    if not rest:
        every = "any of" if first in ("unclear", "unknown") else "all"
        where = f"{every} {len(rows)} budgets" if len(rows) > 1 else "the one budget tried"
        return f"{phrases[first]} at {where}"
    number = {kind: sum(outcome(row) == kind for row in rows) for kind in (first, *rest)}
    parts = [f"{short[kind]} at {number[kind]}" for kind in rest]
    ending = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    joiner = ", " if len(parts) > 1 else " and "
    return f"{phrases[first]} at {number[first]} of {len(rows)} budgets{joiner}{ending}"


def _evidence(rows: list[Row]) -> str:
    few, many = rows[0], rows[-1]
    text = f"{formats.points(few['difference'])} points at {formats.count(few['labels'])} labels"
    if outcome(few) != "unknown":
        text += f", 95% interval {formats.interval(few['low'], few['high'])}"
    if outcome(many) != outcome(few):
        text += f"; {formats.points(many['difference'])} at {formats.count(many['labels'])}"
        text += f", {formats.interval(many['low'], many['high'])}"
    return text


def _modality(results: dict[str, Any], task: str) -> str:
    rows = [*results["tasks"], *results["cells"]]
    kinds = [row["modality"] for row in rows if task in (row.get("name"), row.get("task"))]
    return next((kind for kind in kinds if kind), "")
