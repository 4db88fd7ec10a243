"""Novelty: what of a text was not in the training data, and the longest stretch that was."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fm.evaluation.text_quality.words import split_words

# Odd, so that powers of it never vanish modulo 2**64.
_BASE = np.uint64(0x9E3779B97F4A7C15)
_UNKNOWN, _BREAK = -1, -2


class TrainingNgrams:
    """The n-grams of training text, by hash, with the places they stand at.

    Memory: 16 bytes a word, and 16 more while it is built (10 M words: 160 MB). A hash only finds
    candidates for a copied stretch; the words are then compared. Two n-grams share a hash of 64
    bits once in 2^64 pairs.
    """

    def __init__(self, texts: Sequence[str], n: int = 4):
        """Reads the training text; no n-gram reaches over the end of one."""
        self.n = n
        self._numbers: dict[str, int] = {}
        flat: list[int] = []
        for text in texts:
            flat += [
                self._numbers.setdefault(word, len(self._numbers)) for word in split_words(text)
            ]
            flat.append(_BREAK)
        # The breaks at the end let a comparison run past the last word.
        self._words = np.array([*flat, *[_BREAK] * n], np.int32)
        codes = np.random.default_rng(0).integers(0, 2**64, len(self._numbers) + 1, np.uint64)
        self._codes = codes | np.uint64(1)
        hashes, whole = self._hashes(self._words)
        places = np.flatnonzero(whole).astype(np.int32)
        order = np.argsort(hashes[whole], kind="stable")
        self._sorted, self._places = hashes[whole][order], places[order]

    def __len__(self) -> int:
        """Words read."""
        return int(np.count_nonzero(self._words >= 0))

    def count_novel(self, texts: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
        """N-grams of each text that training text does not have, and all of them, int [N] each."""
        new, total = [], []
        for own in texts:
            hashes, whole = self._hashes(self._numbered(own))
            at = np.searchsorted(self._sorted, hashes[whole])
            found = at < len(self._sorted)
            found[found] = self._sorted[at[found]] == hashes[whole][found]
            total.append(max(0, len(own) - self.n + 1))
            new.append(total[-1] - int(found.sum()))
        return np.array(new), np.array(total)

    def longest_copies(self, texts: list[list[str]]) -> np.ndarray:
        """Words of each text's longest stretch copied from one training text, int [N].

        0 where no n-gram is copied.
        """
        return np.array([self._longest(self._numbered(own)) for own in texts])

    def _longest(self, own: np.ndarray) -> int:
        hashes, whole = self._hashes(own)
        starts = np.flatnonzero(whole)
        first = np.searchsorted(self._sorted, hashes[starts], "left")
        last = np.searchsorted(self._sorted, hashes[starts], "right")
        # All pairs of a place here and one in training text with the same n-gram.
        repeats = last - first
        here = np.repeat(starts, repeats)
        within = np.arange(len(here)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        there = self._places[np.repeat(first, repeats) + within].astype(np.int64)
        # A place whose word before matches too is the inside of a longer stretch.
        inside = (here > 0) & (there > 0) & (own[here - 1] == self._words[there - 1])
        inside &= own[here - 1] >= 0
        here, there = here[~inside], there[~inside]
        length = 0
        ended = np.append(own, _UNKNOWN)
        while len(here):
            same = ended[here + length] == self._words[np.minimum(there + length, self._end)]
            here, there = here[same], there[same]
            length += bool(len(here))
        return length if length >= self.n else 0

    @property
    def _end(self) -> int:
        return len(self._words) - 1

    def _numbered(self, own: list[str]) -> np.ndarray:
        return np.array([self._numbers.get(word, _UNKNOWN) for word in own], np.int32)

    def _hashes(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hash of the n words from each place on, and whether they are n words training has."""
        count = max(len(numbers) - self.n + 1, 0)
        coded = self._codes[np.maximum(numbers, 0)]
        hashes, whole = np.zeros(count, np.uint64), np.ones(count, bool)
        for offset in range(self.n):
            hashes = hashes * _BASE + coded[offset : offset + count]
            whole &= numbers[offset : offset + count] >= 0
        return hashes, whole
