"""How many are right."""

from __future__ import annotations

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
