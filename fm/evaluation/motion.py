"""What is seen and how it moves in a clip, as numbers, without learning."""

import numpy as np

from fm.errors import UserError

# Pixels by which a frame is moved to look like the next, up, down and sideways.
REACH = 2
# Weighs 25 numbers of motion against thousands of pixels: rows of either are then about as long.
_GAIN = 10.0
# Of a pixel's range: what a sensor's noise changes.
_FLOOR = 1e-4
_CHUNK = 256


def motion_features(clips: np.ndarray) -> np.ndarray:
    """Pixels, absolute differences of successive frames, and how frames match when moved.

    The last are global block matching (Jain and Jain 1981): the mean squared difference between
    each frame, moved by up to `REACH` pixels, and the next, for each of 25 moves, against the mean
    over the moves. A linear classifier on pixels alone cannot see which way a thing goes that may
    be anywhere.

    Args:
        clips: uint8 [N, frames, height, width, channels].

    Returns:
        float32 [N, frames * P + (frames - 1) * P + 25], P values in a frame; pixels from 0 to 1.

    Raises:
        UserError: frames no larger than the moves.
    """
    if min(clips.shape[2:4]) <= 2 * REACH:
        raise UserError(
            f"frames of {clips.shape[2]}x{clips.shape[3]} are too small to match moved by {REACH}"
        )
    parts = [_features(clips[start : start + _CHUNK]) for start in range(0, len(clips), _CHUNK)]
    return np.concatenate(parts) if parts else _features(clips)


def _features(clips: np.ndarray) -> np.ndarray:
    N = len(clips)
    pixels = clips.astype(np.float32) / 255
    changes = np.abs(np.diff(pixels, axis=1))
    height, width = (side - 2 * REACH for side in clips.shape[2:4])
    now, after = pixels[:, :-1], pixels[:, 1:, REACH : REACH + height, REACH : REACH + width]
    misfits = [
        np.square(now[:, :, row : row + height, column : column + width] - after).mean((1, 2, 3, 4))
        for row in range(2 * REACH + 1)
        for column in range(2 * REACH + 1)
    ]
    misfit = np.stack(misfits, axis=1) + _FLOOR
    relative = _GAIN * (misfit / misfit.mean(1, keepdims=True) - 1)
    return np.concatenate([pixels.reshape(N, -1), changes.reshape(N, -1), relative], axis=1)
