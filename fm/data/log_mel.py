"""Sounds to patches of log-mel frames, and back to a waveform.

A frame is a power spectrum of 32 ms through mel filters, in dB relative to a full-scale sine,
mapped from -90..0 dB to 0..1 and clipped. The hop is 16 ms: 62.5 frames/s.

The short-time Fourier transform is SciPy's, the mel filters are kaldi-native-fbank's (half a
megabyte, no dependencies, 10 ms to import; librosa brings 210 MB of numba and LLVM and compiles for
44 s on its first transform).
"""

import dataclasses
import functools

import kaldi_native_fbank as fbank
import numpy as np
from scipy.signal import ShortTimeFFT
from scipy.signal.windows import hann

from fm.errors import UserError

LOW_DB, HIGH_DB = -90.0, 0.0
FRAME_SECONDS = 0.032
HOP_SECONDS = 0.016
LOWEST_HZ = 20.0
# A mel spectrum changes little between patches: 2 x 40 numbers, 31 patches/s.
NUM_BINS = 40
FRAMES_PER_PATCH = 2

_FULL_SCALE = 32768.0
_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class LogMelConfig:
    """Sizes of log-mel patches: sampling rate, sound length, mel filters, frames per patch.

    Attributes:
        rate: sampling rate in Hz.
        num_samples: samples in every sound.
        num_bins: mel filters, from 20 Hz to half the rate.
        frames_per_patch: frames in a patch.
    """

    rate: int
    num_samples: int
    num_bins: int = NUM_BINS
    frames_per_patch: int = FRAMES_PER_PATCH

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next."""
        return round(HOP_SECONDS * self.rate)

    @property
    def num_frames(self) -> int:
        """Frames in a sound; a multiple of `frames_per_patch`."""
        return self.num_patches * self.frames_per_patch

    @property
    def num_patches(self) -> int:
        """Patches in a sound (L)."""
        return -(-self.num_samples // (self.hop_samples * self.frames_per_patch))

    @property
    def patch_dim(self) -> int:
        """Numbers in a patch (P)."""
        return self.num_bins * self.frames_per_patch


def log_mel_patches(sounds: np.ndarray, config: LogMelConfig) -> np.ndarray:
    """Returns the log-mel frames of sounds, grouped into patches, float32 [N, L, P] in 0..1.

    Args:
        sounds: int16 [N, num_samples].
        config: sizes.

    Returns:
        float32 [N, L, P] in 0..1, the frames of a patch one after the other; silence is 0.

    Raises:
        UserError: the sounds do not have `num_samples` samples.
    """
    if sounds.shape[1] != config.num_samples:
        raise UserError(f"sounds of {sounds.shape[1]} samples, not of {config.num_samples}")
    transform, filters = _transform(config), _mel_filters(config)
    patches = np.empty((len(sounds), config.num_patches, config.patch_dim), np.float32)
    for start in range(0, len(sounds), _CHUNK):
        chunk = sounds[start : start + _CHUNK] / _FULL_SCALE
        power = filters @ np.square(np.abs(_stft(chunk, transform, config)))
        decibels = 10 * np.log10(np.maximum(power, 10 ** (LOW_DB / 10)))
        values = np.clip((decibels - LOW_DB) / (HIGH_DB - LOW_DB), 0, 1)
        patches[start : start + _CHUNK] = values.swapaxes(1, 2).reshape(
            len(chunk), *patches.shape[1:]
        )
    return patches


def log_mel_time_positions(config: LogMelConfig) -> np.ndarray:
    """Returns the time index of each log-mel patch, int32 [L, 1]."""
    return np.arange(config.num_patches, dtype=np.int32)[:, None]


def patches_to_spectrograms(patches: np.ndarray, config: LogMelConfig) -> np.ndarray:
    """Returns patches [N, L, P] rearranged to spectrograms, float [N, bins, frames]."""
    frames = patches.reshape(len(patches), -1, config.num_bins)
    return frames.swapaxes(1, 2)


def patches_to_waveforms(
    patches: np.ndarray, config: LogMelConfig, iterations: int = 30
) -> np.ndarray:
    """Returns int16 sounds reconstructed from log-mel patches; approximate, deterministic.

    Magnitudes by the iteration of Richardson and Lucy (1972), which stays positive and keeps
    proportions at any level; phases by Griffin and Lim (1984) with the momentum of Perraudin et
    al. (2013).

    Args:
        patches: [N, L, P]; values are clipped to 0..1.
        config: sizes.
        iterations: of the phase reconstruction.

    Returns:
        int16 [N, num_samples].
    """
    mels = patches_to_spectrograms(np.clip(patches, 0, 1), config).astype(np.float64)
    power = np.where(mels > 0, 10 ** ((LOW_DB + mels * (HIGH_DB - LOW_DB)) / 10), 0.0)
    magnitude = np.sqrt(_invert_mel_filters(power, _mel_filters(config)))
    sounds = _reconstruct_phases(magnitude, _transform(config), config, iterations)
    return np.clip(np.rint(sounds * _FULL_SCALE), -32768, 32767).astype(np.int16)


def _invert_mel_filters(power: np.ndarray, filters: np.ndarray, iterations: int = 30) -> np.ndarray:
    """Returns spectra [N, frequencies, frames] whose mel power is about `power`."""
    weights = np.maximum(filters.sum(0), 1e-9)[:, None]
    spectra = filters.T @ power / weights
    for _ in range(iterations):
        spectra = spectra * (filters.T @ (power / (filters @ spectra + 1e-20)) / weights)
    return spectra


def _reconstruct_phases(
    magnitude: np.ndarray, transform: ShortTimeFFT, config: LogMelConfig, iterations: int
) -> np.ndarray:
    """Returns sounds [N, samples] whose spectra have about these magnitudes [N, freq., frames]."""
    length = config.num_frames * config.hop_samples
    # The same initial phases for all sounds, so that a sound does not depend on its batch.
    phases = np.random.default_rng(0).random(magnitude.shape[1:])
    spectrum = magnitude * np.exp(2j * np.pi * phases)
    previous = np.zeros_like(spectrum)
    for _ in range(iterations):
        consistent = _stft(_istft(spectrum, transform, length), transform, config)
        extrapolated = consistent + 0.99 * (consistent - previous)
        spectrum = magnitude * np.exp(1j * np.angle(extrapolated))
        previous = consistent
    return _istft(spectrum, transform, length)[:, : config.num_samples]


def _stft(sounds: np.ndarray, transform: ShortTimeFFT, config: LogMelConfig) -> np.ndarray:
    return transform.stft(sounds, p0=0, p1=config.num_frames)


def _istft(spectrum: np.ndarray, transform: ShortTimeFFT, length: int) -> np.ndarray:
    # SciPy wants the frames that overlap the two ends, too; they are silent.
    before = -transform.p_min
    after = transform.p_max(length) - spectrum.shape[-1]
    padded = np.pad(spectrum, ((0, 0), (0, 0), (before, after)))
    return transform.istft(padded, k1=length)


@functools.cache
def _transform(config: LogMelConfig) -> ShortTimeFFT:
    window = hann(2 * round(FRAME_SECONDS * config.rate / 2), sym=False)
    # Scaled so that a full-scale sine has power 1 in its bin.
    return ShortTimeFFT(window * (2 / window.sum()), config.hop_samples, config.rate)


@functools.cache
def _mel_filters(config: LogMelConfig) -> np.ndarray:
    """Returns the triangular mel filters [bins, frequencies] (HTK's mel scale)."""
    banks = fbank.MelBanksOptions(num_bins=config.num_bins, low_freq=LOWEST_HZ, high_freq=0)
    frames = fbank.FrameExtractionOptions()
    frames.samp_freq = config.rate
    frames.frame_length_ms = 1000 * len(_transform(config).win) / config.rate
    frames.round_to_power_of_two = False
    return np.asarray(fbank.MelBanks(banks, frames).get_matrix(), np.float64)
