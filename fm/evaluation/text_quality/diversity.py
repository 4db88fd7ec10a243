"""Diversity and repetition of texts: distinct-n, Zipf exponent, rep-n, self-BLEU."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from sacrebleu.metrics.bleu import BLEU

from fm.evaluation.text_quality.intervals import StatisticFn
from fm.evaluation.text_quality.words import ngrams

_ZIPF_RANKS, _MAX_EXPONENT = 500, 10.0


def distinct_n(counts_NV: scipy.sparse.csr_array) -> StatisticFn:
    """Returns a function from text weights [R, N] to distinct n-grams over all n-grams, [R].

    Li et al. 2016, sec. 5. It falls with the number of words: compare samples of equal size only.
    """

    def statistic(weights_RN: np.ndarray) -> np.ndarray:
        counts_RV = weights_RN @ counts_NV
        return (counts_RV > 0).sum(1) / np.maximum(counts_RV.sum(1), 1)

    return statistic


def zipf_exponent(counts_NV: scipy.sparse.csr_array) -> StatisticFn:
    """Returns a function from text weights [R, N] to the exponent s of frequency ~ rank^-s, [R].

    Zipf 1949. Least squares of log frequency on log rank over the 500 most frequent words. It is
    about 1 in real text and higher where few words dominate; capped at 10, which stands for a
    single word.
    """

    def statistic(weights_RN: np.ndarray) -> np.ndarray:
        sorted_RV = -np.sort(-(weights_RN @ counts_NV), axis=1)[:, :_ZIPF_RANKS]
        return _negative_slopes(sorted_RV)

    return statistic


def _negative_slopes(sorted_RV: np.ndarray) -> np.ndarray:
    """Returns minus the least-squares slope of each row's log frequency on log rank."""
    present = sorted_RV > 0
    x = np.log(np.arange(1, sorted_RV.shape[1] + 1))
    y = np.log(np.where(present, sorted_RV, 1.0))
    n = np.maximum(present.sum(1), 1)
    centered_x = np.where(present, x - (present @ x / n)[:, None], 0.0)
    variance = (centered_x**2).sum(1)
    slopes = -(centered_x * y).sum(1) / np.where(variance == 0, 1.0, variance)
    return np.where(variance == 0, _MAX_EXPONENT, np.minimum(slopes, _MAX_EXPONENT))


def repetition_counts(texts: list[list[str]], n: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Returns each text's number of repeated n-grams and number of n-grams, int [N] each.

    Their ratio is rep-n (Welleck et al. 2020, sec. 6).
    """
    all_ngrams = [ngrams(words, n) for words in texts]
    total_N = np.array([len(each) for each in all_ngrams])
    return total_N - np.array([len(set(each)) for each in all_ngrams]), total_N


def self_bleu(texts: list[list[str]], others: int = 16) -> np.ndarray:
    """Returns the BLEU of each text against other texts of the sample, 0 to 1, float64 [N].

    Zhu et al. 2018, but against the next `others` texts (cyclically) instead of all: a fixed number
    makes samples comparable and the cost linear. An interval over these values treats the others as
    fixed. Up to 4-grams, smoothed, by sacrebleu.

    Raises:
      ValueError: fewer than two texts.
    """
    if len(texts) < 2:
        raise ValueError(f"self-BLEU needs two texts or more, got {len(texts)}")
    bleu = BLEU(tokenize="none", effective_order=True)
    joined = [" ".join(words) for words in texts]
    num_others = min(others, len(texts) - 1)
    cyclic = joined + joined
    return np.array(
        [
            bleu.sentence_score(text, cyclic[n + 1 : n + 1 + num_others]).score / 100
            for n, text in enumerate(joined)
        ]
    )
