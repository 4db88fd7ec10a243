"""Texts generated without a model: the first sentence, or the answer to the most similar text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

from fm.data.words import COMBINING_MARKS, character_ngrams

_WORDS: Callable[[str], list[str]] = CountVectorizer(
    token_pattern=rf"\w[\w{COMBINING_MARKS}]*"
).build_analyzer()

# After a mark that ends a sentence in any script, or a point before a capital or a caseless letter.
_SENTENCE = re.compile(
    r"(?<=[.!?])\s+(?=[A-Z\u00c0-\u00d6\u00d8-\u00de\u0391-\u03ab\u0401-\u042f\u05d0-\u1c7f\u3040-\ud7ff])"
    r"|(?<=[。！？｡])(?![。！？｡」』）”’])\s*|(?<=[؟۔।॥።။។])\s*|\n\s*\n"
)


def first_sentences(texts: Sequence[str]) -> list[str]:
    """Returns the first sentence of each text, as an extractive summary."""
    return [" ".join(_SENTENCE.split(text.strip(), maxsplit=1)[0].split()) for text in texts]


def nearest_neighbor_targets(
    train_texts: Sequence[str], train_targets: Sequence[str], texts: Sequence[str]
) -> list[str]:
    """Returns the target of the most similar training text, by cosine of TF-IDF vectors.

    Their features are words, and `character_ngrams` where there are no spaces between words.

    Args:
      train_texts: N texts, which alone decide the TF-IDF weights.
      train_targets: the answer wanted of each.
      texts: to answer.
    """
    analyzer: Any = _similarity_features
    tfidf: Any = TfidfVectorizer(sublinear_tf=True, analyzer=analyzer)
    train_rows = tfidf.fit_transform(train_texts)
    similarity = tfidf.transform(texts) @ train_rows.T
    nearest = np.asarray(similarity.argmax(axis=1)).ravel()
    return [train_targets[int(place)] for place in nearest]


def _similarity_features(document: str) -> list[str]:
    return [*_WORDS(document), *character_ngrams(document)]
