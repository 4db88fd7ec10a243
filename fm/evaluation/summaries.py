"""Text to text: how near a text is to the one wanted, and what a user would do without a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from sacrebleu.metrics.chrf import CHRF
from sklearn.feature_extraction.text import TfidfVectorizer

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])|\n\s*\n")


def chrf(written: Sequence[str], targets: Sequence[str]) -> np.ndarray:
    """chrF2 of each text, 0 to 1, float64 [N] (Popović 2015: character 6-grams, recall twice).

    The figure of a sample is their mean, so that intervals are had over texts (not the corpus
    chrF, which adds up n-grams first).

    Raises:
      ValueError: different numbers of texts.
    """
    scorer = CHRF()
    pairs = zip(written, targets, strict=True)
    return np.array([scorer.sentence_score(own, [target]).score / 100.0 for own, target in pairs])


def first_sentences(texts: Sequence[str]) -> list[str]:
    """The first sentence of each text."""
    return [" ".join(_SENTENCE.split(text.strip(), maxsplit=1)[0].split()) for text in texts]


def nearest_targets(
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
