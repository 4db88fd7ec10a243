"""Divergence of a sample from real text: the area under the divergence frontier (MAUVE).

Pillutla et al. 2021: features of both are sorted into k-means clusters; between the two histograms
P (real) and Q (sample) lie the mixtures R = w P + (1 - w) Q, and the curve of (exp(-c KL(Q|R)),
exp(-c KL(P|R))) over w encloses an area from near 0 (nothing in common) to 1 (the same histogram).
"""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from fm.evaluation.text_quality.intervals import Statistic

SCALE = 5.0  # c, as the paper sets it
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
    x = np.exp(-SCALE * _divergences(q_K, mixed_MK))
    y = np.exp(-SCALE * _divergences(p_K, mixed_MK))
    # Towards w = 0 the mixture is Q itself: x goes to 1. The ends close the area.
    x, y = np.concatenate([[1.0], x, [0.0]]), np.concatenate([[0.0], y, [1.0]])
    return float(-np.trapezoid(y, x))


def _divergences(p_K: np.ndarray, mixed_MK: np.ndarray) -> np.ndarray:
    """KL(p | each mixture) in nats."""
    held = p_K > 0
    return (p_K[held] * np.log(p_K[held] / mixed_MK[:, held])).sum(1)
