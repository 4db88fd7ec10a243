"""WAV files to samples and back, through SciPy; resampling.

SciPy, which is here anyway, reads integer and floating-point PCM of every width. `soundfile` would
add FLAC, Ogg and MP3, and a C library of 1 MB.
"""

import dataclasses
import io
import struct
import warnings
from math import gcd

import numpy as np
from scipy.io import wavfile
from scipy.signal import resample_poly

# Speech has little above 8 kHz, and pieces are log-mel frames whatever the rate.
MOST_HZ = 16_000
LEAST_HZ = 4_000
_LIMIT_HZ = 768_000


@dataclasses.dataclass(frozen=True, eq=False)
class Sound:
    """Samples as decoded: [samples, channels] in the file's own type; Hz; bits a sample."""

    values: np.ndarray
    rate: int
    bits: int


def decode(encoded: bytes) -> Sound:
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
    if not LEAST_HZ <= rate <= _LIMIT_HZ:
        raise OSError(f"its rate is {rate} Hz; accepted: {LEAST_HZ} to {_LIMIT_HZ}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise OSError("it holds samples that are not finite")
    bits = 8 * values.dtype.itemsize
    return Sound(values.reshape(len(values), -1), int(rate), bits)


def encode(samples: np.ndarray, rate: int) -> bytes:
    """Returns int16 [samples] at `rate` Hz as a WAV file of one channel."""
    buffer = io.BytesIO()
    wavfile.write(buffer, rate, samples)
    return buffer.getvalue()


def to_int16(sound: Sound, rate: int) -> np.ndarray:
    """Returns the mean of the channels as int16 [samples] at `rate` Hz (polyphase filter)."""
    if sound.values.dtype == np.int16 and sound.values.shape[1] == 1 and sound.rate == rate:
        return sound.values[:, 0]
    values = _unit(sound.values).mean(1)
    if sound.rate != rate:
        common = gcd(sound.rate, rate)
        values = resample_poly(values, rate // common, sound.rate // common)
    return np.clip(np.rint(values * 32768), -32768, 32767).astype(np.int16)


def _unit(values: np.ndarray) -> np.ndarray:
    """Returns samples of any type as float64 in -1..1; eight bits are unsigned in WAV."""
    if values.dtype.kind == "f":
        return np.clip(values.astype(np.float64), -1, 1)
    if values.dtype == np.uint8:
        return (values.astype(np.float64) - 128) / 128
    return values.astype(np.float64) / -float(np.iinfo(values.dtype).min)
