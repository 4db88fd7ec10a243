"""Words, as every metric on text counts them."""

from __future__ import annotations

import re

import numpy as np
import scipy.sparse

_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Runs of letters and digits, lower case, and each mark of punctuation by itself."""
    return _WORD.findall(text.lower())


def ngrams(own: list[str], n: int) -> list[tuple[str, ...]]:
    """Every run of n words, in order."""
    return list(zip(*(own[start:] for start in range(n)), strict=False))


def counts(texts: list[list[str]], n: int) -> scipy.sparse.csr_array:
    """How often each n-gram stands in each text, float64 [N, types]."""
    types: dict[tuple[str, ...], int] = {}
    rows, columns = [], []
    for row, own in enumerate(texts):
        for ngram in ngrams(own, n):
            rows.append(row)
            columns.append(types.setdefault(ngram, len(types)))
    ones = np.ones(len(rows))
    return scipy.sparse.csr_array((ones, (rows, columns)), shape=(len(texts), len(types)))
