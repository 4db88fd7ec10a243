"""Statistics of mel-frequency cepstral coefficients: what a sound is, in a few hundred numbers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fm.data.media import MODALITIES, BaselineFeatures, get_modality
from fm.errors import UserError
from fm.evaluation.logistic import Matrix, fit_path, log_grid

Inputs = Sequence[str] | Matrix
Featurise = Callable[[Any], Any]

# The range of C, in powers of ten. TF-IDF rows have unit norm and need weak penalties; rows of
# pixels or standardized features have norms of tens and need strong ones (`BaselineFeatures`).
TEXT_LOG10_C_RANGE = (-1, 3)


@dataclasses.dataclass(frozen=True)
class FittedBaseline:
    """A fitted baseline, for raw inputs or inputs from `prepare` (whichever it was fitted on)."""

    read: Callable[[Any], Matrix]
    featurise: Featurise
    classifier: LogisticRegression

    def predict(self, inputs: Inputs) -> np.ndarray:
        """[N] integer classes."""
        return np.asarray(self.classifier.predict(self.featurise(self.read(inputs))), int)


def hparam_grid(modality: str, trials: int) -> list[dict[str, float]]:
    """`trials` settings of the inverse penalty C, log-spaced over the modality's range.

    A single trial takes the middle of the range.

    Raises:
      UserError: unknown modality, or no trials.
    """
    features = _features_of(modality)
    low, high = features.log10_c_range if features else TEXT_LOG10_C_RANGE
    if trials < 1:
        raise UserError(f"trials must be at least 1, got {trials}")
    return [{"C": inverse_penalty} for inverse_penalty in log_grid(low, high, trials)]


def prepare_inputs(modality: str, inputs: Inputs, sample_rate: float | None = None) -> Matrix:
    """The part that learns nothing, done once for all the inputs a job will touch.

    Text: counts of every word and word pair, one row per document, which every fit then slices
    (``counts[labelled]``, ``counts[test]``). Nothing leaks from one document to another: a fit
    keeps the columns its own labelled documents use and weighs them by those alone. Audio: MFCC
    statistics of sounds, int16 [N, samples]. Video: `motion_features` of clips, uint8
    [N, frames, height, width, channels]. Others: one flat row per input. Prepared inputs pass
    through unchanged.

    Args:
      modality: of the inputs.
      inputs: documents, arrays [N, ...], or prepared already.
      sample_rate: of sounds, in Hz.

    Raises:
      UserError: unknown modality; documents without a single word; sounds without a rate.
    """
    features = _features_of(modality)
    if features is not None:
        array = np.asarray(inputs)
        prepared = array.ndim == 2 and np.issubdtype(array.dtype, np.floating)
        return array if prepared else features.extract(array, sample_rate)
    if sp.issparse(inputs):
        return sp.csr_array(inputs)
    return _count(_word_counter(), inputs, learn=True)


def fit(
    modality: str,
    inputs: Inputs,
    labels: np.ndarray,
    config: dict[str, float],
    sample_rate: float | None = None,
) -> FittedBaseline:
    """Fits one setting on the labelled inputs.

    Args:
      modality: ``text``, ``image``, ``video`` or ``audio``.
      inputs: documents; arrays [N, ...] (integers are pixels from 0 to 255, floating pixels are
        taken as they are); or rows of `prepare`.
      labels: [N] integer classes.
      config: ``C``, the inverse penalty.
      sample_rate: of sounds that are not prepared, in Hz.

    Raises:
      UserError: unknown modality; documents without a single word.
      ValueError: fewer than two classes.
    """
    if _features_of(modality) is None and not sp.issparse(inputs):
        counter = _word_counter()
        matrix = _count(counter, inputs, learn=True)
        read = functools.partial(_count, counter, learn=False)
    else:
        matrix = prepare_inputs(modality, inputs, sample_rate)
        read = functools.partial(prepare_inputs, modality, sample_rate=sample_rate)
    featurise = _fit_features(modality, matrix)
    (classifier,) = fit_path(featurise(matrix), np.asarray(labels), [config["C"]])
    return FittedBaseline(read, featurise, classifier)


def cross_validate(
    modality: str,
    inputs: Inputs,
    labels: np.ndarray,
    configs: Sequence[dict[str, float]],
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[dict[str, Any]]:
    """Accuracy of every setting over all the examples the folds hold out.

    The features are fitted on each fold's training part alone, once for all settings.

    Returns:
      One ``{"config": …, "validation": accuracy}`` per setting, in the order given.
    """
    matrix, labels = prepare_inputs(modality, inputs), np.asarray(labels)
    right = np.zeros(len(configs))
    for train, validation in folds:
        featurise = _fit_features(modality, matrix[train])
        fitted = fit_path(
            featurise(matrix[train]), labels[train], [config["C"] for config in configs]
        )
        held_out = featurise(matrix[validation])
        right += [np.sum(model.predict(held_out) == labels[validation]) for model in fitted]
    tested = sum(len(validation) for _, validation in folds)
    return [
        {"config": config, "validation": float(count / tested)}
        for config, count in zip(configs, right, strict=True)
    ]


def _fit_features(modality: str, matrix: Matrix) -> Featurise:
    """What turns prepared rows into features, fitted on the labelled rows."""
    features = _features_of(modality)
    if features is None:
        return _fit_tfidf(sp.csr_array(matrix))
    if features.standardize:
        return StandardScaler().fit(matrix).transform
    return _scale_pixels


def _fit_tfidf(counts: sp.csr_array) -> Featurise:
    """TF-IDF over the words of these documents: as if no other document had ever been counted."""
    columns = np.unique(counts.indices)
    weigh = TfidfTransformer(sublinear_tf=True).fit(counts[:, columns])
    return lambda rows: weigh.transform(rows[:, columns])


def _scale_pixels(pixels: np.ndarray) -> np.ndarray:
    return pixels / 255.0 if np.issubdtype(pixels.dtype, np.integer) else pixels


def _word_counter() -> CountVectorizer:
    return CountVectorizer(ngram_range=(1, 2))


def _count(counter: CountVectorizer, documents: Any, *, learn: bool) -> sp.csr_array:
    try:
        counts = counter.fit_transform(documents) if learn else counter.transform(documents)
    except ValueError as error:
        if "empty vocabulary" not in str(error):
            raise
        raise UserError("none of the documents holds a word of two letters or more") from error
    return sp.csr_array(counts)


def _features_of(modality: str) -> BaselineFeatures | None:
    """Returns the features of a modality, None for text.

    Raises:
      UserError: the modality has no baseline.
    """
    features = get_modality(modality).baseline
    if features is None and modality != "text":
        known = ["text", *(each.name for each in MODALITIES.values() if each.baseline)]
        raise UserError(f"no classical baseline for {modality!r}: one of {', '.join(known)}")
    return features
