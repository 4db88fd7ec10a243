"""Features of pairs of texts: words of both, differences, shared words, and similarities."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from sklearn.preprocessing import normalize

from fm.evaluation.baselines import text
from fm.evaluation.baselines.features import FeatureSet, Rows, Transform, beside, standardize

# Leading dimensions of latent semantic analysis that a pair is compared in.
_LSA_DIMS = 64


class TextPair(NamedTuple):
    """A pair of texts, such as a premise and a hypothesis."""

    first: str
    second: str


def both_counts(pairs: Sequence[TextPair], sample_rate: float | None = None) -> sp.csr_array:
    """Returns word counts of the first texts, beside those of the second, see `word_counts`."""
    return sp.csr_array(sp.hstack(_counts(tuple(pairs)), format="csr"))


def differences(pairs: Sequence[TextPair], sample_rate: float | None = None) -> sp.csr_array:
    """Returns the absolute differences of the two texts' word counts."""
    first, second = _counts(tuple(pairs))
    return sp.csr_array(abs(first - second))


def products(pairs: Sequence[TextPair], sample_rate: float | None = None) -> sp.csr_array:
    """Returns the products of the two texts' word counts: the words that they share."""
    first, second = _counts(tuple(pairs))
    return sp.csr_array(first.multiply(second))


def similarities(pairs: Sequence[TextPair], sample_rate: float | None = None) -> np.ndarray:
    """Returns how alike the two texts are, float [N, 7].

    Cosines of word and of character counts, the shares of words that they have in common of all,
    of the first's and of the second's, and the two logarithms of their lengths' ratio and sum.
    """
    words = _counts(tuple(pairs))
    characters = [text.character_counts(list(each)) for each in zip(*pairs, strict=True)]
    present: list[Any] = [each > 0 for each in words]
    shared = _row_sums(present[0].multiply(present[1]))
    sizes = [_row_sums(each) for each in present]
    lengths = np.array([[len(each) + 1 for each in pair] for pair in pairs], float)
    return np.column_stack(
        [
            *(_cosines(*each) for each in (words, characters)),
            shared / np.maximum(sizes[0] + sizes[1] - shared, 1),
            *(shared / np.maximum(each, 1) for each in sizes),
            np.log(lengths[:, 0] / lengths[:, 1]),
            np.log(lengths.sum(axis=1)),
        ]
    )


def sparse_similarities(pairs: Sequence[TextPair], sample_rate: float | None = None) -> Any:
    """Returns `similarities` as sparse rows, to stand beside other sparse ones."""
    return sp.csr_array(similarities(pairs))


def learn_pair_lsa(rows: Rows) -> Transform:
    """Returns a comparison by latent semantic analysis of the texts of unlabeled pairs.

    Of `both_counts` rows to [N, 2 D + 1]: absolute difference, product and cosine of the two texts.
    """

    def texts_of(rows: Rows) -> list[sp.csr_array]:
        rows = sp.csr_array(rows)
        half = rows.shape[1] // 2
        return [sp.csr_array(rows[:, :half]), sp.csr_array(rows[:, half:])]

    analyze = text.learn_lsa(sp.vstack(texts_of(rows), format="csr"))

    def compare(others: Rows) -> np.ndarray:
        first, second = (
            np.asarray(normalize(analyze(each)[:, :_LSA_DIMS]), float) for each in texts_of(others)
        )
        product = first * second
        return np.column_stack([abs(first - second), product, product.sum(axis=1)])

    return compare


# Every feature set asks for the counts of the same pairs.
@functools.lru_cache(maxsize=4)
def _counts(pairs: tuple[TextPair, ...]) -> tuple[sp.csr_array, sp.csr_array]:
    first, second = (text.word_counts([pair[n] for pair in pairs]) for n in (0, 1))
    return first, second


def _cosines(first: Any, second: Any) -> np.ndarray:
    normalized: list[Any] = [normalize(first), normalize(second)]
    return _row_sums(normalized[0].multiply(normalized[1]))


def _row_sums(rows: Any) -> np.ndarray:
    return np.asarray(rows.sum(axis=1), float).ravel()


PAIR_SIMILARITIES = FeatureSet("similarities", similarities, fit=standardize)
PAIR_WORDS = beside(
    FeatureSet("words of both", both_counts, fit=text.fit_tfidf, is_sparse=True),
    FeatureSet("differences", differences, fit=text.fit_tfidf, is_sparse=True),
    FeatureSet("shared words", products, fit=text.fit_tfidf, is_sparse=True),
    FeatureSet("sparse similarities", sparse_similarities, is_sparse=True),
)
PAIR_LSA = FeatureSet("LSA of the pair", both_counts, learn_pair_lsa, standardize)
PAIR_LSA_AND_SIMILARITIES = beside(PAIR_LSA, PAIR_SIMILARITIES)
