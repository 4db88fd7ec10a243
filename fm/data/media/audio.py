"""Sounds: WAV files, int16 [samples], one channel, one rate, one length.

WAV files are read by SciPy, which takes integer and floating-point PCM of every width. `soundfile`
would add FLAC, Ogg and MP3, and a C library of 1 MB.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pathlib
import struct
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from scipy.fft import dct
from scipy.io import wavfile
from scipy.signal import resample_poly, savgol_filter

from fm.data.dedup import audio as dedup
from fm.data.log_mel import (
    FRAMES_PER_PATCH,
    NUM_BINS,
    LogMelConfig,
    log_mel_patches,
    log_mel_time_positions,
    patches_to_spectrograms,
    patches_to_waveforms,
)
from fm.data.media.base import (
    BaselineFeatureSpec,
    DuplicateRule,
    MediaSpec,
    Modality,
    ModalityCodec,
    Patching,
    PatchLayout,
)
from fm.errors import UserError

# Speech has little above 8 kHz, and patches are log-mel frames at any rate.
MAX_HZ = 16_000
MIN_HZ = 4_000
_MAX_FILE_HZ = 768_000

# Sounds get the length that this share of them fits in, in steps of 50 ms.
FITTING_SHARE = 0.95
MAX_SECONDS = 4.0
_STEP_SECONDS = 0.05

NUM_COEFFICIENTS = 13
NUM_PARTS = 3
# Frames over which slopes are fitted: 144 ms.
_SLOPE_WINDOW = 9

# Sizes from here on, and 0, are what programs write that do not know the size yet.
_UNKNOWN_SIZE = 0x7FFFF000


class AudioMeasure(NamedTuple):
    """Length and coding of a sound before conversion.

    Attributes:
        samples: of each channel.
        rate: in Hz.
        channels: number of them.
        bits: per sample.
        peak: largest magnitude of floating-point samples, else None.
        open_ended: whether the file does not say how long it is.
    """

    samples: int
    rate: int
    channels: int
    bits: int
    peak: float | None = None
    open_ended: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Sound:
    """Decoded samples [samples, channels] in the file's dtype, rate in Hz and bits per sample.

    Attributes:
        values: the samples.
        rate: in Hz.
        bits: per sample.
        open_ended: whether the file does not say how long it is.
    """

    values: np.ndarray
    rate: int
    bits: int
    open_ended: bool = False


def decode_wav(encoded: bytes) -> Sound:
    """Returns the samples, rate in Hz and bits per sample of a WAV file given as bytes.

    A file whose sizes were not known when it was written is read to its end.

    Raises:
        OSError: not a WAV file, cut short, without samples, or of an unusual rate or coding.
    """
    encoded, open_ended = _plain_wav(encoded)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            rate, values = wavfile.read(io.BytesIO(encoded))
    except (ValueError, TypeError, ZeroDivisionError, UnboundLocalError, struct.error) as error:
        raise OSError(f"not a WAV file that can be read ({error})") from error
    if not len(values):
        raise OSError("it holds no samples")
    if not MIN_HZ <= rate <= _MAX_FILE_HZ:
        raise OSError(f"its rate is {rate} Hz; accepted: {MIN_HZ} to {_MAX_FILE_HZ}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise OSError("it holds samples that are not finite")
    values = values.reshape(len(values), -1)
    return Sound(values, int(rate), 8 * values.dtype.itemsize, open_ended)


def _plain_wav(encoded: bytes) -> tuple[bytes, bool]:
    """Returns a WAV file of a format and a data chunk alone, and whether its size was unknown.

    SciPy trusts the sizes that a file states, and only warns of wrong ones or fails in various
    ways.

    Raises:
        OSError: it is cut short, or has no data chunk.
    """
    form, order = encoded[:4], ">" if encoded[:4] == b"RIFX" else "<"
    if form not in (b"RIFF", b"RIFX", b"RF64", b"BW64") or encoded[8:12] != b"WAVE":
        raise OSError("not a WAV file that can be read")
    chunks: dict[bytes, bytes] = {}
    for name, start, size in _chunks(encoded, order):
        if name != b"data":
            chunks.setdefault(name, encoded[start : start + size])
            continue
        if form in (b"RF64", b"BW64") and size == 0xFFFFFFFF:
            (size,) = struct.unpack("<8xQ", chunks.get(b"ds64", bytes(16))[:16])
        open_ended = _is_unknown(encoded, start, size, order)
        header = chunks.get(b"fmt ", b"")
        if open_ended:
            (frame,) = struct.unpack(f"{order}12xH", header[:14].ljust(14, b"\0"))
            size = len(encoded) - start
            size -= size % max(frame, 1)
        elif start + size > len(encoded):
            raise OSError(f"it ends early, after {len(encoded)} bytes of {start + size}")
        content = b"WAVE"
        for key, part in ((b"fmt ", header), (b"data", encoded[start : start + size])):
            content += key + struct.pack(f"{order}I", len(part)) + part + bytes(len(part) % 2)
        riff = b"RIFX" if order == ">" else b"RIFF"
        return riff + struct.pack(f"{order}I", len(content)) + content, open_ended
    (stated,) = struct.unpack(f"{order}I", encoded[4:8])
    if len(encoded) < stated + 8 and stated < _UNKNOWN_SIZE:
        raise OSError(f"it ends early, after {len(encoded)} bytes of {stated + 8}")
    raise OSError("not a WAV file that can be read (no data chunk)")


def _chunks(encoded: bytes, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Yields name, start and stated size of each chunk; an odd one may lack its padding."""
    start = 20
    while start <= len(encoded):
        name, size = struct.unpack_from(f"{order}4sI", encoded, start - 8)
        yield name, start, size
        end = start + size
        start = end + 8 + (size % 2 and encoded[end : end + 1] == b"\0")


