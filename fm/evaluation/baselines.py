"""Statistics of mel-frequency cepstral coefficients: what a sound is, in a few hundred numbers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.fft import dct
from scipy.signal import savgol_filter
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fm.data.log_mel import LogMelConfig, log_mel_patches, patches_to_spectrograms
from fm.errors import UserError
from fm.evaluation.logistic import Matrix, fit_path, log_grid

COEFFICIENTS = 13
PARTS = 3
# Frames over which slopes are fitted: 144 ms.
_WINDOW = 9


def mfcc_statistics(sounds: np.ndarray, sample_rate: float) -> np.ndarray:
    """Mean and deviation of the coefficients and of their first and second slopes over time.

    Beside these of the whole sound, the mean of the coefficients in each of three equal parts, or
    the order in which a word's sounds come would not count.

    Args:
      sounds: int16 [N, samples].
      sample_rate: in Hz.

    Returns:
      float64 [N, 13 * (6 + 3)].
    """
    frames = LogMelConfig(int(sample_rate), sounds.shape[1])
    mels = patches_to_spectrograms(log_mel_patches(sounds, frames), frames).astype(np.float64)
    cepstra = np.asarray(dct(mels, axis=1, norm="ortho"))[:, :COEFFICIENTS]
    window = min(_WINDOW, (mels.shape[2] - 1) // 2 * 2 + 1)
    slopes = [
        np.asarray(savgol_filter(cepstra, window, order, deriv=order))
        if window > order
        else np.zeros_like(cepstra)
        for order in (1, 2)
    ]
    found = [
        value for each in (cepstra, *slopes) for value in (each.mean(axis=2), each.std(axis=2))
    ]
    found += [part.mean(axis=2) for part in np.array_split(cepstra, PARTS, axis=2) if part.size]
    return np.concatenate(found, axis=1)


# Pixels by which a frame is moved to look like the next, up, down and sideways.
REACH = 2
# Weighs 25 numbers of motion against thousands of pixels: rows of either are then about as long.
_GAIN = 10.0
# Of a pixel's range: what a sensor's noise changes.
_FLOOR = 1e-4
_CHUNK = 256


def motion_features(clips: np.ndarray) -> np.ndarray:
    """Pixels, absolute differences of successive frames, and how frames match when moved.

    The last are global block matching (Jain and Jain 1981): the mean squared difference between
    each frame, moved by up to `REACH` pixels, and the next, for each of 25 moves, against the mean
    over the moves. A linear classifier on pixels alone cannot see which way a thing goes that may
    be anywhere.

    Args:
        clips: uint8 [N, frames, height, width, channels].

    Returns:
        float32 [N, frames * P + (frames - 1) * P + 25], P values in a frame; pixels from 0 to 1.

    Raises:
        UserError: frames no larger than the moves.
    """
    if min(clips.shape[2:4]) <= 2 * REACH:
        raise UserError(
            f"frames of {clips.shape[2]}x{clips.shape[3]} are too small to match moved by {REACH}"
        )
    parts = [_features(clips[start : start + _CHUNK]) for start in range(0, len(clips), _CHUNK)]
    return np.concatenate(parts) if parts else _features(clips)


def _features(clips: np.ndarray) -> np.ndarray:
    N = len(clips)
    pixels = clips.astype(np.float32) / 255
    changes = np.abs(np.diff(pixels, axis=1))
    height, width = (side - 2 * REACH for side in clips.shape[2:4])
    now, after = pixels[:, :-1], pixels[:, 1:, REACH : REACH + height, REACH : REACH + width]
    misfits = [
        np.square(now[:, :, row : row + height, column : column + width] - after).mean((1, 2, 3, 4))
        for row in range(2 * REACH + 1)
        for column in range(2 * REACH + 1)
    ]
    misfit = np.stack(misfits, axis=1) + _FLOOR
    relative = _GAIN * (misfit / misfit.mean(1, keepdims=True) - 1)
    return np.concatenate([pixels.reshape(N, -1), changes.reshape(N, -1), relative], axis=1)


Inputs = Sequence[str] | Matrix
Featurise = Callable[[Any], Any]

# The range of C, in powers of ten. TF-IDF rows have length 1 and want weak penalties; a row of
# pixels or standardised features is tens of units long and wants strong ones.
C_RANGE = {"text": (-1, 3), "image": (-3, 2), "video": (-3, 2), "audio": (-4, 1)}


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
    low, high = C_RANGE[_known(modality)]
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
    if _known(modality) != "text":
        array = np.asarray(inputs)
        if modality == "video" and array.ndim == 5:
            return motion_features(array)
        if modality == "audio" and array.dtype == np.int16:
            if sample_rate is None:
                raise UserError("sounds need their rate, in Hz")
            return mfcc_statistics(array, sample_rate)
        return array.reshape(len(array), -1)
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
    if _known(modality) == "text" and not sp.issparse(inputs):
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
