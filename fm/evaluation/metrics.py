"""Likelihood as bits: per byte of text, per dimension of a picture."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from sacrebleu.metrics.chrf import CHRF
from sklearn.feature_extraction.text import TfidfVectorizer


def bits_per_byte(nll_nats_sum: float, num_bytes: float) -> float:
    """Compression of a text, comparable between tokenizers.

    Args:
      nll_nats_sum: negative log-likelihood of a text, or of a token in the mean, in nats.
      num_bytes: length of the same in UTF-8 bytes.

    Raises:
      ValueError: no bytes.
    """
    if num_bytes <= 0:
        raise ValueError(f"bytes must be positive, got {num_bytes}")
    return nll_nats_sum / (num_bytes * math.log(2))


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


_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])|\n\s*\n")


def chrf(generated: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """chrF2 of each text, 0 to 1, float64 [N] (Popović 2015: character 6-grams, recall twice).

    The figure of a sample is their mean, so that intervals are had over texts (not the corpus
    chrF, which adds up n-grams first).

    Raises:
      ValueError: different numbers of texts.
    """
    scorer = CHRF()
    pairs = zip(generated, references, strict=True)
    return np.array([scorer.sentence_score(own, [target]).score / 100.0 for own, target in pairs])


def first_sentences(texts: Sequence[str]) -> list[str]:
    """The first sentence of each text."""
    return [" ".join(_SENTENCE.split(text.strip(), maxsplit=1)[0].split()) for text in texts]


def nearest_neighbor_targets(
    train_texts: Sequence[str], train_targets: Sequence[str], texts: Sequence[str]
) -> list[str]:
    """The target of the most similar training text, by TF-IDF of words and cosine.

    Args:
      train_texts: N texts, which alone decide the weights.
      train_targets: what was wanted of them.
      texts: to answer.
    """
    weigh: Any = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
    known = weigh.fit_transform(train_texts)
    alike = weigh.transform(texts) @ known.T
    nearest = np.asarray(alike.argmax(axis=1)).ravel()
    return [train_targets[int(place)] for place in nearest]