def _is_unknown(encoded: bytes, start: int, size: int, order: str) -> bool:
    """Returns whether the stated size of the data says that it was not known."""
    if size >= _UNKNOWN_SIZE:
        return start + size > len(encoded)
    if size or start == len(encoded):
        return False
    # Without samples only whole chunks may follow.
    end = max((at + own for _, at, own in _chunks(encoded[start - 12 :], order)), default=0)
    return start - 12 + end not in (len(encoded), len(encoded) - 1)


def encode_wav(samples: np.ndarray, rate: int) -> bytes:
    """Returns int16 samples (not floats) encoded as the bytes of a mono WAV file."""
    buffer = io.BytesIO()
    wavfile.write(buffer, rate, samples)
    return buffer.getvalue()


def resample_to_int16(sound: Sound, rate: int, full_scale: float | None = None) -> np.ndarray:
    """Returns the sound as mono int16 [samples] at `rate` Hz, by a polyphase filter.

    Args:
        sound: of any coding.
        rate: in Hz.
        full_scale: magnitude of floating-point samples that becomes the largest; by default that of
            `common_full_scale` of this sound alone.
    """
    if sound.values.dtype == np.int16 and sound.values.shape[1] == 1 and sound.rate == rate:
        return sound.values[:, 0]
    values = _to_unit_range(sound.values, full_scale).mean(1)
    if sound.rate != rate:
        common = math.gcd(sound.rate, rate)
        values = resample_poly(values, rate // common, sound.rate // common)
    return np.clip(np.rint(values * 32768), -32768, 32767).astype(np.int16)


def common_full_scale(peaks: Sequence[float]) -> float:
    """Returns the smallest power of two, at least 1, that none of the sounds' peaks exceeds.

    So 16-bit numbers that were kept as floating point become what they were.
    """
    return max(1.0, 2.0 ** math.ceil(math.log2(max([1.0, *peaks]))))


def _peak(values: np.ndarray) -> float | None:
    return float(np.abs(values).max()) if values.dtype.kind == "f" else None


def _to_unit_range(values: np.ndarray, full_scale: float | None) -> np.ndarray:
    """Returns samples of any type as float64 in -1..1; 8-bit WAV samples are unsigned."""
    if values.dtype.kind == "f":
        if full_scale is None:
            full_scale = common_full_scale([_peak(values) or 0.0])
        return np.clip(values.astype(np.float64) / full_scale, -1, 1)
    if values.dtype == np.uint8:
        return (values.astype(np.float64) - 128) / 128
    return values.astype(np.float64) / -float(np.iinfo(values.dtype).min)


class AudioCodec(ModalityCodec):
    """Codec of sounds: reads files and converts a data set to int16 of one rate and length.

    The common rate is the most frequent one (the lower of two equally frequent), at most 16 kHz;
    the common length is the one that 95% of the sounds fit in, at most 4 s. Shorter sounds are
    padded with silence, longer ones are cut. Floating-point sounds have one full scale.
    """

    dtype = np.int16
    extensions = (".wav",)
    preview_extension = "wav"

    def open(self, path: pathlib.Path) -> Sound:
        """Returns the samples, rate and sample size of a WAV file."""
        return decode_wav(path.read_bytes())

    def measure(self, opened: Sound) -> AudioMeasure:
        """Returns the length and coding."""
        samples, channels = opened.values.shape
        peak = _peak(opened.values)
        return AudioMeasure(samples, opened.rate, channels, opened.bits, peak, opened.open_ended)

    def common_spec(self, measures: Sequence[AudioMeasure]) -> MediaSpec:
        """Returns the most frequent rate, the length that most sounds fit in, and full scale."""
        counts = Counter(each.rate for each in measures)
        rate = min(min(counts, key=lambda each: (-counts[each], each)), MAX_HZ)
        seconds = sorted(each.samples / each.rate for each in measures)
        fitting = seconds[math.ceil(FITTING_SHARE * len(seconds)) - 1]
        # Less half a sample, so that sounds that already have the common length keep it.
        steps = max(1, math.ceil((min(fitting, MAX_SECONDS) - 0.5 / rate) / _STEP_SECONDS))
        peaks = [each.peak for each in measures if each.peak is not None]
        scale = common_full_scale(peaks) if peaks else None
        value_range = None if scale is None else (-scale, scale)
        return MediaSpec((round(steps * _STEP_SECONDS * rate),), rate, value_range=value_range)

    def describe_changes(self, measures: Sequence[AudioMeasure], spec: MediaSpec) -> list[str]:
        """Counts the sounds that are resampled, mixed down, converted, cut, or of unknown size."""
        assert spec.rate is not None
        seconds = spec.shape[0] / spec.rate
        rates = {each.rate for each in measures if each.rate != spec.rate}
        _, scale = spec.value_range or (-1, 1)
        peaks = [each.peak for each in measures if each.peak is not None and scale > 1]
        changes = (
            (
                sum(each.rate != spec.rate for each in measures),
                f"resampled from {', '.join(map(str, sorted(rates)))} Hz to {spec.rate:.0f} Hz",
            ),
            (sum(each.channels > 1 for each in measures), "mixed down to one channel"),
            (sum(each.bits != 16 for each in measures), "converted to 16 bits per sample"),
            (
                len(peaks),
                f"of floating point, up to {max(peaks, default=0):g} instead of 1, divided by "
                f"{scale:g}",
            ),
            (
                sum(0 < peak < scale / 32768 for peak in peaks),
                "then nearly silent: they may be on another scale than the others",
            ),
            (
                sum(each.samples / each.rate > seconds + 0.5 / spec.rate for each in measures),
                f"cut to {seconds:.2f} s",
            ),
            (
                sum(each.open_ended for each in measures),
                "without a stated length, read to the end of the file",
            ),
        )
        return [f"{count} of {len(measures)} sounds {what}" for count, what in changes if count]

    def to_array(self, opened: Sound, spec: MediaSpec) -> np.ndarray:
        """Returns int16 [samples], mixed down, resampled, padded or cut as needed."""
        assert spec.rate is not None
        _, full_scale = spec.value_range or (None, None)
        samples = resample_to_int16(opened, int(spec.rate), full_scale)[: spec.shape[0]]
        return np.pad(samples, (0, spec.shape[0] - len(samples)))

    def tfds_feature(self, spec: MediaSpec) -> Any:
        """Returns a `Tensor` feature: `Audio` would need TensorFlow."""
        return tfds.features.Tensor(shape=spec.shape, dtype=np.int16)

    def encode(self, array: np.ndarray) -> np.ndarray:
        """Returns the samples."""
        return array

    def accepts_feature(self, feature: Any) -> bool:
        """Accepts a one-dimensional int16 `Tensor`."""
        if type(feature) is not tfds.features.Tensor:
            return False
        shape: Any = feature.shape
        return len(shape) == 1 and feature.np_dtype == np.int16

    def declared_spec(self, feature: Any, rate: float | None) -> MediaSpec | None:
        """Returns the length, if the feature has one.

        Raises:
            UserError: the metadata has no rate.
        """
        if rate is None:
            raise UserError('sounds without a rate: the TFDS metadata needs a "rate" in Hz')
        return None if None in feature.shape else MediaSpec(tuple(feature.shape), rate)

    def decode(self, stored: np.ndarray, rate: float | None) -> Sound:
        """Returns the samples at the data set's rate."""
        assert rate is not None
        return Sound(np.asarray(stored, np.int16)[:, None], int(rate), 16)

    def encode_preview(self, array: np.ndarray, rate: float) -> bytes:
        """Returns a WAV file."""
        return encode_wav(array, round(rate))


class AudioPatching(Patching):
    """Cuts sounds into patches of log-mel frames; `patch_shape` is (mel bins, frames)."""

    num_axes = 1

    def patch_shape(self, shape: tuple[int, ...], size: int | None) -> tuple[int, ...]:
        """Returns 40 mel bins, 2 frames."""
        return NUM_BINS, FRAMES_PER_PATCH

    def patch_dim(self, layout: PatchLayout) -> int:
        """Returns bins times frames."""
        return _log_mel_config(layout).patch_dim

    def positions(self, layout: PatchLayout) -> np.ndarray:
        """Returns the time."""
        return log_mel_time_positions(_log_mel_config(layout))

    def to_patches(self, examples: np.ndarray, layout: PatchLayout) -> np.ndarray:
        """Returns float32 [N, L, P] in 0..1."""
        return log_mel_patches(examples, _log_mel_config(layout))

    def from_patches(self, patches: np.ndarray, layout: PatchLayout) -> np.ndarray:
        """Returns int16 [N, samples], approximately reconstructed from log-mel patches."""
        return patches_to_waveforms(patches, _log_mel_config(layout))

    def to_picture(self, example: np.ndarray, layout: PatchLayout) -> np.ndarray:
        """Returns the log-mel spectrogram, low frequencies at the bottom."""
        patches = self.to_patches(example[None], layout)
        (mel,) = patches_to_spectrograms(patches, _log_mel_config(layout))
        return np.rint(255 * mel[::-1, :, None]).astype(np.uint8)


def _log_mel_config(layout: PatchLayout) -> LogMelConfig:
    return LogMelConfig(round(layout.rate), layout.shape[0], *layout.patch_shape)


def mfcc_statistics(sounds: np.ndarray, rate: float | None) -> np.ndarray:
    """Returns statistics of MFCCs over time, as features of the classical audio baseline.

    They are the mean and standard deviation over time of the coefficients and of their first and
    second slopes, and the mean of the coefficients in each third of the sound, which tells the
    order of a word's phonemes.

    Args:
        sounds: int16 [N, samples].
        rate: in Hz.

    Returns:
        float64 [N, 13 * (6 + 3)].

    Raises:
        UserError: no rate.
    """
    if rate is None:
        raise UserError("sounds need their sample rate, in Hz")
    config = LogMelConfig(int(rate), sounds.shape[1])
    mels = patches_to_spectrograms(log_mel_patches(sounds, config), config).astype(np.float64)
    cepstra = np.asarray(dct(mels, axis=1, norm="ortho"))[:, :NUM_COEFFICIENTS]
    window = min(_SLOPE_WINDOW, (mels.shape[2] - 1) // 2 * 2 + 1)
    slopes = [
        np.asarray(savgol_filter(cepstra, window, order, deriv=order))
        if window > order
        else np.zeros_like(cepstra)
        for order in (1, 2)
    ]
    features = [
        value for each in (cepstra, *slopes) for value in (each.mean(axis=2), each.std(axis=2))
    ]
    parts = np.array_split(cepstra, NUM_PARTS, axis=2)
    features += [part.mean(axis=2) for part in parts if part.size]
    return np.concatenate(features, axis=1)


AUDIO = Modality(
    name="audio",
    noun="sound",
    metric_unit="bits_per_dimension",
    duplicates=DuplicateRule(dedup.METHOD, dedup.find_audio_duplicate_pairs),
    codec=AudioCodec(),
    patching=AudioPatching(),
    baseline=(BaselineFeatureSpec("MFCC statistics", mfcc_statistics, standardize=True),),
)
