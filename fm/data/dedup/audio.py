"""Near-duplicate sounds: copies up to loudness, a shift in time, or a little noise."""

import numpy as np

# Thresholds from synthesized words and recorded digits: copies with noise 20 dB below, of 8 bits or
# shifted correlate by 0.8 and more; of the distinct sounds the nearest two of one voice do by 0.64,
# of two voices by 0.55. A copy through a telephone's band, its phases moved, is not found.
MIN_SIMILARITY = 0.9
MIN_CORRELATION = 0.8
NUM_BANDS = 256

METHOD = (
    f"amplitude spectra of the whole sounds, in {NUM_BANDS} bands, with a cosine of at least "
    f"{MIN_SIMILARITY}, confirmed on the waveforms: correlation at the best shift in time at "
    f"least {MIN_CORRELATION}; high frequencies raised by 6 dB an octave in both"
)

_CHUNK = 256


def find_audio_duplicate_pairs(pretrain: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Returns (pretrain index, test index) of every pair of near-duplicate sounds, int64 [n, 2].

    `METHOD` is the rule.

    Args:
        pretrain: int16 [N, samples].
        test: the same, of any length, at the same rate.

    Returns:
        int64 [pairs, 2]: index into `pretrain`, index into `test`.
    """
    length = _fft_length(pretrain, test)
    similarity = _spectra(pretrain, length) @ _spectra(test, length).T
    candidates = np.argwhere(similarity >= MIN_SIMILARITY)
    found = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(candidates), _CHUNK):
        pairs = candidates[start : start + _CHUNK]
        correlations = paired_max_correlations(pretrain[pairs[:, 0]], test[pairs[:, 1]])
        found.append(pairs[correlations >= MIN_CORRELATION])
    return np.concatenate(found)


def paired_max_correlations(pretrain: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Returns the maximum over lags of the correlation of pretrain_NT[n] and test_NT[n], [N]."""
    length = _fft_length(pretrain, test)
    left, right = (_normalize(_pre_emphasis(each)) for each in (pretrain, test))
    product = np.fft.rfft(left, length) * np.conj(np.fft.rfft(right, length))
    return np.fft.irfft(product, length).max(1)


def _fft_length(pretrain: np.ndarray, test: np.ndarray) -> int:
    """Returns a power of two that holds two sounds end to end, so that no shift wraps around."""
    return 1 << (pretrain.shape[1] + test.shape[1] - 1).bit_length()


def _spectra(sounds: np.ndarray, length: int) -> np.ndarray:
    """Returns unit vectors float32 [N, bands] that depend on neither loudness nor onset."""
    bands = np.empty((len(sounds), NUM_BANDS), np.float32)
    edges = np.linspace(0, length // 2 + 1, NUM_BANDS, endpoint=False).astype(int)
    for start in range(0, len(sounds), _CHUNK):
        chunk = _pre_emphasis(sounds[start : start + _CHUNK])
        power = np.square(np.abs(np.fft.rfft(chunk, length)))
        bands[start : start + _CHUNK] = np.sqrt(np.add.reduceat(power, edges, axis=1))
    return _normalize(bands)


def _pre_emphasis(sounds: np.ndarray) -> np.ndarray:
    """Raises high frequencies; without it a voice's pitch would dominate."""
    return np.diff(sounds.astype(np.float32), axis=1, prepend=np.float32(0))


def _normalize(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
