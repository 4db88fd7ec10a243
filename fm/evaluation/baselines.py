"""Classical baselines: what a user would do without a neural network.

Every baseline is a matrix of features, fitted on the labeled examples alone, under one
L2-penalized logistic regression. The features are `Modality.baseline`, for text TF-IDF of words and
word pairs, and of runs of 1 to 3 characters where a text has no spaces between words. Of tasks
whose answer is a text, the baseline is the first sentence or the nearest training text's answer.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fm.data.media import MODALITIES, BaselineFeatureSpec, get_modality
from fm.data.words import COMBINING_MARKS, character_ngrams
from fm.errors import UserError
from fm.evaluation.logistic import Matrix, fit_path, log_grid

Inputs = Sequence[str] | Matrix
Featurize = Callable[[Any], Any]

_WORDS_AND_PAIRS: Callable[[str], list[str]] = CountVectorizer(
    ngram_range=(1, 2), token_pattern=rf"\w[\w{COMBINING_MARKS}]+"
).build_analyzer()
_WORDS: Callable[[str], list[str]] = CountVectorizer(
    token_pattern=rf"\w[\w{COMBINING_MARKS}]*"
).build_analyzer()

# After a mark that ends a sentence in any script, or a point before a capital or a caseless letter.
_SENTENCE = re.compile(
    r"(?<=[.!?])\s+(?=[A-Z\u00c0-\u00d6\u00d8-\u00de\u0391-\u03ab\u0401-\u042f\u05d0-\u1c7f\u3040-\ud7ff])"
    r"|(?<=[。！？｡])(?![。！？｡」』）”’])\s*|(?<=[؟۔।॥።။។])\s*|\n\s*\n"
)


@dataclasses.dataclass(frozen=True)
class BaselineSpec:
    """Classical features of a modality, for logistic regression, and the range of its penalty.

    Attributes:
      c_range: range of the inverse penalty C, in powers of ten. Rows of length 1 want weak
        penalties; rows that are tens of units long want strong ones.
      prepare: (inputs, sample rate) to rows that learn nothing from other inputs.
      fit_features: rows of the labeled examples to the function from rows to features.
      fit_prepare: raw labeled inputs to their rows and the `prepare` for others, where that
        depends on them (a vocabulary); None where it does not.
    """

    c_range: tuple[int, int]
    prepare: Callable[[Any, float | None], Matrix]
    fit_features: Callable[[Any], Featurize]
    fit_prepare: Callable[[Any], tuple[Matrix, Callable[[Any], Matrix]]] | None = None


@dataclasses.dataclass(frozen=True)
class FittedBaseline:
    """A fitted logistic regression baseline; predicts classes from raw or prepared inputs."""

    read: Callable[[Any], Matrix]
    featurize: Featurize
    classifier: LogisticRegression

    def predict(self, inputs: Inputs) -> np.ndarray:
        """Returns predicted classes, int [N]."""
        return np.asarray(self.classifier.predict(self.featurize(self.read(inputs))), int)


def hparam_grid(modality: str, trials: int) -> list[dict[str, float]]:
    """Returns `trials` settings {"C": inverse L2 strength} of a linear model, log-spaced.

    A single trial takes the middle of the range.

    Raises:
      UserError: unknown modality, or no trials.
    """
    low, high = _baseline(modality).c_range
    if trials < 1:
        raise UserError(f"trials must be at least 1, got {trials}")
    return [{"C": inverse_penalty} for inverse_penalty in log_grid(low, high, trials)]


def fit_free_features(modality: str, inputs: Inputs, sample_rate: float | None = None) -> Matrix:
    """Returns baseline features that need no fitting (e.g. word counts), one row per input.

    Text: counts of every word and word pair, and of `character_ngrams`, one row per document, which
    every fit then slices (``counts[labeled]``, ``counts[test]``). Nothing leaks from one document
    to another: a fit keeps the columns its own labeled documents use and weighs them by those
    alone. Prepared inputs pass through unchanged.

    Args:
      modality: of the inputs.
      inputs: documents; images [N, ...]; sounds, int16 [N, samples]; clips, uint8
        [N, frames, height, width, channels]; or prepared already.
      sample_rate: of sounds, in Hz.

    Raises:
      UserError: unknown modality; documents without a single word; sounds without a rate.
    """
    return _baseline(modality).prepare(inputs, sample_rate)


def fit(
    modality: str,
    inputs: Inputs,
    labels: np.ndarray,
    config: dict[str, float],
    sample_rate: float | None = None,
) -> FittedBaseline:
    """Fits the modality's classical features and logistic regression to labeled inputs.

    Args:
      modality: a registered modality.
      inputs: documents; arrays [N, ...] (integers are pixels from 0 to 255, floating pixels are
        taken as they are); or rows of `fit_free_features`.
      labels: [N] integer classes.
      config: ``C``, the inverse penalty.
      sample_rate: of sounds that are not prepared, in Hz.

    Raises:
      UserError: unknown modality; documents without a single word.
      ValueError: fewer than two classes.
    """
    baseline = _baseline(modality)
    if baseline.fit_prepare and not sp.issparse(inputs):
        matrix, read = baseline.fit_prepare(inputs)
    else:
        matrix = baseline.prepare(inputs, sample_rate)
        read = functools.partial(fit_free_features, modality, sample_rate=sample_rate)
    featurize = baseline.fit_features(matrix)
    (classifier,) = fit_path(featurize(matrix), np.asarray(labels), [config["C"]])
    return FittedBaseline(read, featurize, classifier)


def cross_validate(
    modality: str,
    inputs: Inputs,
    labels: np.ndarray,
    configs: Sequence[dict[str, float]],
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[dict[str, Any]]:
    """Returns each hyper-parameter setting with its accuracy over all held-out folds.

    The features are fitted on each fold's training part alone, once for all configurations.

    Returns:
      One ``{"config": …, "validation": accuracy}`` per configuration, in the order given.
    """
    matrix, labels = fit_free_features(modality, inputs), np.asarray(labels)
    correct = np.zeros(len(configs))
    for train, validation in folds:
        featurize = _baseline(modality).fit_features(matrix[train])
        fitted = fit_path(
            featurize(matrix[train]), labels[train], [config["C"] for config in configs]
        )
        held_out = featurize(matrix[validation])
        correct += [np.sum(model.predict(held_out) == labels[validation]) for model in fitted]
    tested = sum(len(validation) for _, validation in folds)
    return [
        {"config": config, "validation": float(count / tested)}
        for config, count in zip(configs, correct, strict=True)
    ]


def _baseline(modality: str) -> BaselineSpec:
    """Returns the baseline of a modality; all but text have theirs in `Modality.baseline`."""
    if modality == "text":
        return TEXT_BASELINE
    features = get_modality(modality).baseline
    if features is None:
        known = ["text", *(each.name for each in MODALITIES.values() if each.baseline)]
        raise UserError(f"no classical baseline for {modality!r}: one of {', '.join(known)}")
    return BaselineSpec(
        features.log10_c_range,
        functools.partial(_extract, features),
        _fit_standardization if features.standardize else lambda rows: _scale_pixels,
    )


def _fit_standardization(rows: Any) -> Featurize:
    return StandardScaler().fit(rows).transform


def _prepare_text(inputs: Any, sample_rate: float | None) -> sp.csr_array:
    if sp.issparse(inputs):
        return sp.csr_array(inputs)
    return _count(_word_counter(), inputs, learn=True)


def _fit_prepare_text(inputs: Any) -> tuple[Matrix, Callable[[Any], Matrix]]:
    counter = _word_counter()
    return _count(counter, inputs, learn=True), functools.partial(_count, counter, learn=False)


def _word_counter() -> CountVectorizer:
    analyzer: Any = _text_features
    return CountVectorizer(analyzer=analyzer)


def _text_features(document: str) -> list[str]:
    """Returns the words of two letters or more, their pairs, and `character_ngrams`."""
    return [*_WORDS_AND_PAIRS(document), *character_ngrams(document)]


def _similarity_features(document: str) -> list[str]:
    return [*_WORDS(document), *character_ngrams(document)]


def _count(counter: CountVectorizer, documents: Any, *, learn: bool) -> sp.csr_array:
    try:
        counts = counter.fit_transform(documents) if learn else counter.transform(documents)
    except ValueError as error:
        if "empty vocabulary" not in str(error):
            raise
        raise UserError("none of the documents holds a word of two letters or more") from error
    return sp.csr_array(counts)


def _fit_tfidf(matrix: Any) -> Featurize:
    """TF-IDF over the words of these documents: as if no other document had ever been counted."""
    counts = sp.csr_array(matrix)
    columns = np.unique(counts.indices)
    tfidf = TfidfTransformer(sublinear_tf=True).fit(counts[:, columns])
    return lambda rows: tfidf.transform(rows[:, columns])


def _scale_pixels(pixels: np.ndarray) -> np.ndarray:
    return pixels / 255.0 if np.issubdtype(pixels.dtype, np.integer) else pixels


def _extract(features: BaselineFeatureSpec, inputs: Any, rate: float | None) -> np.ndarray:
    array = np.asarray(inputs)
    prepared = array.ndim == 2 and np.issubdtype(array.dtype, np.floating)
    return array if prepared else features.extract(array, rate)


# TF-IDF of words and word pairs with sublinear counts, over the whole document.
TEXT_BASELINE = BaselineSpec((-1, 3), _prepare_text, _fit_tfidf, _fit_prepare_text)


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
