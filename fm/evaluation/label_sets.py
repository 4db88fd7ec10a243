"""Sets of labels (multi-label classification): micro and macro F1, and the threshold for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Thresholds tried, in order of preference among equal ones.
THRESHOLDS = tuple(sorted((n / 20 for n in range(1, 20)), key=lambda each: abs(each - 0.5)))


def multi_hot(label_sets: Sequence[Sequence[int] | None], num_classes: int) -> np.ndarray:
    """Returns label sets as bool [N, K]; a missing set (None) has no label."""
    hot_NK = np.zeros((len(label_sets), num_classes), bool)
    for n, labels in enumerate(label_sets):
        hot_NK[n, list(labels or ())] = True
    return hot_NK


def f1_terms(predicted: np.ndarray, gold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns each item's numerator and denominator of micro F1: 2 correct, predicted + gold.

    For `fm.evaluation.statistics.linearized_ratio`, which gives intervals over items.

    Args:
      predicted: bool [..., N, K].
      gold: bool [N, K].

    Returns:
      Two int arrays [..., N].
    """
    return 2 * (predicted & gold).sum(axis=-1), predicted.sum(axis=-1) + gold.sum(axis=-1)


def micro_f1(predicted_NK: np.ndarray, gold_NK: np.ndarray) -> float:
    """Returns F1 over all labels of all items; 1 if there are none and none is predicted."""
    numerator, denominator = (int(each.sum()) for each in f1_terms(predicted_NK, gold_NK))
    return numerator / denominator if denominator else 1.0


def macro_f1(predicted_NK: np.ndarray, gold_NK: np.ndarray) -> float:
    """Returns the mean F1 of the classes; that of a class neither present nor predicted is 0."""
    right_K = 2.0 * (predicted_NK & gold_NK).sum(axis=0)
    total_K = predicted_NK.sum(axis=0) + gold_NK.sum(axis=0)
    return float(np.mean(right_K / np.maximum(total_K, 1)))


def best_threshold(probability_NK: np.ndarray, gold_NK: np.ndarray) -> tuple[float, float]:
    """Returns (threshold, micro F1) of the best of `THRESHOLDS`, the nearest to 0.5 if tied.

    A label is predicted if its probability is at least the threshold, one for all classes: rare
    classes are seldom as likely as 0.5, so F1 is highest at a smaller one (Lipton et al. 2014).
    """
    found = {each: micro_f1(probability_NK >= each, gold_NK) for each in THRESHOLDS}
    threshold = max(found, key=lambda each: found[each])
    return threshold, found[threshold]
