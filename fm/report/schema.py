"""results.json as the report reads it: every section and field present, every string printable."""

import math
from typing import Any

from fm.errors import UserError
from fm.report import kinds

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
    "imported",
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
_MAPPINGS = ("config", "versions", "device", "attention")
_WORDS = ("experiment", "config_hash", "xla_flags")


def tidy(results: dict) -> dict[str, Any]:
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
    tidied = {key: printable(value) for key, value in results.items()}
    for name, fields in _ROWS.items():
        rows = tidied.get(name) or []
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"results: section {name!r} must be a list of mappings")
        kinds.check(name, fields, rows)
        tidied[name] = [dict.fromkeys(fields.split()) | row for row in rows]
    for names, kind, words in ((_MAPPINGS, dict, "an object"), (_WORDS, str, "a text")):
        for name in names:
            tidied[name] = tidied.get(name) or kind()
            if not isinstance(tidied[name], kind):
                raise UserError(f"results: {name} takes {words}, not {tidied[name]!r:.60}")
    return tidied


def task_names(results: dict[str, Any]) -> list[str]:
    """The tasks in the order the results declare them, then in order of first appearance."""
    rows = [*results["tasks"], *results["cells"], *results["comparisons"]]
    return list(dict.fromkeys(name for row in rows if (name := row.get("task") or row.get("name"))))


def title(results: dict[str, Any], task: str | None) -> str:
    """The task's title, or its name with a capital; no task in particular is `All tasks`."""
    titles = {row["name"]: row["title"] for row in results["tasks"]}
    return titles.get(task) or capital(task or "all tasks")


def capital(text: str) -> str:
    """`text` with its first letter a capital and the rest as it was."""
    return text[:1].upper() + text[1:]


def printable(value: Any) -> Any:
    """A copy without control characters, half surrogates and numbers that are not finite."""
    if isinstance(value, str):
        return "".join(_printable_character(character) for character in value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(printable(str(key))): printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable(item) for item in value]
    return value


def _printable_character(character: str) -> str:
    code = ord(character)
    control = (code < 32 and character not in "\n\t") or 127 <= code < 160
    return "\N{REPLACEMENT CHARACTER}" if control or 0xD800 <= code < 0xE000 else character
