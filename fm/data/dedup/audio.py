"""Sounds that are copies of each other but for loudness, a shift in time, or a little noise."""

import numpy as np

# The thresholds are from synthesised words and recorded digits: copies with noise 20 dB below, of
# 8 bits or shifted correlate by 0.8 and more; of the distinct sounds the nearest two of one voice
# do by 0.64, of two voices by 0.55. A copy through a telephone's band, its phases moved, is not
# found.
MIN_SIMILARITY = 0.9
MIN_CORRELATION = 0.8
BANDS = 256

METHOD = (
    f"amplitude spectra of the whole sounds, in {BANDS} bands, with a cosine of at least "
    f"{MIN_SIMILARITY}, confirmed on the waveforms: correlation at the best shift in time at "
    f"least {MIN_CORRELATION}; high frequencies raised by 6 dB an octave in both"
)

_CHUNK = 256


def find_audio_duplicates(pretrain: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Finds the pairs that match by `METHOD`.

    Args:
        pretrain: int16 [N, samples].
        test: the same, of any length, at the same rate.

    Returns:
        int64 [pairs, 2]: index into `pretrain`, index into `test`.
    """
    length = _room(pretrain, test)
    own, others = _spectra(pretrain, length), _spectra(test, length)
    close = np.argwhere(own @ others.T >= MIN_SIMILARITY)
    found = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(close), _CHUNK):
        pairs = close[start : start + _CHUNK]
        alike = max_correlations(pretrain[pairs[:, 0]], test[pairs[:, 1]]) >= MIN_CORRELATION
        found.append(pairs[alike])
    return np.concatenate(found)


def max_correlations(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the highest correlation, over shifts, of each pair [pairs, samples], in 0..1."""
    length = _room(own, others)
    one, other = (_normed(_emphasised(each)) for each in (own, others))
    product = np.fft.rfft(one, length) * np.conj(np.fft.rfft(other, length))
    return np.fft.irfft(product, length).max(1)


def _room(own: np.ndarray, others: np.ndarray) -> int:
    """Returns a power of two that holds one of each end to end, so that no shift wraps round."""
    return 1 << (own.shape[1] + others.shape[1] - 1).bit_length()


def _spectra(sounds: np.ndarray, length: int) -> np.ndarray:
    """Returns float32 [N, bands] of length 1: the same whenever a sound begins, however loud."""
    bands = np.empty((len(sounds), BANDS), np.float32)
    edges = np.linspace(0, length // 2 + 1, BANDS, endpoint=False).astype(int)
    for start in range(0, len(sounds), _CHUNK):
        some = _emphasised(sounds[start : start + _CHUNK])
        power = np.square(np.abs(np.fft.rfft(some, length)))
        bands[start : start + _CHUNK] = np.sqrt(np.add.reduceat(power, edges, axis=1))
    return _normed(bands)


def _emphasised(sounds: np.ndarray) -> np.ndarray:
    """Returns the sounds with high frequencies raised, or a voice's pitch alone would count."""
    return np.diff(sounds.astype(np.float32), axis=1, prepend=np.float32(0))


def _normed(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
