"""What a user would do without a neural network: simple features and logistic regression.

Every baseline is a matrix of features, fitted on the labelled examples alone, under one
penalised logistic regression:

* ``text``: TF-IDF of words and word pairs with sublinear counts, over the whole document;
* ``image``: the pixels, divided by 255;
* ``video``: those of all frames, what changes between them, and how frames match when moved
  (`fm.evaluation.motion`);
* ``audio``: MFCC statistics (`fm.evaluation.mfcc`), standardised.
"""

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

from fm.errors import UserError
from fm.evaluation import mfcc
from fm.evaluation.logistic import Matrix, fit_path, log_grid
from fm.evaluation.motion import motion_features

Inputs = Sequence[str] | Matrix
Featurise = Callable[[Any], Any]

# The range of C, in powers of ten. TF-IDF rows have length 1 and want weak penalties; a row of
# pixels or standardised features is tens of units long and wants strong ones.
C_RANGE = {"text": (-1, 3), "image": (-3, 2), "video": (-3, 2), "audio": (-4, 1)}


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A fitted baseline, for raw inputs or inputs from `prepare` (whichever it was fitted on)."""

    read: Callable[[Any], Matrix]
    featurise: Featurise
    classifier: LogisticRegression

    def predict(self, inputs: Inputs) -> np.ndarray:
        """[N] integer classes."""
        return np.asarray(self.classifier.predict(self.featurise(self.read(inputs))), int)


def grid(modality: str, trials: int) -> list[dict[str, float]]:
    """`trials` settings of the inverse penalty C, log-spaced over the modality's range.

    A single trial takes the middle of the range.

    Raises:
      UserError: unknown modality, or no trials.
    """
    low, high = C_RANGE[_known(modality)]
    if trials < 1:
        raise UserError(f"trials must be at least 1, got {trials}")
    return [{"C": inverse_penalty} for inverse_penalty in log_grid(low, high, trials)]


def prepare(modality: str, inputs: Inputs, rate: float | None = None) -> Matrix:
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
      rate: of sounds, in Hz.

    Raises:
      UserError: unknown modality; documents without a single word; sounds without a rate.
    """
    if _known(modality) != "text":
        array = np.asarray(inputs)
        if modality == "video" and array.ndim == 5:
            return motion_features(array)
        if modality == "audio" and array.dtype == np.int16:
            if rate is None:
                raise UserError("sounds need their rate, in Hz")
            return mfcc.statistics(array, rate)
        return array.reshape(len(array), -1)
    if sp.issparse(inputs):
        return sp.csr_array(inputs)
    return _count(_word_counter(), inputs, learn=True)


def fit(
    modality: str,
    inputs: Inputs,
    labels: np.ndarray,
    config: dict[str, float],
    rate: float | None = None,
) -> Predictor:
    """Fits one setting on the labelled inputs.

    Args:
      modality: ``text``, ``image``, ``video`` or ``audio``.
      inputs: documents; arrays [N, ...] (integers are pixels from 0 to 255, floating pixels are
        taken as they are); or rows of `prepare`.
      labels: [N] integer classes.
      config: ``C``, the inverse penalty.
      rate: of sounds that are not prepared, in Hz.

    Raises:
      UserError: unknown modality; documents without a single word.
      ValueError: fewer than two classes.
    """
    if _known(modality) == "text" and not sp.issparse(inputs):
        counter = _word_counter()
        matrix = _count(counter, inputs, learn=True)
        read = functools.partial(_count, counter, learn=False)
    else:
        matrix = prepare(modality, inputs, rate)
        read = functools.partial(prepare, modality, rate=rate)
    featurise = _fit_features(modality, matrix)
    (classifier,) = fit_path(featurise(matrix), np.asarray(labels), [config["C"]])
    return Predictor(read, featurise, classifier)


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
    matrix, labels = prepare(modality, inputs), np.asarray(labels)
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
    if modality == "text":
        return _fit_tfidf(sp.csr_array(matrix))
    if modality == "audio":
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


def _known(modality: str) -> str:
    if modality not in C_RANGE:
        raise UserError(f"no classical baseline for {modality!r}: one of {', '.join(C_RANGE)}")
    return modality
