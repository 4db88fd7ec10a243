"""Words and n-grams as every text metric counts them, and the faults that make a text invalid."""

from __future__ import annotations

import itertools
import re
import unicodedata

import numpy as np
import scipy.sparse

_WORD = re.compile(r"\w+|[^\w\s]")

STUCK_RUN_LENGTH = 4
FAULTS = {
    "empty": "no letter or digit in it",
    "broken": "bytes that are not UTF-8 (U+FFFD)",
    "control": "a control character other than tab and line break",
    "stuck": (
        f"one word or mark {STUCK_RUN_LENGTH} times or more in a row (dots and dashes aside)"
    ),
}
_ALLOWED_RUNS = frozenset(".-_=*")  # people write these in rows too


def split_words(text: str) -> list[str]:
    """Splits a text into lower-case words and single punctuation marks."""
    return _WORD.findall(text.lower())


def ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    """Returns every n-gram of a word list, in order, repeats included."""
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def ngram_counts(texts: list[list[str]], n: int) -> scipy.sparse.csr_array:
    """Returns n-gram counts as a sparse matrix, float64 [N, distinct n-grams]."""
    columns_of: dict[tuple[str, ...], int] = {}
    rows, columns = [], []
    for row, words in enumerate(texts):
        for ngram in ngrams(words, n):
            rows.append(row)
            columns.append(columns_of.setdefault(ngram, len(columns_of)))
    ones = np.ones(len(rows))
    return scipy.sparse.csr_array((ones, (rows, columns)), shape=(len(texts), len(columns_of)))


def find_faults(text: str) -> tuple[str, ...]:
    """Returns which `FAULTS` a text has, of "empty", "broken", "control" and "stuck"."""
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
