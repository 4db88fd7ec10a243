"""What texts are compared by: one vector a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from fm.evaluation.text_quality.words import words


class Features(Protocol):
    """Texts to float32 [N, E], and whose vectors they are, in a few words."""

    @property
    def name(self) -> str:
        """Whose."""
        ...

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Of each text."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class TermFeatures:
    """Weighted words and pairs of words, in the directions in which real text varies most."""

    name: str
    _weights: Any
    _directions: Any

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of unit length; zero for a text of which no term is known."""
        vectors = self._directions.transform(self._weights.transform(texts)).astype(np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(norms == 0, 1.0, norms)


def term_features(texts: Sequence[str], size: int = 64) -> TermFeatures:
    """TF-IDF of words and pairs of words, reduced to `size` numbers (latent semantic analysis).

    Args:
      texts: real ones, of all domains to be compared.
      size: E; fewer where the texts are few.
    """
    # Terms of few texts cannot be compared by; function words count here, they make the style.
    weights = TfidfVectorizer(
        tokenizer=words,
        token_pattern=None,  # pyright: ignore[reportArgumentType]
        ngram_range=(1, 2),
        min_df=2,
        sublinear_tf=True,
    )
    matrix = weights.fit_transform(texts)
    size = min(size, len(texts) - 1, len(weights.vocabulary_) - 1)
    directions = TruncatedSVD(size, random_state=0).fit(matrix)
    name = f"TF-IDF of words and pairs of words of {len(texts):,} real texts, {size} directions"
    return TermFeatures(name, weights, directions)
