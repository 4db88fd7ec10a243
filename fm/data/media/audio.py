"""Sounds: WAV files, int16 [samples], one channel, one rate, one length."""

import math
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fm.data import waves
from fm.data.media.medium import Form, Medium
from fm.data.waves import Sound
from fm.errors import UserError

# Sounds are brought to the length that this share of them fits in, in steps of 50 ms.
FITTING = 0.95
MOST_SECONDS = 4.0
_STEP = 0.05

Measure = tuple[int, int, int, int]


class Audio(Medium):
    """Stored as 16-bit samples of -32768..32767; the rate is in the metadata.

    The common rate is the one most sounds have (the lower of two equally many), 16 kHz at most;
    the common length that which 95% fit in, 4 s at most. Shorter sounds are followed by silence,
    longer ones cut.
    """

    name = "audio"
    noun = "sound"
    dtype = np.int16
    endings = (".wav",)

    def open(self, path: pathlib.Path) -> Sound:
        """Opens a file; see `waves.decode`."""
        return waves.decode(path.read_bytes())

    def measure(self, opened: Sound) -> Measure:
        """Returns samples, rate in Hz, channels, bits a sample."""
        return opened.values.shape[0], opened.rate, opened.values.shape[1], opened.bits

    def common(self, measures: Sequence[Measure]) -> Form:
        """Returns the rate most have, and the length most fit in."""
        rates = Counter(rate for _, rate, _, _ in measures)
        rate = min(min(rates, key=lambda each: (-rates[each], each)), waves.MOST_HZ)
        seconds = sorted(samples / own for samples, own, _, _ in measures)
        fitting = seconds[math.ceil(FITTING * len(seconds)) - 1]
        # Less half a sample, so that sounds of a common form keep it.
        steps = max(1, math.ceil((min(fitting, MOST_SECONDS) - 0.5 / rate) / _STEP))
        return Form((round(steps * _STEP * rate),), rate)

    def remarks(self, measures: Sequence[Measure], form: Form) -> list[str]:
        """Says how many were resampled, mixed down, widened, cut."""
        assert form.rate is not None
        length = form.shape[0]
        seconds = length / form.rate
        rates = {own for _, own, _, _ in measures if own != form.rate}
        changes = (
            (
                sum(own != form.rate for _, own, _, _ in measures),
                f"resampled from {', '.join(map(str, sorted(rates)))} Hz to {form.rate:.0f} Hz",
            ),
            (sum(channels > 1 for _, _, channels, _ in measures), "mixed down to one channel"),
            (sum(bits != 16 for _, _, _, bits in measures), "converted to 16 bits a sample"),
            (
                sum(samples / own > seconds + 0.5 / form.rate for samples, own, _, _ in measures),
                f"cut to {seconds:.2f} s",
            ),
        )
        return [f"{count} of {len(measures)} sounds {what}" for count, what in changes if count]

    def to_array(self, opened: Sound, form: Form) -> np.ndarray:
        """Returns int16 [samples], mixed down, resampled, padded with silence or cut as needed."""
        assert form.rate is not None
        samples = waves.to_int16(opened, int(form.rate))[: form.shape[0]]
        return np.pad(samples, (0, form.shape[0] - len(samples)))

    def feature(self, form: Form) -> Any:
        """Returns a `Tensor` of that length: the feature `Audio` would need TensorFlow."""
        return tfds.features.Tensor(shape=form.shape, dtype=np.int16)

    def encode(self, array: np.ndarray) -> np.ndarray:
        """Returns the samples as they are."""
        return array

    def fits(self, feature: Any) -> bool:
        """Says whether it is a one-dimensional int16 `Tensor`."""
        if type(feature) is not tfds.features.Tensor:
            return False
        shape: Any = feature.shape
        return len(shape) == 1 and feature.np_dtype == np.int16

    def declared(self, feature: Any, rate: float | None) -> Form | None:
        """Returns the length, where the feature has one.

        Raises:
            UserError: the metadata has no rate.
        """
        if rate is None:
            raise UserError('sounds without a rate: the TFDS metadata needs a "rate" in Hz')
        return None if None in feature.shape else Form(tuple(feature.shape), rate)

    def restore(self, stored: np.ndarray, rate: float | None) -> Sound:
        """Opens samples of the data set's rate."""
        assert rate is not None
        return Sound(np.asarray(stored, np.int16)[:, None], int(rate), 16)
