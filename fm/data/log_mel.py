"""Sounds to pieces, log-mel frames, and back to a waveform.

The short-time Fourier transform is SciPy's, the mel filters are kaldi-native-fbank's (half a
megabyte, no dependencies, 10 ms to import; librosa comes with 210 MB of numba and LLVM, and
compiles for 44 s on its first transform).

A frame is a power spectrum of 32 ms, seen through the filters, in dB relative to a sine of full
scale, mapped from -90..0 dB to 0..1 and clipped. A new one begins every 16 ms: 62.5 frames/s.
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
_FULL_SCALE = 32768.0
_CHUNK = 256
# A mel spectrum changes little from piece to piece: 2 x 40 numbers, 31 pieces a second.
NUM_BINS = 40
FRAMES_PER_PATCH = 2


@dataclasses.dataclass(frozen=True)
class LogMelConfig:
    """How sounds are cut into frames and pieces.

    Attributes:
        rate: of the sounds, in Hz.
        num_samples: of every sound.
        num_bins: mel filters, from 20 Hz to half the rate.
        frames_per_patch: frames in a piece.
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
        """Frames in a sound, whole pieces of them."""
        return self.num_patches * self.frames_per_patch

    @property
    def num_patches(self) -> int:
        """Pieces in a sound (L)."""
        return -(-self.num_samples // (self.hop_samples * self.frames_per_patch))

    @property
    def patch_dim(self) -> int:
        """Numbers in a piece (P)."""
        return self.num_bins * self.frames_per_patch


def log_mel_patches(sounds: np.ndarray, frames: LogMelConfig) -> np.ndarray:
    """Cuts sounds into pieces of log-mel frames.

    Args:
        sounds: int16 [N, samples], as `frames` says.
        frames: how.

    Returns:
        float32 [N, L, P] in 0..1, a piece's own frames one after the other; silence is 0.

    Raises:
        UserError: the sounds are not as long as `frames` says.
    """
    if sounds.shape[1] != frames.num_samples:
        raise UserError(f"sounds of {sounds.shape[1]} samples, not of {frames.num_samples}")
    transform, filters = _transform(frames), _filters(frames)
    pieces = np.empty((len(sounds), frames.num_patches, frames.patch_dim), np.float32)
    for start in range(0, len(sounds), _CHUNK):
        some = sounds[start : start + _CHUNK] / _FULL_SCALE
        power = filters @ np.square(np.abs(_analysed(some, transform, frames)))
        decibels = 10 * np.log10(np.maximum(power, 10 ** (LOW_DB / 10)))
        values = np.clip((decibels - LOW_DB) / (HIGH_DB - LOW_DB), 0, 1)
        pieces[start : start + _CHUNK] = values.swapaxes(1, 2).reshape(len(some), *pieces.shape[1:])
    return pieces


def log_mel_positions(frames: LogMelConfig) -> np.ndarray:
    """Returns when each piece is, counted in pieces, int32 [L, 1]."""
    return np.arange(frames.num_patches, dtype=np.int32)[:, None]


def patches_to_spectrograms(pieces: np.ndarray, frames: LogMelConfig) -> np.ndarray:
    """Puts pieces [N, L, P] back into log-mel spectrograms [N, bins, frames], to look at."""
    whole = pieces.reshape(len(pieces), -1, frames.num_bins)
    return whole.swapaxes(1, 2)


def patches_to_waveforms(
    pieces: np.ndarray, frames: LogMelConfig, iterations: int = 30
) -> np.ndarray:
    """Makes sounds whose log-mel frames are about these pieces, seeded.

    Spectra by Richardson and Lucy's iteration (1972), positive and right in proportion however
    faint; phases by Griffin and Lim (1984) with the momentum of Perraudin et al. (2013).

    Args:
        pieces: [N, L, P]; values are clipped to 0..1.
        frames: how the pieces were cut.
        iterations: of finding phases.

    Returns:
        int16 [N, samples].
    """
    mels = patches_to_spectrograms(np.clip(pieces, 0, 1), frames).astype(np.float64)
    power = np.where(mels > 0, 10 ** ((LOW_DB + mels * (HIGH_DB - LOW_DB)) / 10), 0.0)
    magnitude = np.sqrt(_unfiltered(power, _filters(frames)))
    sounds = _phased(magnitude, _transform(frames), frames, iterations)
    return np.clip(np.rint(sounds * _FULL_SCALE), -32768, 32767).astype(np.int16)


def _unfiltered(power: np.ndarray, filters: np.ndarray, iterations: int = 30) -> np.ndarray:
    """Returns spectra [N, frequencies, frames] that the filters turn into about this power."""
    weights = np.maximum(filters.sum(0), 1e-9)[:, None]
    spectra = filters.T @ power / weights
    for _ in range(iterations):
        spectra = spectra * (filters.T @ (power / (filters @ spectra + 1e-20)) / weights)
    return spectra


def _phased(
    magnitude: np.ndarray, transform: ShortTimeFFT, frames: LogMelConfig, iterations: int
) -> np.ndarray:
    """Returns [N, samples] whose spectra [N, frequencies, frames] come near these magnitudes."""
    length = frames.num_frames * frames.hop_samples
    # One draw for all, so that a sound does not depend on what others are made with it.
    phases = np.random.default_rng(0).random(magnitude.shape[1:])
    spectrum = magnitude * np.exp(2j * np.pi * phases)
    before = np.zeros_like(spectrum)
    for _ in range(iterations):
        consistent = _analysed(_synthesised(spectrum, transform, length), transform, frames)
        ahead = consistent + 0.99 * (consistent - before)
        spectrum = magnitude * np.exp(1j * np.angle(ahead))
        before = consistent
    return _synthesised(spectrum, transform, length)[:, : frames.num_samples]


def _analysed(sounds: np.ndarray, transform: ShortTimeFFT, frames: LogMelConfig) -> np.ndarray:
    return transform.stft(sounds, p0=0, p1=frames.num_frames)


def _synthesised(spectrum: np.ndarray, transform: ShortTimeFFT, length: int) -> np.ndarray:
    # The frames that reach over the sound's two ends are silent, as where it came from.
    before = -transform.p_min
    after = transform.p_max(length) - spectrum.shape[-1]
    padded = np.pad(spectrum, ((0, 0), (0, 0), (before, after)))
    return transform.istft(padded, k1=length)


@functools.cache
def _transform(frames: LogMelConfig) -> ShortTimeFFT:
    window = hann(2 * round(FRAME_SECONDS * frames.rate / 2), sym=False)
    # A sine of full scale has power 1 in its bin.
    return ShortTimeFFT(window * (2 / window.sum()), frames.hop_samples, frames.rate)


@functools.cache
def _filters(frames: LogMelConfig) -> np.ndarray:
    """Returns the triangular mel filters [bins, frequencies] (HTK's scale)."""
    banks = fbank.MelBanksOptions(num_bins=frames.num_bins, low_freq=LOWEST_HZ, high_freq=0)
    cut = fbank.FrameExtractionOptions()
    cut.samp_freq = frames.rate
    cut.frame_length_ms = 1000 * len(_transform(frames).win) / frames.rate
    cut.round_to_power_of_two = False
    return np.asarray(fbank.MelBanks(banks, cut).get_matrix(), np.float64)
