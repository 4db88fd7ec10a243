"""Diversity: how many different things are said, and how often the same thing is said again."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from sacrebleu.metrics.bleu import BLEU

from fm.evaluation.text_quality.intervals import Statistic
from fm.evaluation.text_quality.words import ngrams

_RANKS, _STEEPEST = 500, 10.0


def distinct_n(counts_NV: scipy.sparse.csr_array) -> Statistic:
    """Distinct-n: different n-grams by all n-grams of the texts together (Li et al. 2016, sec. 5).

    It falls with the number of words, so only samples of one size compare.
    """

    def statistic(weights_RN: np.ndarray) -> np.ndarray:
        counts_RV = weights_RN @ counts_NV
        return (counts_RV > 0).sum(1) / np.maximum(counts_RV.sum(1), 1)

    return statistic


def zipf_exponent(counts_NV: scipy.sparse.csr_array) -> Statistic:
    """Zipf exponent s of words: frequency ~ rank^-s (Zipf 1949).

    Least squares of log frequency on log rank over the 500 most frequent words; about 1 in real
    text, higher where few words do most of the work. Cut at 10, which stands for a single word.
    """

    def statistic(weights_RN: np.ndarray) -> np.ndarray:
        ordered_RV = -np.sort(-(weights_RN @ counts_NV), axis=1)[:, :_RANKS]
        return _slopes(ordered_RV)

    return statistic


def _slopes(ordered_RV: np.ndarray) -> np.ndarray:
    """Least-squares slope of each row's log frequencies, highest first, on log rank, turned up."""
    there = ordered_RV > 0
    x = np.log(np.arange(1, ordered_RV.shape[1] + 1))
    y = np.log(np.where(there, ordered_RV, 1.0))
    n = np.maximum(there.sum(1), 1)
    x_off = np.where(there, x - (there @ x / n)[:, None], 0.0)
    spread = (x_off**2).sum(1)
    slopes = -(x_off * y).sum(1) / np.where(spread == 0, 1.0, spread)
    return np.where(spread == 0, _STEEPEST, np.minimum(slopes, _STEEPEST))


def repetition_counts(texts: list[list[str]], n: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Repetition within a text: its n-grams that came before in it, and all of them, int [N] each.

    The first by the second is rep-n (Welleck et al. 2020, sec. 6).
    """
    every = [ngrams(own, n) for own in texts]
    total_N = np.array([len(each) for each in every])
    return total_N - np.array([len(set(each)) for each in every]), total_N


def self_bleu(texts: list[list[str]], others: int = 16) -> np.ndarray:
    """BLEU of each text against others of the sample, 0 to 1, float64 [N] (Zhu et al. 2018).

    Against the `others` that follow it (round the end), not against all: with a fixed number the
    figures of two samples compare, and the cost is linear. An interval over these figures takes
    the others as given. Up to 4-grams, smoothed, by sacrebleu.

    Raises:
      ValueError: fewer than two texts.
    """
    if len(texts) < 2:
        raise ValueError(f"self-BLEU needs two texts or more, got {len(texts)}")
    bleu = BLEU(tokenize="none", effective_order=True)
    joined = [" ".join(own) for own in texts]
    reach = min(others, len(texts) - 1)
    twice = joined + joined
    return np.array(
        [
            bleu.sentence_score(text, twice[n + 1 : n + 1 + reach]).score / 100
            for n, text in enumerate(joined)
        ]
    )
