"""Metrics: balanced accuracy, chrF of generated text, bits per byte and per dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def bits_per_byte(nll_nats_sum: float, num_bytes: float) -> float:
    """Returns bits per UTF-8 byte of a text, which compare between tokenizers.

    Args:
      nll_nats_sum: negative log-likelihood of a text, or of a mean token, in nats.
      num_bytes: length of the same in UTF-8 bytes.

    Raises:
      ValueError: no bytes.
    """
    if num_bytes <= 0:
        raise ValueError(f"bytes must be positive, got {num_bytes}")
    return nll_nats_sum / (num_bytes * math.log(2))


def bits_per_dimension(nll_nats_mean_per_dim: float, bins: int = 256) -> float:
    """Returns bits per discrete value of `bins` levels, from the NLL of the dequantized value.

    For a density over y = (x + u) / bins, u uniform on [0, 1), the discrete value costs at most
    NLL / (D ln 2) + log2(bins) bits per dimension (Theis, van den Oord and Bethge 2016,
    section 3.1): 8 bits when the density is uniform over 256 levels.

    Args:
      nll_nats_mean_per_dim: NLL / D of y, in nats; negative where the density exceeds 1.
      bins: number of levels of the value before dequantization.
    """
    return nll_nats_mean_per_dim / math.log(2) + math.log2(bins)


def balanced_accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean over the classes present of the share of their items predicted right.

    Args:
      predictions: int [N].
      labels: int [N], at least one.
    """
    classes, class_N = np.unique(labels, return_inverse=True)
    right = np.bincount(class_N, np.asarray(predictions) == labels, len(classes))
    return float(np.mean(right / np.bincount(class_N)))


def chrf(generated: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Returns the chrF2 of each text, 0 to 1, float64 [N] (Popović 2015: character 6-grams).

    A sample's figure is their mean, so that intervals can be taken over texts (not the corpus
    chrF, which adds up n-grams first).

    Raises:
      ValueError: different numbers of texts.
    """
    # The training loop imports this module for its bits and never needs sacrebleu.
    from sacrebleu.metrics.chrf import CHRF

    scorer = CHRF()
    pairs = zip(generated, references, strict=True)
    return np.array([scorer.sentence_score(own, [wanted]).score / 100.0 for own, wanted in pairs])
