"""How well predicted probabilities fit: negative log-likelihood and calibration error."""

from __future__ import annotations

import numpy as np

# A study keeps probabilities to six decimals.
_MIN_PROBABILITY = 1e-6


def negative_log_likelihood(truth_probability_N: np.ndarray) -> float:
    """Returns the mean of -log p of the true classes, in nats.

    Probabilities are cut at 1e-6 from below, so that one zero does not make the mean infinite.

    Args:
      truth_probability_N: probability given to each item's true class, from 0 to 1.
    """
    return float(-np.log(np.maximum(truth_probability_N, _MIN_PROBABILITY)).mean())


def expected_calibration_error(
    probability_N: np.ndarray, correct_N: np.ndarray, bins: int = 15
) -> float:
    """Returns the gap between confidence and accuracy, averaged over bins of equal width.

    ECE of Guo et al. (2017, equation 3): bins (0, 1/B], ..., ((B-1)/B, 1], each weighted by its
    share of the items.

    Args:
      probability_N: probability of each item's predicted class, from 0 to 1.
      correct_N: whether the prediction is right.
      bins: B.
    """
    probability_N = np.asarray(probability_N, float)
    bin_N = np.clip(np.ceil(probability_N * bins).astype(int) - 1, 0, bins - 1)
    gap_B = np.bincount(bin_N, probability_N - np.asarray(correct_N, float), bins)
    return float(np.abs(gap_B).sum() / probability_N.size)
