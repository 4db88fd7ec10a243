# ruff: noqa: D102 (methods inherit the docstrings of `SoundPreprocessing`)
"""Sounds as a published encoder wants them: spectrograms by its preprocessor_config.json.

The reference are the feature extractors of `transformers`. Sounds of another rate are resampled by
a polyphase filter.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from scipy.signal import resample_poly
from scipy.signal.windows import hann

from fm.hf.encoders.reader import PreprocessorReader

_FULL_SCALE = 32768.0
# Of AST: Kaldi's filter bank, frames of 25 ms every 10 ms.
_FRAME_SECONDS, _HOP_SECONDS = 0.025, 0.010
_PREEMPHASIS, _MIN_HZ = 0.97, 20.0
# Of Whisper: what is added up to at least, how far below the loudest is kept, in log10 of power.
_MIN_POWER, _DYNAMIC_RANGE = 1e-10, 8.0
_MAX_HZ = 8000.0


@dataclasses.dataclass(frozen=True)
class SoundPreprocessing(abc.ABC):
    """Base class: makes spectrograms of one shape of sounds of one length.

    Attributes:
      rate: in Hz, of the spectrogram.
      num_bins: mel filters.
    """

    rate: int
    num_bins: int
    extractor: ClassVar[str]

    @classmethod
    @abc.abstractmethod
    def from_config(cls, values: Mapping[str, Any]) -> SoundPreprocessing:
        """Returns the preprocessing that a preprocessor_config.json asks for.

        Raises:
          UserError: it asks for something else, or a value is no such value.
        """

    @property
    @abc.abstractmethod
    def num_frames(self) -> int:
        """Frames of a spectrogram."""

    @abc.abstractmethod
    def num_sounding_frames(self, num_samples: int) -> int:
        """Returns how many of the frames come from a sound of so many samples, not from padding."""

    @abc.abstractmethod
    def spectrograms(self, sounds: np.ndarray) -> np.ndarray:
        """Returns spectrograms, float32 [N, frames, bins], of sounds in -1..1 at `rate`."""

    def __call__(self, sounds: np.ndarray, rate: float) -> np.ndarray:
        """Returns spectrograms, float32 [N, frames, bins], of sounds int16 [N, samples]."""
        values = sounds / _FULL_SCALE
        up, down = self._ratio(rate)
        if up != down:
            values = resample_poly(values, up, down, axis=1)
        return self.spectrograms(values.astype(np.float32))

    def resampled_length(self, num_samples: int, rate: float) -> int:
        """Returns the samples of a sound after resampling."""
        up, down = self._ratio(rate)
        return -(-num_samples * up // down)

    def describe(self, num_samples: int, rate: float) -> str:
        """Returns what is done with sounds of so many samples at `rate` Hz, in a few words."""
        resampled = "" if rate == self.rate else f"resampled from {rate:g} Hz, "
        seconds = self.num_frames * self._hop_seconds
        cut = ", the rest is cut" if num_samples / rate > seconds else ""
        return f"{resampled}{self.num_bins} mel bins of {self.rate} Hz over {seconds:g} s{cut}"

    @property
    @abc.abstractmethod
    def _hop_seconds(self) -> float:
        """Seconds from one frame to the next."""

    def _ratio(self, rate: float) -> tuple[int, int]:
        common = math.gcd(round(rate), self.rate)
        return self.rate // common, round(rate) // common


@dataclasses.dataclass(frozen=True)
class AstPreprocessing(SoundPreprocessing):
    """Kaldi's log mel filter bank, padded with zeros or cut to a number of frames, normalized.

    Attributes:
      max_length: frames.
      mean: subtracted from every value,
      std: twice which it is then divided by.
    """

    max_length: int
    mean: float
    std: float
    extractor = "ASTFeatureExtractor"

    @classmethod
    def from_config(cls, values):
        config = PreprocessorReader(values)
        config.require("feature_extractor_type", cls.extractor)
        config.require("feature_size", 1)
        config.require("padding_value", 0.0)
        config.require("padding_side", "right")
        config.ignore("return_attention_mask")
        normalizes = config.flag("do_normalize", True)
        mean, std = config.number("mean", -4.2677393), config.number("std", 4.5689974)
        if not std:
            raise config.error("std", "must not be 0")
        made = cls(
            rate=config.size("sampling_rate", 16_000),
            num_bins=config.size("num_mel_bins", 128),
            max_length=config.size("max_length", 1024),
            mean=mean if normalizes else 0.0,
            std=std if normalizes else 0.5,
        )
        config.finish()
        return made

    @property
    def num_frames(self):
        return self.max_length

    @property
    def _hop_seconds(self):
        return _HOP_SECONDS

    def num_sounding_frames(self, num_samples):
        window, hop = self._frame_and_hop
        return min(max(1, (num_samples - window) // hop + 1), self.max_length)

    def spectrograms(self, sounds):
        # kaldi-native-fbank refuses 128 bins at 16 kHz, where some filters are between frequencies.
        window, hop = self._frame_and_hop
        values = np.zeros((len(sounds), self.max_length, self.num_bins), np.float32)
        if sounds.shape[1] >= window:
            filters = _kaldi_mel_filters(
                self.rate, 2 ** math.ceil(math.log2(window)), self.num_bins
            )
            for n, sound in enumerate(sounds):
                found = _log_filter_bank(sound.astype(np.float64), window, hop, filters)
                found = found[: self.max_length]
                values[n, : len(found)] = found
        return (values - np.float32(self.mean)) / np.float32(2 * self.std)

    @property
    def _frame_and_hop(self) -> tuple[int, int]:
        return round(_FRAME_SECONDS * self.rate), round(_HOP_SECONDS * self.rate)


def _log_filter_bank(sound: np.ndarray, window: int, hop: int, filters: np.ndarray) -> np.ndarray:
    """Returns Kaldi's log mel energies [frames, bins] of whole frames of a sound in -1..1."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, window)[::hop]
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    frames = (frames - _PREEMPHASIS * before) * hann(window)
    power = np.square(np.abs(np.fft.rfft(frames, 2 * (len(filters) - 1))))
    return np.log(np.maximum(power @ filters, np.finfo(np.float32).eps))


