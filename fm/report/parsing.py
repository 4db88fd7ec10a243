"""Reads results.json into `Results`: checked, made printable, files of schema 1 upgraded.

A report can be made of any part of a study; a field of the wrong type is refused by name before
anything is drawn.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from fm.errors import UserError
from fm.report import schema_1
from fm.report.schema import BEST_RIVAL, PUBLISHED_DATA, Arm, Results

SCHEMA = 2
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# For arms without a look of their own: Okabe and Ito (2008) and Tol, safe for color-blind readers.
# Vermillion is kept for losses.
_COLORS = (
    *("#000000", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#8A7700", "#E69F00"),
    *("#882255", "#44AA99", "#332288", "#777777"),
)
_LINESTYLES = ("-", "--", "-.", ":")
_MARKERS = ("s", "o", "^", "D", "v", "P", "X", "*", "<", ">", "h")


def parse(results: Any) -> Results:
    """Validates the parsed JSON of a results.json and returns it as a `Results` record.

    Text is made printable (`sanitize`), numbers that are not finite become None, and every arm that
    occurs anywhere gets an entry in `arms`, with a color, line and marker of its own.

    Args:
      results: the parsed JSON, of schema 1 or 2. It is not changed.

    Raises:
      UserError: another schema, or a field of the wrong type; names the field.
    """
    content = {name: value for name, value in upgrade(results).items() if value is not None}
    try:
        content = _with_published_models(_with_ablation_rows(sanitize(content)))
        parsed = msgspec.convert(content, Results)
    except (msgspec.ValidationError, OverflowError) as error:
        raise UserError(f"results: {_explain(str(error))}") from error
    parsed.arms = _complete_arms(parsed)
    for row in parsed.comparisons:
        loser = row.arm if (row.difference or 0.0) < 0 else row.baseline
        losers = [loser]
        if loser == BEST_RIVAL:
            losers = [arm.name for arm in parsed.arms if arm.pretrained_on is None]
        budgets = [n for arm in losers for n in parsed.improving_budgets(row.task, arm)]
        row.loser_improving = bool(budgets) and row.num_labels in (None, *budgets)
    return parsed


def _with_ablation_rows(content: dict[str, Any]) -> dict[str, Any]:
    """Puts the rows of each ablation, a section of its own in the file, into its entry."""
    try:
        ablations = [
            entry
            | {
                "rows": [
                    row | {"level": row.get(entry["figure"]["field"])}
                    for row in content.get(entry["name"], [])
                ]
            }
            for entry in content.get("ablations", [])
        ]
    except (TypeError, LookupError, AttributeError) as error:
        raise UserError(
            "results: ablations: expected entries with a name, a title and a figure, and a section "
            "of rows for each name"
        ) from error
    return content | {"ablations": ablations}


def _with_published_models(content: dict[str, Any]) -> dict[str, Any]:
    """Gathers what a task says of each arm of published weights, in a field named after the arm."""
    arms, tasks = (
        [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        for rows in (content.get("arms"), content.get("tasks"))
    )
    names = [arm.get("name") for arm in arms if arm.get("pretrained_on") == PUBLISHED_DATA]
    for task in tasks:  # a copy that `sanitize` made
        task["published_models"] = {
            name: task[name]
            for name in names
            if isinstance(name, str) and task.get(name) is not None
        }
    return content


def _explain(message: str) -> str:
    """`cells[3].value: expected a number, got str` from msgspec's message."""
    reason, _, path = message.partition(" - at ")
    for name, words in {
        "int | float | null": "a number",
        "int | float": "a number",
        "str | null": "a text",
        "str": "a text",
        "array": "a list",
        "array | null": "a list",
    }.items():
        reason = reason.replace(f"Expected `{name}`", f"expected {words}")
    reason = reason.replace("`", "").replace("Expected object", "expected an object")
    where = path.strip("`").removeprefix("$").removeprefix(".")
    return f"{where}: {reason}" if where else reason


def sanitize(value: Any) -> Any:
    """Returns a JSON value with unprintable characters replaced and non-finite numbers as None.

    Text that a model wrote must not move a terminal's cursor or break a font.
    """
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {sanitize(str(key)): sanitize(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [sanitize(item) for item in value]
    return value


def _complete_arms(results: Results) -> list[Arm]:
    """The declared arms, then all others that occur, each with a valid look.

    An arm without a description counts as pretrained unless others are compared with it.
    """
    sections = (
        *(results.cells, results.comparisons, results.label_efficiency, results.compute_cost),
        *(results.curves, results.samples, results.amortized_cost, results.break_even),
    )
    rows = list(itertools.chain(*sections))
    baselines = {getattr(row, "baseline", None) for row in rows}
    arms = {arm.name: arm for arm in results.arms}
    names = {str(name) for name in {row.arm for row in rows} | baselines if name} - {BEST_RIVAL}
    for name in sorted(names):
        if name not in arms:
            arms[name] = Arm(
                name,
                title=f"arm {name}",
                description="The results do not describe this arm: see the configuration.",
                pretrained_on=None if name in baselines else "not stated",
                linestyle=":",
            )
    used = {arm.color for arm in arms.values()}
    colors = itertools.cycle([color for color in _COLORS if color not in used] or _COLORS)
    markers = itertools.cycle([m for m in _MARKERS if m not in {a.marker for a in arms.values()}])
    _tell_variants_apart(list(arms.values()))
    for arm in arms.values():
        arm.title = arm.title or arm.name
        if not re.fullmatch("#[0-9a-fA-F]{6}", arm.color or ""):
            arm.color = next(colors)
        known = isinstance(arm.linestyle, tuple) or arm.linestyle in _LINESTYLES
        arm.linestyle = arm.linestyle if known else "-"
        if arm.marker not in _MARKERS:
            arm.marker = next(markers, "o")
    return list(arms.values())


def _tell_variants_apart(arms: Sequence[Arm]) -> None:
    """Gives arms of one look, the variants of an arm, colors of their own; lines and marks stay.

    The n-th variant of every arm has the same color.
    """
    groups: dict[tuple, list[Arm]] = {}
    for arm in arms:
        if arm.color is not None:
            groups.setdefault((arm.color, arm.linestyle, arm.marker), []).append(arm)
    used = {group[0].color for group in groups.values() if len(group) == 1}
    colors = [color for color in _COLORS if color not in used]
    for group in groups.values():
        for arm, color in zip(group, itertools.cycle(colors)):
            arm.color = color if len(group) > 1 else arm.color


def upgrade(results: Any) -> dict[str, Any]:
    """Returns the content of a results.json converted to schema 2, or as it is if already so.

    Raises:
      UserError: not a mapping of schema 1 or 2.
    """
    found = results.get("schema") if isinstance(results, dict) else type(results).__name__
    if found == SCHEMA:
        return results
    if found == 1:
        return schema_1.upgrade(results) | {"schema": SCHEMA}
    raise UserError(f"results: expected a mapping of schema 1 or {SCHEMA}, found {found!r}")
