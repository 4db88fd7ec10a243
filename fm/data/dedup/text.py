"""Near-duplicate texts: a shared run of 13 words, or the same words throughout.

In scripts that put no spaces between words, characters make up the length of 13 words (see
`fm.data.words`).
"""

import itertools
from collections.abc import Sequence

import numpy as np

from fm.data.words import WORD_LENGTH, words_and_lengths

# As in GPT-3's analysis (Brown et al. 2020, appendix C): 13 words; a run in more than ten
# pretraining texts is a common phrase, not a copy.
RUN_WORDS = 13
MAX_TEXTS = 10

METHOD = (
    f"a run of {RUN_WORDS} words in common (lower case, punctuation ignored; runs in more than "
    f"{MAX_TEXTS} pretraining texts do not count), or all words the same"
)

# Odd, so that it has an inverse modulo 2**64.
_BASE = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(int(_BASE), -1, 2**64))


def find_text_duplicate_pairs(pretrain: Sequence[str], test: Sequence[str]) -> np.ndarray:
    """Returns (pretrain index, test index) of every pair of near-duplicate texts, int64 [n, 2].

    `METHOD` is the rule.

    Returns:
        int64 [pairs, 2]: index into `pretrain`, index into `test`; each pair once.
    """
    vocabulary: dict[str, int] = {}
    pretrain_words, pretrain_lengths, pretrain_starts = _word_ids(pretrain, vocabulary)
    test_words, test_lengths, test_starts = _word_ids(test, vocabulary)
    codes = _random_codes(len(vocabulary))
    whole = _join(
        _text_hashes(pretrain_words, pretrain_starts, codes, wordless=0),
        _text_hashes(test_words, test_starts, codes, wordless=1),
    )
    pretrain_runs, pretrain_texts = _run_hashes(
        pretrain_words, pretrain_lengths, pretrain_starts, codes
    )
    test_runs, test_texts = _run_hashes(test_words, test_lengths, test_starts, codes)
    shared = np.isin(pretrain_runs, test_runs)
    pretrain_runs, pretrain_texts = _rare(pretrain_runs[shared], pretrain_texts[shared])
    matched = np.isin(test_runs, pretrain_runs)
    pairs = _join(pretrain_runs, test_runs[matched])
    by_run = np.stack([pretrain_texts[pairs[:, 0]], test_texts[matched][pairs[:, 1]]], axis=1)
    return np.unique(np.concatenate([whole, by_run]), axis=0)


def _word_ids(
    texts: Sequence[str], vocabulary: dict[str, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns ids and lengths of all words, and where each text starts (and the last ends)."""
    ids: list[int] = []
    lengths: list[int] = []
    starts = [0]
    for text in texts:
        words, own_lengths = words_and_lengths(text)
        ids += [vocabulary.setdefault(word, len(vocabulary)) for word in words]
        lengths += own_lengths
        starts.append(len(ids))
    return np.array(ids, np.int64), np.array(lengths, np.int64), np.array(starts, np.int64)


def _random_codes(size: int) -> np.ndarray:
    """Returns a fixed random odd 64-bit code per word, from which the hashes are made."""
    return np.random.default_rng(0).integers(0, 2**64, size, np.uint64) | np.uint64(1)


def _run_hashes(
    words: np.ndarray, lengths: np.ndarray, starts: np.ndarray, codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hash of every run as long as `RUN_WORDS` words in a text, and the text's index.

    A run starts at any word and ends with the first that makes it as long.
    """
    lengths_before = np.concatenate([[0], np.cumsum(lengths)])
    ends = np.searchsorted(lengths_before, lengths_before[:-1] + RUN_WORDS * WORD_LENGTH)
    text_of_word = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    (inside,) = np.nonzero(ends <= starts[1:][text_of_word])
    powers = np.cumprod(np.full(len(words), _BASE)) * _INVERSE
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(codes[words] * powers)])
    inverse_powers = np.cumprod(np.full(len(words), _INVERSE)) * _BASE
    hashes = (sums[ends[inside]] - sums[inside]) * inverse_powers[inside]
    return hashes, text_of_word[inside]


def _text_hashes(
    words: np.ndarray, starts: np.ndarray, codes: np.ndarray, wordless: int
) -> np.ndarray:
    """Returns one hash per text over all its words, `wordless` if it has none."""
    coded = codes[words]
    hashes = np.full(len(starts) - 1, wordless, np.uint64)
    for text, (start, end) in enumerate(itertools.pairwise(starts)):
        if end > start:
            powers = np.cumprod(np.full(end - start, _BASE))
            hashes[text] = (coded[start:end] * powers).sum(dtype=np.uint64)
    return hashes


def _rare(runs: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drops repeats within a text, and runs of more than `MAX_TEXTS` texts."""
    pairs = np.unique(np.stack([runs, texts.astype(np.uint64)], axis=1), axis=0)
    _, which, counts = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
    pairs = pairs[counts[which] <= MAX_TEXTS]
    return pairs[:, 0], pairs[:, 1].astype(np.int64)


def _join(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns int64 [pairs, 2], the indices at which `left` and `right` hold the same value."""
    order = np.argsort(left, kind="stable")
    first = np.searchsorted(left[order], right, side="left")
    last = np.searchsorted(left[order], right, side="right")
    counts = last - first
    which = np.repeat(np.arange(len(right)), counts)
    within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([order[first[which] + within], which], axis=1).astype(np.int64)
