"""What each field of results.json must be, so that no page stumbles over one that is not."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from fm.errors import UserError

_TEXTS = (
    "task modality arm metric baseline beyond method title name description licence fingerprint "
    "split kind unit prompt text caption png wav gif truth prediction baseline_prediction "
    "condition wording way against source format note item upstream"
)
_LISTS = "trials classes values never"
_MAPPINGS = "variance imported shares setting"
# Of curves these are lists, elsewhere numbers.
_SERIES = "tokens steps value validation_tokens validation"
_MOST = 2**63  # larger whole numbers are no number of anything


def check_fields(section: str, fields: str, rows: list[dict[str, Any]]) -> None:
    """Sees that every field of every row is of its kind, or None.

    Raises:
        UserError: one is not; names it by its section, row and field.
    """
    accepts = {field: _kind(section, field) for field in fields.split()}
    for n, row in enumerate(rows):
        for field, (words, fits) in accepts.items():
            value = row.get(field)
            if value is not None and not fits(value):
                raise UserError(
                    f"results: {section}[{n}].{field} takes {words}, not {str(value)!r:.60}"
                )


def _kind(section: str, field: str) -> tuple[str, Any]:
    """In words, and as a test."""
    if section == "curves" and field in _SERIES.split():
        return "a list of numbers", _is_series
    if field in _LISTS.split() or (section, field) == ("break_even", "tasks"):
        return "a list", lambda value: isinstance(value, list)
    if field in _TEXTS.split():
        return "a text", lambda value: isinstance(value, str)
    if field in _MAPPINGS.split():
        return "an object", lambda value: isinstance(value, dict)
    return "a number", _is_number


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < _MOST)


def _is_series(value: Any) -> bool:
    return isinstance(value, list) and all(each is None or _is_number(each) for each in value)


Row = dict[str, Any]

_STUDIED = "task modality labels metric value values difference low high p p_adjusted items"
_ROWS = {
    "cells": "task modality arm labels seed metric value validation trials train_flops "
    "pretrain_flops seconds",
    "comparisons": "task labels arm baseline difference low high p p_adjusted seeds items variance",
    "equivalents": "task labels arm label_multiplier low high beyond steps_to_scratch_quality",
    "ledger": "task arm pretrain_flops pretrain_seconds adapt_flops adapt_seconds "
    "break_even_tasks note",
    "leakage": "task arm method checked found removed",
    "tasks": "name title modality classes metric train test description licence fingerprint split "
    "published",
    "curves": "task arm kind unit labels tokens steps value validation_tokens validation share",
    "samples": "task arm modality prompt text caption png wav gif",
    "methods": "task arm method labels parameters_trained bytes_state bytes_program seconds "
    "accuracy",
    "following": "task labels condition wording metric value answers_of_this_task items seeds",
    "bill": "way labels tasks parameters flops seconds",
    "break_even": "way against tasks never flops flops_until seconds seconds_until parameters "
    "parameters_until",
    "matrix": f"{_STUDIED} source",
    "mixture": f"{_STUDIED} format factor shares",
    "amount": f"{_STUDIED} share examples",
    "mistakes": "task arm labels truth prediction baseline_prediction modality text png",
}
_MAPPINGS_schema = ("config", "versions", "device", "attention")
_WORDS = ("experiment", "config_hash", "xla_flags")


def parse(results: dict) -> dict[str, Any]:
    """A copy of `results` that every other file of the report may index without asking.

    All sections are present (an absent one is empty), all rows have all their fields (an absent
    one is None), numbers are finite or None, and strings hold neither control characters nor
    half surrogates: text a model wrote must not move a terminal's cursor or break a font.

    Raises:
        UserError: not a mapping of schema 1, or a section or field of the wrong kind.
    """
    if not isinstance(results, dict) or results.get("schema") != 1:
        found = results.get("schema") if isinstance(results, dict) else type(results).__name__
        raise UserError(f"results: expected a mapping of schema 1, found {found!r}")
    tidied = {key: sanitize(value) for key, value in results.items()}
    for name, fields in _ROWS.items():
        rows = tidied.get(name) or []
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"results: section {name!r} must be a list of mappings")
        check_fields(name, fields, rows)
        tidied[name] = [dict.fromkeys(fields.split()) | row for row in rows]
    for names, kind, words in ((_MAPPINGS_schema, dict, "an object"), (_WORDS, str, "a text")):
        for name in names:
            tidied[name] = tidied.get(name) or kind()
            if not isinstance(tidied[name], kind):
                raise UserError(f"results: {name} takes {words}, not {tidied[name]!r:.60}")
    return tidied


def task_names(results: dict[str, Any]) -> list[str]:
    """The tasks in the order the results declare them, then in order of first appearance."""
    rows = [*results["tasks"], *results["cells"], *results["comparisons"]]
    return list(dict.fromkeys(name for row in rows if (name := row.get("task") or row.get("name"))))


def task_title(results: dict[str, Any], task: str | None) -> str:
    """The task's title, or its name with a capital; no task in particular is `All tasks`."""
    titles = {row["name"]: row["title"] for row in results["tasks"]}
    return titles.get(task) or capitalize_first(task or "all tasks")


