"""Statistics of mel-frequency cepstral coefficients: what a sound is, in a few hundred numbers."""

from __future__ import annotations

import numpy as np
from scipy.fft import dct
from scipy.signal import savgol_filter

from fm.data.sounds import Frames, sound_pieces, spectrograms

COEFFICIENTS = 13
PARTS = 3
# Frames over which slopes are fitted: 144 ms.
_WINDOW = 9


def statistics(sounds: np.ndarray, rate: float) -> np.ndarray:
    """Mean and deviation of the coefficients and of their first and second slopes over time.

    Beside these of the whole sound, the mean of the coefficients in each of three equal parts, or
    the order in which a word's sounds come would not count.

    Args:
      sounds: int16 [N, samples].
      rate: in Hz.

    Returns:
      float64 [N, 13 * (6 + 3)].
    """
    frames = Frames(int(rate), sounds.shape[1])
    mels = spectrograms(sound_pieces(sounds, frames), frames).astype(np.float64)
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
