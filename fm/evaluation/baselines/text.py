"""Features of texts: TF-IDF of words and of characters, and latent semantic analysis of both."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.feature_extraction.text import (
    CountVectorizer,
    HashingVectorizer,
    TfidfTransformer,
)
from sklearn.preprocessing import normalize
from sklearn.utils.extmath import randomized_svd

from fm.data.words import COMBINING_MARKS, character_ngrams
from fm.evaluation.baselines.features import (
    FeatureSet,
    Rows,
    Transform,
    beside,
    scale_to_unit_variance,
)

CHARACTER_NGRAMS = (2, 5)
# Features are hashed, so that texts read apart have the same columns: of 300,000 different ones
# 1 in 13 shares its column with another.
NUM_COLUMNS = 2**22
LSA_DIMS = (64, 128)
# Rarer columns say little of other texts; more frequent ones little of a text.
_MIN_COUNT, _MAX_SHARE = 3, 0.2
_POWER_ITERATIONS = 2

_WORDS_AND_PAIRS: Callable[[str], list[str]] = CountVectorizer(
    ngram_range=(1, 2), token_pattern=rf"\w[\w{COMBINING_MARKS}]+"
).build_analyzer()


def word_counts(texts: Sequence[str], sample_rate: float | None = None) -> sp.csr_array:
    """Returns 1 + log(count) of words, word pairs and `character_ngrams` of each text.

    Words have two letters or more. Character n-grams are those of scripts without word spaces.
    """
    return _sublinear(_hasher(_words_and_pairs).transform(texts))


def character_counts(texts: Sequence[str], sample_rate: float | None = None) -> sp.csr_array:
    """Returns 1 + log(count) of n-grams of 2 to 5 characters within words, spaces included.

    They are scikit-learn's "char_wb" n-grams, counted once for every different word.
    """
    split: dict[str, Any] = {"analyzer": _split, "dtype": np.float32}
    words = CountVectorizer(**split)
    try:
        counts = sp.csr_array(words.fit_transform(texts))
    except ValueError:  # not one word
        return sp.csr_array((len(texts), NUM_COLUMNS), dtype=np.float32)
    options: dict[str, Any] = {"analyzer": "char_wb", "ngram_range": CHARACTER_NGRAMS}
    ngrams = _hasher(CountVectorizer(**options).build_analyzer())
    return _sublinear(counts @ sp.csr_array(ngrams.transform(words.get_feature_names_out())))


def fit_tfidf(rows: Rows) -> Transform:
    """Returns TF-IDF over the columns of `rows`: as if no other text had ever been counted."""
    rows = sp.csr_array(rows)
    columns = np.unique(rows.indices)
    if not columns.size:
        return lambda others: np.zeros((others.shape[0], 1))
    tfidf = TfidfTransformer().fit(rows[:, columns])
    return lambda others: tfidf.transform(others[:, columns])


def learn_lsa(rows: Rows) -> Transform:
    """Returns latent semantic analysis learned from unlabeled texts (Deerwester et al. 1990).

    The leading right singular vectors of TF-IDF, of which `fit_leading` takes some.
    """
    rows = sp.csr_array(rows)
    documents = np.bincount(rows.indices, minlength=rows.shape[1])
    columns = np.flatnonzero(
        (documents >= _MIN_COUNT) & (documents <= max(_MIN_COUNT, _MAX_SHARE * rows.shape[0]))
    )
    if not columns.size:
        return lambda others: np.zeros((others.shape[0], 1), np.float32)
    tfidf: Any = TfidfTransformer().fit(rows[:, columns])
    iterations: Any = _POWER_ITERATIONS
    dims = min(max(LSA_DIMS), columns.size, rows.shape[0])
    _, _, vectors = randomized_svd(
        tfidf.transform(rows[:, columns]).astype(np.float32),
        n_components=dims,
        n_iter=iterations,
        random_state=0,
    )
    return lambda others: np.asarray(tfidf.transform(others[:, columns]) @ vectors.T)


def fit_leading(dims: int) -> Callable[[Rows], Transform]:
    """Returns a `FeatureSet.fit` that keeps the first `dims` columns and makes rows of length 1."""
    return functools.partial(_fit_leading, dims)


def _fit_leading(dims: int, rows: Rows) -> Transform:
    scale = scale_to_unit_variance(_leading(dims, rows))
    return lambda others: scale(_leading(dims, others))


def _leading(dims: int, rows: Rows) -> np.ndarray:
    return np.asarray(normalize(rows[:, :dims]), np.float64)


def _hasher(analyzer: Callable[[str], list[str]]) -> HashingVectorizer:
    options: dict[str, Any] = {"analyzer": analyzer, "norm": None, "alternate_sign": False}
    return HashingVectorizer(**options | {"n_features": NUM_COLUMNS, "dtype": np.float32})


def _words_and_pairs(text: str) -> list[str]:
    return [*_WORDS_AND_PAIRS(text), *character_ngrams(text)]


def _split(text: str) -> list[str]:
    return text.lower().split()


def _sublinear(counts: Any) -> sp.csr_array:
    counts = sp.csr_array(counts)
    counts.data = 1.0 + np.log(counts.data)
    return counts


WORDS = FeatureSet("words", word_counts, fit=fit_tfidf, is_sparse=True)
CHARACTERS = FeatureSet("characters", character_counts, fit=fit_tfidf, is_sparse=True)
WORDS_AND_CHARACTERS = beside(WORDS, CHARACTERS)
LSA = tuple(
    feature_set
    for dims in LSA_DIMS
    for words, characters in [
        (
            FeatureSet(f"LSA-{dims} of words", word_counts, learn_lsa, fit_leading(dims)),
            FeatureSet(f"LSA-{dims} of characters", character_counts, learn_lsa, fit_leading(dims)),
        )
    ]
    for feature_set in (beside(words, characters), words, characters)
)
