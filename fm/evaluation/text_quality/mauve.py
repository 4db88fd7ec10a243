"""What texts are compared by: one vector a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from threadpoolctl import threadpool_limits

from fm.evaluation.text_quality.intervals import Statistic
from fm.evaluation.text_quality.words import split_words


class Embedder(Protocol):
    """Texts to float32 [N, E], and whose vectors they are, in a few words."""

    @property
    def name(self) -> str:
        """Whose."""
        ...

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Of each text."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class TfidfEmbedder:
    """Weighted words and pairs of words, in the directions in which real text varies most."""

    name: str
    _weights: Any
    _directions: Any

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of unit length; zero for a text of which no term is known."""
        vectors = self._directions.transform(self._weights.transform(texts)).astype(np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(norms == 0, 1.0, norms)


def fit_tfidf_embedder(texts: Sequence[str], size: int = 64) -> TfidfEmbedder:
    """TF-IDF of words and pairs of words, reduced to `size` numbers (latent semantic analysis).

    Args:
      texts: real ones, of all domains to be compared.
      size: E; fewer where the texts are few.
    """
    # Terms of few texts cannot be compared by; function words count here, they make the style.
    weights = TfidfVectorizer(
        tokenizer=split_words,
        token_pattern=None,  # pyright: ignore[reportArgumentType]
        ngram_range=(1, 2),
        min_df=2,
        sublinear_tf=True,
    )
    matrix = weights.fit_transform(texts)
    size = min(size, len(texts) - 1, len(weights.vocabulary_) - 1)
    directions = TruncatedSVD(size, random_state=0).fit(matrix)
    name = f"TF-IDF of words and pairs of words of {len(texts):,} real texts, {size} directions"
    return TfidfEmbedder(name, weights, directions)


MAUVE_SCALE = 5.0  # c, as the paper sets it
_MIXTURES = 25


def mauve(real_NE: np.ndarray, sample_ME: np.ndarray, *, seed: int = 0) -> Statistic:
    """The area, of the sample's texts against all real ones.

    As many clusters as a tenth of the texts, as in the paper, at least 2. The clusters and the real
    texts are held fixed under resampling. It grows with the number of texts, so only samples of
    one size compare; other real text of that size says what can be reached.

    Args:
      real_NE: features, float [N, E].
      sample_ME: float [M, E].
      seed: of k-means.
    """
    both = np.concatenate([real_NE, sample_ME]).astype(np.float64)
    clusters = max(2, round(len(both) / 10))
    kmeans = KMeans(
        min(clusters, len(np.unique(both, axis=0))),
        n_init=5,  # pyright: ignore[reportArgumentType]
        random_state=seed,
    )
    # So few points are sorted faster than threads are woken.
    with threadpool_limits(1):
        labels = kmeans.fit_predict(both)
    own_MK = np.eye(kmeans.n_clusters)[labels[len(real_NE) :]]
    real_K = np.eye(kmeans.n_clusters)[labels[: len(real_NE)]].mean(0)

    def statistic(weights_RM: np.ndarray) -> np.ndarray:
        histograms_RK = weights_RM @ own_MK
        histograms_RK /= histograms_RK.sum(1, keepdims=True)
        return np.array([frontier_area(real_K, each_K) for each_K in histograms_RK])

    return statistic


def frontier_area(p_K: np.ndarray, q_K: np.ndarray) -> float:
    """Area under the divergence frontier of two histograms that each sum to 1."""
    w_M1 = np.linspace(0.0, 1.0, _MIXTURES + 2)[1:-1, None]
    mixed_MK = w_M1 * p_K + (1 - w_M1) * q_K
    x = np.exp(-MAUVE_SCALE * _divergences(q_K, mixed_MK))
    y = np.exp(-MAUVE_SCALE * _divergences(p_K, mixed_MK))
    # Towards w = 0 the mixture is Q itself: x goes to 1. The ends close the area.
    x, y = np.concatenate([[1.0], x, [0.0]]), np.concatenate([[0.0], y, [1.0]])
    return float(-np.trapezoid(y, x))


def _divergences(p_K: np.ndarray, mixed_MK: np.ndarray) -> np.ndarray:
    """KL(p | each mixture) in nats."""
    held = p_K > 0
    return (p_K[held] * np.log(p_K[held] / mixed_MK[:, held])).sum(1)