def capitalize_first(text: str) -> str:
    """`text` with its first letter a capital and the rest as it was."""
    return text[:1].upper() + text[1:]


def sanitize(value: Any) -> Any:
    """A copy without control characters, half surrogates and numbers that are not finite."""
    if isinstance(value, str):
        return "".join(_printable_character(character) for character in value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(sanitize(str(key))): sanitize(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [sanitize(item) for item in value]
    return value


def _printable_character(character: str) -> str:
    code = ord(character)
    control = (code < 32 and character not in "\n\t") or 127 <= code < 160
    return "\N{REPLACEMENT CHARACTER}" if control or 0xD800 <= code < 0xE000 else character


LineStyle = str | tuple[int, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Arm:
    """How one arm is named, explained and drawn.

    Attributes:
        name: the name in results.json.
        description: one sentence on what the arm learned from.
        title: the arm as the subject of a sentence; `{data}` is the task's kind of data.
        color: hex colour; the set is Okabe and Ito's (2008), safe for colour-blind readers,
            with its yellow darkened to be seen on white and its vermillion kept for losses.
        linestyle: a matplotlib line style.
        marker: a matplotlib marker.
    """

    name: str
    description: str
    title: str
    color: str
    linestyle: LineStyle
    marker: str


_ARMS = (
    Arm(
        "scratch",
        "Random initial weights, trained on the labelled examples only.",
        "training from scratch",
        "#000000",
        (0, (5, 2)),
        "s",
    ),
    Arm(
        "in_domain",
        "Pretrained on the task's own data without its labels, "
        "then trained on the same labelled examples.",
        "pretraining on its own unlabelled {data}",
        "#0072B2",
        "-",
        "o",
    ),
    Arm(
        "out_of_domain",
        "Pretrained on other data of the same kind, then trained on the same labelled examples.",
        "pretraining on other {data}",
        "#009E73",
        "-",
        "^",
    ),
    Arm(
        "joint",
        "Pretrained on every kind of data at once, then trained on the same labelled examples.",
        "pretraining on all kinds of data together",
        "#CC79A7",
        "-",
        "D",
    ),
    Arm(
        "instruction_tuned",
        "One model taught to follow written instructions over many tasks, then asked this one.",
        "instruction training",
        "#56B4E9",
        (0, (7, 1, 1, 1)),
        "v",
    ),
    Arm(
        "published",
        "Published weights, pretrained elsewhere, then trained on the same labelled examples; "
        "they may have seen these test items before.",
        "starting from published weights",
        "#8A7700",
        "-",
        "P",
    ),
    Arm(
        "classical",
        "No neural network: word counts, pixels or sound statistics with logistic regression.",
        "the classical baseline",
        "#E69F00",
        (0, (1, 1)),
        "X",
    ),
)
_BY_NAME = {arm.name: arm for arm in _ARMS}
_BASELINES = ("scratch", "classical")

BETTER, WORSE = "#0072B2", "#D55E00"


def describe(name: str) -> Arm:
    """The arm of that name; one this file does not know is drawn in grey and says so."""
    return _BY_NAME.get(name) or Arm(
        name,
        "Not one of the named arms: see the configuration.",
        f"arm {name}",
        "#777777",
        ":",
        "*",
    )


def ordered(names: set[str]) -> list[str]:
    """The names in the report's fixed order, unknown ones last by alphabet."""
    known = [arm.name for arm in _ARMS if arm.name in names]
    return known + sorted(names - set(known))


def pretrained(names: set[str]) -> list[str]:
    """Those of the names that learned something before the labels came, in the fixed order."""
    return [name for name in ordered(names) if name not in _BASELINES]
