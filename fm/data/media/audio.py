"""WAV files to samples and back, through SciPy; resampling.

SciPy, which is here anyway, reads integer and floating-point PCM of every width. `soundfile` would
add FLAC, Ogg and MP3, and a C library of 1 MB.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pathlib
import struct
import warnings
from collections import Counter
from collections.abc import Sequence
from math import gcd
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from scipy.io import wavfile
from scipy.signal import resample_poly

from fm.data.media.base import ArraySpec, ModalityCodec
from fm.errors import UserError

# Speech has little above 8 kHz, and pieces are log-mel frames whatever the rate.
MAX_HZ = 16_000
MIN_HZ = 4_000
_LIMIT_HZ = 768_000


@dataclasses.dataclass(frozen=True, eq=False)
class Sound:
    """Samples as decoded: [samples, channels] in the file's own type; Hz; bits a sample."""

    values: np.ndarray
    rate: int
    bits: int


def decode_wav(encoded: bytes) -> Sound:
    """Decodes a WAV file.

    Raises:
        OSError: not a WAV file, cut short, without samples, or of an odd rate or coding.
    """
    # A length that SciPy may only warn of, or trip over.
    declared = int.from_bytes(encoded[4:8], "little") + 8
    if encoded[:4] == b"RIFF" and len(encoded) < declared:
        raise OSError(f"it ends early, after {len(encoded)} bytes of {declared}")
    try:
        with warnings.catch_warnings():
            # Chunks that SciPy does not know.
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            rate, values = wavfile.read(io.BytesIO(encoded))
    except (ValueError, TypeError, ZeroDivisionError, UnboundLocalError, struct.error) as error:
        raise OSError(f"not a WAV file that can be read ({error})") from error
    if not len(values):
        raise OSError("it holds no samples")
    if not MIN_HZ <= rate <= _LIMIT_HZ:
        raise OSError(f"its rate is {rate} Hz; accepted: {MIN_HZ} to {_LIMIT_HZ}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise OSError("it holds samples that are not finite")
    bits = 8 * values.dtype.itemsize
    return Sound(values.reshape(len(values), -1), int(rate), bits)


def encode_wav(samples: np.ndarray, rate: int) -> bytes:
    """Returns int16 [samples] at `rate` Hz as a WAV file of one channel."""
    buffer = io.BytesIO()
    wavfile.write(buffer, rate, samples)
    return buffer.getvalue()


def resample_to_int16(sound: Sound, rate: int) -> np.ndarray:
    """Returns the mean of the channels as int16 [samples] at `rate` Hz (polyphase filter)."""
    if sound.values.dtype == np.int16 and sound.values.shape[1] == 1 and sound.rate == rate:
        return sound.values[:, 0]
    values = _to_unit_range(sound.values).mean(1)
    if sound.rate != rate:
        common = gcd(sound.rate, rate)
        values = resample_poly(values, rate // common, sound.rate // common)
    return np.clip(np.rint(values * 32768), -32768, 32767).astype(np.int16)


def _to_unit_range(values: np.ndarray) -> np.ndarray:
    """Returns samples of any type as float64 in -1..1; eight bits are unsigned in WAV."""
    if values.dtype.kind == "f":
        return np.clip(values.astype(np.float64), -1, 1)
    if values.dtype == np.uint8:
        return (values.astype(np.float64) - 128) / 128
    return values.astype(np.float64) / -float(np.iinfo(values.dtype).min)


# Sounds are brought to the length that this share of them fits in, in steps of 50 ms.
FITTING = 0.95
MOST_SECONDS = 4.0
_STEP = 0.05

Measure = tuple[int, int, int, int]


class AudioCodec(ModalityCodec):
    """Stored as 16-bit samples of -32768..32767; the rate is in the metadata.

    The common rate is the one most sounds have (the lower of two equally many), 16 kHz at most;
    the common length that which 95% fit in, 4 s at most. Shorter sounds are followed by silence,
    longer ones cut.
    """

    name = "audio"
    noun = "sound"
    dtype = np.int16
    extensions = (".wav",)

    def open(self, path: pathlib.Path) -> Sound:
        """Opens a file; see `waves.decode`."""
        return decode_wav(path.read_bytes())

    def measure(self, opened: Sound) -> Measure:
        """Returns samples, rate in Hz, channels, bits a sample."""
        return opened.values.shape[0], opened.rate, opened.values.shape[1], opened.bits

    def common_spec(self, measures: Sequence[Measure]) -> ArraySpec:
        """Returns the rate most have, and the length most fit in."""
        rates = Counter(rate for _, rate, _, _ in measures)
        rate = min(min(rates, key=lambda each: (-rates[each], each)), MAX_HZ)
        seconds = sorted(samples / own for samples, own, _, _ in measures)
        fitting = seconds[math.ceil(FITTING * len(seconds)) - 1]
        # Less half a sample, so that sounds of a common form keep it.
        steps = max(1, math.ceil((min(fitting, MOST_SECONDS) - 0.5 / rate) / _STEP))
        return ArraySpec((round(steps * _STEP * rate),), rate)

    def describe_changes(self, measures: Sequence[Measure], form: ArraySpec) -> list[str]:
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

    def to_array(self, opened: Sound, form: ArraySpec) -> np.ndarray:
        """Returns int16 [samples], mixed down, resampled, padded with silence or cut as needed."""
        assert form.rate is not None
        samples = resample_to_int16(opened, int(form.rate))[: form.shape[0]]
        return np.pad(samples, (0, form.shape[0] - len(samples)))

    def tfds_feature(self, form: ArraySpec) -> Any:
        """Returns a `Tensor` of that length: the feature `Audio` would need TensorFlow."""
        return tfds.features.Tensor(shape=form.shape, dtype=np.int16)

    def encode(self, array: np.ndarray) -> np.ndarray:
        """Returns the samples as they are."""
        return array

    def accepts_feature(self, feature: Any) -> bool:
        """Says whether it is a one-dimensional int16 `Tensor`."""
        if type(feature) is not tfds.features.Tensor:
            return False
        shape: Any = feature.shape
        return len(shape) == 1 and feature.np_dtype == np.int16

    def declared_spec(self, feature: Any, rate: float | None) -> ArraySpec | None:
        """Returns the length, where the feature has one.

        Raises:
            UserError: the metadata has no rate.
        """
        if rate is None:
            raise UserError('sounds without a rate: the TFDS metadata needs a "rate" in Hz')
        return None if None in feature.shape else ArraySpec(tuple(feature.shape), rate)

    def decode(self, stored: np.ndarray, rate: float | None) -> Sound:
        """Opens samples of the data set's rate."""
        assert rate is not None
        return Sound(np.asarray(stored, np.int16)[:, None], int(rate), 16)