@dataclasses.dataclass(frozen=True)
class WhisperPreprocessing(SoundPreprocessing):
    """Whisper's log mel spectrogram of sounds padded with silence or cut to one length.

    Attributes:
      window: samples of a frame.
      hop: samples from one frame to the next.
      seconds: length of a sound.
    """

    window: int
    hop: int
    seconds: int
    extractor = "WhisperFeatureExtractor"

    @classmethod
    def from_config(cls, values):
        config = PreprocessorReader(values)
        config.require("feature_extractor_type", cls.extractor)
        config.require("padding_value", 0.0)
        config.require("padding_side", "right")
        config.require("dither", 0.0)
        config.require("do_normalize", False)
        # Derived from the others, and the mel filters of older files.
        config.ignore("return_attention_mask", "n_samples", "nb_max_frames", "mel_filters")
        made = cls(
            rate=config.size("sampling_rate", 16_000),
            num_bins=config.size("feature_size", 80),
            window=config.size("n_fft", 400),
            hop=config.size("hop_length", 160),
            seconds=config.size("chunk_length", 30),
        )
        config.finish()
        return made

    @property
    def num_frames(self):
        return self.seconds * self.rate // self.hop

    @property
    def _hop_seconds(self):
        return self.hop / self.rate

    def num_sounding_frames(self, num_samples):
        return min(max(1, -(-num_samples // self.hop)), self.num_frames)

    def spectrograms(self, sounds):
        whole = self.seconds * self.rate
        sounds = sounds[:, :whole]
        sounds = np.pad(sounds, ((0, 0), (0, whole - sounds.shape[1])))
        filters = _slaney_mel_filters(self.rate, self.window, self.num_bins)
        window = hann(self.window, sym=False).astype(np.float32)
        half = self.window // 2
        values = np.empty((len(sounds), self.num_frames, self.num_bins), np.float32)
        for n, sound in enumerate(np.pad(sounds, ((0, 0), (half, half)), mode="reflect")):
            frames = np.lib.stride_tricks.sliding_window_view(sound, self.window)[:: self.hop]
            power = np.square(np.abs(np.fft.rfft(frames[: self.num_frames] * window)))
            logs = np.log10(np.maximum(power @ filters, _MIN_POWER))
            values[n] = (np.maximum(logs, logs.max() - _DYNAMIC_RANGE) + 4.0) / 4.0
        return values


SOUND_PREPROCESSINGS: dict[str, type[SoundPreprocessing]] = {
    "audio-spectrogram-transformer": AstPreprocessing,
    "whisper": WhisperPreprocessing,
}


@functools.cache
def _kaldi_mel_filters(rate: int, size: int, num_bins: int) -> np.ndarray:
    """Returns mel filters [frequencies, bins] that are triangles on Kaldi's mel scale.

    Args:
      rate: in Hz.
      size: of the Fourier transform.
      num_bins: filters, from 20 Hz to half the rate.
    """

    def mel(hertz):
        return 1127.0 * np.log(1.0 + np.asarray(hertz) / 700.0)

    edges = np.linspace(mel(_MIN_HZ), mel(rate // 2), num_bins + 2)
    return _triangles(mel(rate / size * np.arange(size // 2 + 1)), edges)


@functools.cache
def _slaney_mel_filters(rate: int, size: int, num_bins: int) -> np.ndarray:
    """Returns mel filters of equal area [frequencies, bins], triangles over frequency.

    Slaney's mel scale is linear up to 1 kHz and logarithmic from there (Slaney 1998, Auditory
    Toolbox).
    """
    edges_hz = _slaney_hz(np.linspace(0.0, _slaney_mel(_MAX_HZ), num_bins + 2))
    triangles = _triangles(np.linspace(0, rate // 2, size // 2 + 1), edges_hz)
    return triangles * (2.0 / (edges_hz[2:] - edges_hz[:-2]))


def _triangles(places: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns triangles between every three neighboring edges, 1 in the middle, at these places."""
    distances, widths = edges[None, :] - places[:, None], np.diff(edges)
    rising, falling = -distances[:, :-2] / widths[:-1], distances[:, 2:] / widths[1:]
    return np.maximum(0.0, np.minimum(rising, falling))


_BREAK_HZ, _BREAK_MEL, _LOG_STEP = 1000.0, 15.0, math.log(6.4) / 27.0


def _slaney_mel(hertz: float) -> float:
    if hertz < _BREAK_HZ:
        return 3.0 * hertz / 200.0
    return _BREAK_MEL + math.log(hertz / _BREAK_HZ) / _LOG_STEP


def _slaney_hz(mels: np.ndarray) -> np.ndarray:
    return np.where(
        mels < _BREAK_MEL,
        200.0 * mels / 3.0,
        _BREAK_HZ * np.exp(_LOG_STEP * (mels - _BREAK_MEL)),
    )
