"""Closed-form figures of quality."""

from __future__ import annotations

import math

import numpy as np
from sklearn.metrics import f1_score


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Share of items whose prediction equals the label.

    Raises:
      ValueError: different lengths, or no items.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or not labels.size:
        raise ValueError(f"predictions {predictions.shape} do not match labels {labels.shape}")
    return float(np.mean(predictions == labels))


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Unweighted mean over classes of 2 precision recall / (precision + recall).

    A class that is never predicted and never true does not count; one that has no true
    positives counts as 0.
    """
    by_class = f1_score(labels, predictions, average=None, zero_division=0)  # pyright: ignore
    return float(np.mean(by_class))


def bits_per_byte(nll_nats_sum: float, bytes: int) -> float:
    """Compression of a text, comparable between tokenizers.

    Args:
      nll_nats_sum: negative log-likelihood of the whole text, in nats.
      bytes: length of the text in UTF-8 bytes.

    Raises:
      ValueError: no bytes.
    """
    if bytes <= 0:
        raise ValueError(f"bytes must be positive, got {bytes}")
    return nll_nats_sum / (bytes * math.log(2))


def bits_per_dimension(nll_nats_mean_per_dim: float, bins: int = 256) -> float:
    """Bits for one value of `bins` levels, from a density of the dequantised value.

    For a density over y = (x + u) / bins, u uniform on [0, 1), the discrete value costs at most
    NLL / (D ln 2) + log2(bins) bits per dimension (Theis, van den Oord and Bethge 2016,
    section 3.1): 8 bits when the density is uniform over 256 levels.

    Args:
      nll_nats_mean_per_dim: NLL / D of y, in nats; negative where the density exceeds 1.
      bins: number of levels of the undequantised value.
    """
    return nll_nats_mean_per_dim / math.log(2) + math.log2(bins)
