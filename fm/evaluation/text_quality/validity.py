"""Validity: what makes a text no text at all."""

from __future__ import annotations

import itertools
import unicodedata

from fm.evaluation.text_quality.words import words

STUCK = 4
FAULTS = {
    "empty": "no letter or digit in it",
    "broken": "bytes that are not UTF-8 (U+FFFD)",
    "control": "a control character other than tab and line break",
    "stuck": f"one word or mark {STUCK} times or more in a row (dots and dashes aside)",
}
_RULES = frozenset(".-_=*")  # written in rows by people too


def faults(text: str) -> tuple[str, ...]:
    """Which of `FAULTS` a text has; none makes it valid."""
    found = []
    if not any(character.isalnum() for character in text):
        found.append("empty")
    if "\N{REPLACEMENT CHARACTER}" in text:
        found.append("broken")
    if any(unicodedata.category(each) == "Cc" and each not in "\t\n\r" for each in text):
        found.append("control")
    runs = itertools.groupby(words(text))
    if any(sum(1 for _ in run) >= STUCK for word, run in runs if word not in _RULES):
        found.append("stuck")
    return tuple(found)
