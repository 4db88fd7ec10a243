"""Novelty: n-grams of a text that the training text lacks, and the longest copied run of words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fm.evaluation.text_quality.words import split_words

# Odd, so that its powers never become 0 modulo 2**64.
_HASH_BASE = np.uint64(0x9E3779B97F4A7C15)
_UNKNOWN_WORD, _TEXT_END = -1, -2


class TrainingNgrams:
    """A hashed index of the n-grams of training texts, to measure novelty and copying.

    Memory: 16 bytes per word, and 16 more while it is built (10 M words: 160 MB). For copied runs
    the hash only finds candidates, whose words are then compared. Two n-grams share a hash once in
    2^64 pairs.
    """

    def __init__(self, texts: Sequence[str], n: int = 4):
        """Indexes the training texts; no n-gram spans two of them."""
        self.n = n
        self._word_ids: dict[str, int] = {}
        flat: list[int] = []
        for text in texts:
            flat += [
                self._word_ids.setdefault(word, len(self._word_ids)) for word in split_words(text)
            ]
            flat.append(_TEXT_END)
        # The padding lets a comparison run past the last word.
        self._words = np.array([*flat, *[_TEXT_END] * n], np.int32)
        codes = np.random.default_rng(0).integers(0, 2**64, len(self._word_ids) + 1, np.uint64)
        self._codes = codes | np.uint64(1)
        hashes, known = self._ngram_hashes(self._words)
        positions = np.flatnonzero(known).astype(np.int32)
        order = np.argsort(hashes[known], kind="stable")
        self._sorted_hashes, self._positions = hashes[known][order], positions[order]

    def __len__(self) -> int:
        """Number of words indexed."""
        return int(np.count_nonzero(self._words >= 0))

    def count_novel(self, texts: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
        """Returns each text's n-grams that the training text lacks, and all, int [N] each."""
        novel, total = [], []
        for words in texts:
            hashes, known = self._ngram_hashes(self._to_ids(words))
            at = np.searchsorted(self._sorted_hashes, hashes[known])
            found = at < len(self._sorted_hashes)
            found[found] = self._sorted_hashes[at[found]] == hashes[known][found]
            total.append(max(0, len(words) - self.n + 1))
            novel.append(total[-1] - int(found.sum()))
        return np.array(novel), np.array(total)

    def longest_copies(self, texts: list[list[str]]) -> np.ndarray:
        """Returns the words of each text's longest run copied from one training text, int [N].

        0 where no n-gram is copied.
        """
        return np.array([self._longest_copy(self._to_ids(words)) for words in texts])

    def _longest_copy(self, ids: np.ndarray) -> int:
        hashes, known = self._ngram_hashes(ids)
        starts = np.flatnonzero(known)
        first = np.searchsorted(self._sorted_hashes, hashes[starts], "left")
        last = np.searchsorted(self._sorted_hashes, hashes[starts], "right")
        # All pairs of a position in the text and one in the training text with the same n-gram.
        matches = last - first
        here = np.repeat(starts, matches)
        offset = np.arange(len(here)) - np.repeat(np.cumsum(matches) - matches, matches)
        there = self._positions[np.repeat(first, matches) + offset].astype(np.int64)
        # A pair whose preceding words match too lies inside a longer run.
        inside = (here > 0) & (there > 0) & (ids[here - 1] == self._words[there - 1])
        inside &= ids[here - 1] >= 0
        here, there = here[~inside], there[~inside]
        length = 0
        padded = np.append(ids, _UNKNOWN_WORD)
        last_word = len(self._words) - 1
        while len(here):
            same = padded[here + length] == self._words[np.minimum(there + length, last_word)]
            here, there = here[same], there[same]
            length += bool(len(here))
        return length if length >= self.n else 0

    def _to_ids(self, words: list[str]) -> np.ndarray:
        return np.array([self._word_ids.get(word, _UNKNOWN_WORD) for word in words], np.int32)

    def _ngram_hashes(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the hash of the n words from each position, and whether all n are known."""
        count = max(len(ids) - self.n + 1, 0)
        codes = self._codes[np.maximum(ids, 0)]
        hashes, known = np.zeros(count, np.uint64), np.ones(count, bool)
        for offset in range(self.n):
            hashes = hashes * _HASH_BASE + codes[offset : offset + count]
            known &= ids[offset : offset + count] >= 0
        return hashes, known
