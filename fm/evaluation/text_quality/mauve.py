"""Text embeddings and the divergence of a sample from real text: the MAUVE frontier area.

Pillutla et al. 2021: the embeddings of both are clustered by k-means. Between the two cluster
histograms P (real) and Q (sample) lie the mixtures R = w P + (1 - w) Q; the curve of
(exp(-c KL(Q|R)), exp(-c KL(P|R))) over w encloses an area from near 0 (nothing in common) to 1
(equal histograms).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from threadpoolctl import threadpool_limits

from fm.evaluation.text_quality.intervals import StatisticFn
from fm.evaluation.text_quality.words import split_words

MAUVE_SCALE = 5.0  # c, as in the paper
_NUM_MIXTURES = 25


class Embedder(Protocol):
    """Protocol of a text embedder: maps N texts to vectors, float32 [N, E]."""

    @property
    def name(self) -> str:
        """Returns a phrase that describes the vectors."""
        ...

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns one vector per text."""
        ...


def unit_length(vectors_NE: np.ndarray) -> np.ndarray:
    """Returns the vectors scaled to length 1; zero vectors stay zero."""
    norms_N1 = np.linalg.norm(vectors_NE, axis=1, keepdims=True)
    return vectors_NE / np.where(norms_N1 == 0, 1.0, norms_N1)


@dataclasses.dataclass(frozen=True, eq=False)
class TfidfEmbedder:
    """A fitted embedder: TF-IDF of words and word pairs, reduced by truncated SVD."""

    name: str
    _vectorizer: Any
    _svd: Any

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Returns vectors of unit length; zero for a text without a known term."""
        vectors_NE = self._svd.transform(self._vectorizer.transform(texts)).astype(np.float32)
        return unit_length(vectors_NE)


def fit_tfidf_embedder(texts: Sequence[str], size: int = 64) -> TfidfEmbedder:
    """Fits TF-IDF of words and word pairs with truncated SVD; returns the embedder.

    Args:
      texts: real texts of all domains to be compared.
      size: E; smaller if the texts are few.
    """
    # Terms of a single text compare nothing. Function words stay in: they make the style.
    vectorizer = TfidfVectorizer(
        tokenizer=split_words,
        token_pattern=None,  # pyright: ignore[reportArgumentType]
        ngram_range=(1, 2),
        min_df=2,
        sublinear_tf=True,
    )
    matrix = vectorizer.fit_transform(texts)
    size = min(size, len(texts) - 1, len(vectorizer.vocabulary_) - 1)
    svd = TruncatedSVD(size, random_state=0).fit(matrix)
    name = f"TF-IDF of words and pairs of words of {len(texts):,} real texts, {size} directions"
    return TfidfEmbedder(name, vectorizer, svd)


def mauve(real_NE: np.ndarray, sample_ME: np.ndarray, *, seed: int = 0) -> StatisticFn:
    """Returns a function from 0/1 weights of the sample's texts [R, M] to MAUVE scores [R].

    There is one cluster per ten texts, as in the paper, and at least 2. Clusters and real texts
    are fixed under resampling. The area grows with the number of texts, so only samples of equal
    size compare; another sample of real text gives the attainable value.

    Args:
      real_NE: embeddings of the real texts, float [N, E].
      sample_ME: embeddings of the sample, float [M, E].
      seed: of k-means.
    """
    both = np.concatenate([real_NE, sample_ME]).astype(np.float64)
    clusters = max(2, round(len(both) / 10))
    kmeans = KMeans(
        min(clusters, len(np.unique(both, axis=0))),
        n_init=5,  # pyright: ignore[reportArgumentType]
        random_state=seed,
    )
    # So few points are clustered faster than threads start.
    with threadpool_limits(1):
        labels = kmeans.fit_predict(both)
    sample_MK = np.eye(kmeans.n_clusters)[labels[len(real_NE) :]]
    real_K = np.eye(kmeans.n_clusters)[labels[: len(real_NE)]].mean(0)

    def statistic(weights_RM: np.ndarray) -> np.ndarray:
        histograms_RK = weights_RM @ sample_MK
        histograms_RK /= histograms_RK.sum(1, keepdims=True)
        return np.array([frontier_area(real_K, each_K) for each_K in histograms_RK])

    return statistic


def frontier_area(p_K: np.ndarray, q_K: np.ndarray) -> float:
    """Returns the area under the divergence frontier of two histograms that each sum to 1."""
    w_M1 = np.linspace(0.0, 1.0, _NUM_MIXTURES + 2)[1:-1, None]
    mixed_MK = w_M1 * p_K + (1 - w_M1) * q_K
    x = np.exp(-MAUVE_SCALE * _kl_divergences(q_K, mixed_MK))
    y = np.exp(-MAUVE_SCALE * _kl_divergences(p_K, mixed_MK))
    # As w goes to 0 the mixture becomes Q and x goes to 1. The end points close the area.
    x, y = np.concatenate([[1.0], x, [0.0]]), np.concatenate([[0.0], y, [1.0]])
    return float(-np.trapezoid(y, x))


def _kl_divergences(p_K: np.ndarray, mixed_MK: np.ndarray) -> np.ndarray:
    """Returns KL(p | mixture) in nats for each mixture."""
    positive = p_K > 0
    return (p_K[positive] * np.log(p_K[positive] / mixed_MK[:, positive])).sum(1)
