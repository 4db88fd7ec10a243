"""Calibration of class probabilities: negative log-likelihood and expected calibration error."""

from __future__ import annotations

import numpy as np

NUM_BINS = 15
# Probabilities are kept to six decimals.
_LEAST_PROBABILITY = 1e-6


def mean_nll(truth_probability_N: np.ndarray) -> float:
    """Returns the mean negative log-likelihood of the true classes in nats.

    Args:
      truth_probability_N: probability given to the true class of each item; below 1e-6 counts as
        1e-6.
    """
    return float(-np.log(np.maximum(truth_probability_N, _LEAST_PROBABILITY)).mean())


def expected_calibration_error(
    confidence_N: np.ndarray, correct_N: np.ndarray, num_bins: int = NUM_BINS
) -> float:
    """Returns the expected calibration error, 0 to 1 (Guo et al. 2017, equation 3).

    The mean over items of |accuracy - mean confidence| of an item's bin; bins divide [0, 1] evenly.

    Args:
      confidence_N: probability given to the predicted class of each item.
      correct_N: whether the predicted class is the true one.
      num_bins: number of bins.
    """
    bin_N = np.minimum((np.asarray(confidence_N) * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bin_N, np.asarray(correct_N, float) - confidence_N, num_bins)
    return float(np.abs(gaps).sum() / len(bin_N))
