"""Validity: what makes a text no text at all."""

from __future__ import annotations

import itertools
import re
import unicodedata

import numpy as np
import scipy.sparse

STUCK_RUN_LENGTH = 4
FAULTS = {
    "empty": "no letter or digit in it",
    "broken": "bytes that are not UTF-8 (U+FFFD)",
    "control": "a control character other than tab and line break",
    "stuck": f"one word or mark {STUCK_RUN_LENGTH} times or more in a row (dots and dashes aside)",
}
_ALLOWED_RUNS = frozenset(".-_=*")  # written in rows by people too


def find_faults(text: str) -> tuple[str, ...]:
    """Which of `FAULTS` a text has; none makes it valid."""
    found = []
    if not any(character.isalnum() for character in text):
        found.append("empty")
    if "\N{REPLACEMENT CHARACTER}" in text:
        found.append("broken")
    if any(unicodedata.category(each) == "Cc" and each not in "\t\n\r" for each in text):
        found.append("control")
    runs = itertools.groupby(split_words(text))
    if any(
        sum(1 for _ in run) >= STUCK_RUN_LENGTH for word, run in runs if word not in _ALLOWED_RUNS
    ):
        found.append("stuck")
    return tuple(found)


_WORD = re.compile(r"\w+|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Runs of letters and digits, lower case, and each mark of punctuation by itself."""
    return _WORD.findall(text.lower())


def ngrams(own: list[str], n: int) -> list[tuple[str, ...]]:
    """Every run of n words, in order."""
    return list(zip(*(own[start:] for start in range(n)), strict=False))


def ngram_counts(texts: list[list[str]], n: int) -> scipy.sparse.csr_array:
    """How often each n-gram stands in each text, float64 [N, types]."""
    types: dict[tuple[str, ...], int] = {}
    rows, columns = [], []
    for row, own in enumerate(texts):
        for ngram in ngrams(own, n):
            rows.append(row)
            columns.append(types.setdefault(ngram, len(types)))
    ones = np.ones(len(rows))
    return scipy.sparse.csr_array((ones, (rows, columns)), shape=(len(texts), len(types)))
