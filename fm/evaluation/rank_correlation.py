"""Spearman's rank correlation as a mean of item scores, and R squared of predicted numbers."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata


def rank_correlation_scores(prediction_SN: np.ndarray, truth_N: np.ndarray) -> np.ndarray:
    """Returns item scores [S, N] whose mean over items is, for each seed, Spearman's correlation.

    With r and q the ranks of predictions and truths, shared by ties and scaled to 0..1,

        rho = cov(r, q) / (sd(r) sd(q)),

    and the score of an item is rho and the item's influence on it: what covariance and deviations
    gain if the item weighs more, its part in the ranks of all others included (Croux and Dehon
    2010, for continuous numbers). The mean over items is rho exactly, and the variance over items
    that of rho to first order, as with `fm.evaluation.statistics.linearized_ratio`. The products of
    standardized ranks have the same mean, but a variance that is too large for a high correlation.

    Args:
      prediction_SN: [S, N] numbers of S seeds and N items.
      truth_N: [N] numbers.

    Returns:
      [S, N] scores; zero in a row whose predictions are all equal, and if the truths are.

    Raises:
      ValueError: the two differ in items, or are not all finite.
    """
    prediction_SN, truth_N = np.asarray(prediction_SN, float), np.asarray(truth_N, float)
    if prediction_SN.shape[1:] != truth_N.shape:
        raise ValueError(f"predictions {prediction_SN.shape} and truths {truth_N.shape} differ")
    if not np.isfinite(truth_N).all() or not np.isfinite(prediction_SN).all():
        raise ValueError("predictions and truths must be finite numbers")
    return np.stack([_influences(row, truth_N) for row in prediction_SN])


def _influences(x_N: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    count = len(x_N)
    # Share of items below each, ties half: their mean is 1/2 whatever the numbers are.
    r_N, q_N = ((rankdata(each) - 0.5) / count for each in (x_N, y_N))
    r_N, q_N = r_N - 0.5, q_N - 0.5
    deviations = np.sqrt(np.mean(r_N**2) * np.mean(q_N**2))
    if count == 0 or deviations <= 1e-12:
        return np.zeros(count)
    rho = np.mean(r_N * q_N) / deviations
    covariance = r_N * q_N + _share_above(x_N, q_N) + _share_above(y_N, r_N)
    variances = [
        (each**2 + 2 * _share_above(values, each)) / np.mean(each**2)
        for values, each in ((x_N, r_N), (y_N, q_N))
    ]
    # All three average three times what they estimate.
    return rho + (covariance / deviations - rho * (variances[0] + variances[1]) / 2)


def _share_above(values_N: np.ndarray, weights_N: np.ndarray) -> np.ndarray:
    """Returns for each item the mean over all items of weight [above it], half where tied."""
    order = np.argsort(values_N, kind="stable")
    ordered, cumulative = values_N[order], np.append(0.0, np.cumsum(weights_N[order]))
    upto = cumulative[np.searchsorted(ordered, values_N, side="right")]
    below = cumulative[np.searchsorted(ordered, values_N, side="left")]
    return (cumulative[-1] - (upto + below) / 2) / len(values_N)


def r_squared(predictions: np.ndarray, truths: np.ndarray) -> float:
    """Returns 1 minus the mean squared error over the variance of the truths.

    Of truths that do not vary, minus the mean squared error. Unlike a rank correlation it is not
    below zero for a constant that is left out of a fold's mean, so that folds can be pooled.
    """
    error = float(np.mean((np.asarray(predictions, float) - truths) ** 2))
    variance = float(np.var(truths))
    return 1.0 - error / variance if variance > 0 else -error
