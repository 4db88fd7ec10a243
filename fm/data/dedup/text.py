"""Texts that overlap: a shared run of 13 words, or the same words throughout."""

import itertools
import re
from collections.abc import Sequence

import numpy as np

# As GPT-3 was checked (Brown et al. 2020, appendix C): 13 words, and a run that more than ten
# pretraining texts hold is a phrase of the genre, not a copy.
WORDS = 13
MOST_TEXTS = 10

METHOD = (
    f"a run of {WORDS} words in common (lower case, punctuation ignored; runs in more than "
    f"{MOST_TEXTS} pretraining texts do not count), or all words the same"
)

_WORD = re.compile(r"\w+")


def find_text_duplicates(pretrain: Sequence[str], test: Sequence[str]) -> np.ndarray:
    """Finds the pairs that overlap by `METHOD`.

    Returns:
        int64 [pairs, 2]: index into `pretrain`, index into `test`; each pair once.
    """
    vocabulary: dict[str, int] = {}
    own_words, own_starts = _words(pretrain, vocabulary)
    test_words, test_starts = _words(test, vocabulary)
    codes = _random_codes(len(vocabulary))
    whole = _join(
        _whole_hashes(own_words, own_starts, codes, wordless=0),
        _whole_hashes(test_words, test_starts, codes, wordless=1),
    )
    own_runs, own_texts = _runs(own_words, own_starts, codes)
    test_runs, test_texts = _runs(test_words, test_starts, codes)
    shared = np.isin(own_runs, test_runs)
    own_runs, own_texts = _rare(own_runs[shared], own_texts[shared])
    kept = np.isin(test_runs, own_runs)
    pairs = _join(own_runs, test_runs[kept])
    by_run = np.stack([own_texts[pairs[:, 0]], test_texts[kept][pairs[:, 1]]], axis=1)
    return np.unique(np.concatenate([whole, by_run]), axis=0)


def _words(texts: Sequence[str], vocabulary: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns all words' numbers in one array, and where each text starts in it (and the end)."""
    numbers: list[int] = []
    starts = [0]
    for text in texts:
        numbers += [
            vocabulary.setdefault(word, len(vocabulary)) for word in _WORD.findall(text.lower())
        ]
        starts.append(len(numbers))
    return np.array(numbers, np.int64), np.array(starts, np.int64)


def _random_codes(size: int) -> np.ndarray:
    """Returns a fixed random odd 64-bit code per word; sums of shifts of these are the hashes."""
    return np.random.default_rng(0).integers(0, 2**64, size, np.uint64) | np.uint64(1)


# Odd, so that powers of it never vanish modulo 2**64.
_BASE = np.uint64(0x9E3779B97F4A7C15)


def _runs(
    words: np.ndarray, starts: np.ndarray, codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hash of every run of `WORDS` words inside one text, and that text's index."""
    count = max(len(words) - WORDS + 1, 0)
    coded = codes[words]
    hashes = np.zeros(count, np.uint64)
    for offset in range(WORDS):
        hashes = hashes * _BASE + coded[offset : offset + count]
    text_of_word = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    inside = text_of_word[:count] == text_of_word[WORDS - 1 :][:count]
    return hashes[inside], text_of_word[:count][inside]


def _whole_hashes(
    words: np.ndarray, starts: np.ndarray, codes: np.ndarray, wordless: int
) -> np.ndarray:
    """Returns one hash per text over all its words, `wordless` where there are none."""
    coded = codes[words]
    hashes = np.full(len(starts) - 1, wordless, np.uint64)
    for text, (start, end) in enumerate(itertools.pairwise(starts)):
        if end > start:
            powers = np.cumprod(np.full(end - start, _BASE))
            hashes[text] = (coded[start:end] * powers).sum(dtype=np.uint64)
    return hashes


def _rare(runs: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drops repeats within a text, and the runs that too many texts hold."""
    pairs = np.unique(np.stack([runs, texts.astype(np.uint64)], axis=1), axis=0)
    _, which, counts = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
    pairs = pairs[counts[which] <= MOST_TEXTS]
    return pairs[:, 0], pairs[:, 1].astype(np.int64)


def _join(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns int64 [pairs, 2] of indices at which `left` and `right` hold the same value."""
    order = np.argsort(left, kind="stable")
    first = np.searchsorted(left[order], right, side="left")
    last = np.searchsorted(left[order], right, side="right")
    counts = last - first
    which = np.repeat(np.arange(len(right)), counts)
    within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([order[first[which] + within], which], axis=1).astype(np.int64)
