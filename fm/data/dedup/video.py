"""Clips that are copies of each other but for compression, brightness, noise or a shift in time."""

import numpy as np

from fm.data.dedup.image import (
    MAX_BITS,
    MAX_BRIGHTNESS_GAP,
    MAX_DIFFERENCE,
    is_similar,
    perceptual_hashes,
    to_gray,
)

# Two clips of one scene share all but what moves, which images' rule would not see.
MOST_MOVING_DIFFERENCE = 0.5
_STILL = 2.0

METHOD = (
    f"perceptual hashes of a frame within {MAX_BITS} of 64 bits, confirmed on the grey pixels of "
    "at least half of the frames, those that overlap in time: mean brightness within "
    f"{MAX_BRIGHTNESS_GAP:.0f} of 255, RMS difference apart from it at most {MAX_DIFFERENCE} of the "
    "test clip's contrast, and RMS difference of what changes over time at most "
    f"{MOST_MOVING_DIFFERENCE} of its own (or {_STILL:.0f} of 255)"
)

_CHUNK = 256
_PAIRS = 512


def find_video_duplicates(pretrain: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Finds the pairs that match by `METHOD`; hashing, 0.13 ms a frame, takes most of the time.

    Args:
        pretrain: uint8 [N, frames, height, width, channels].
        test: the same, of any number and size of frames; the others are resized to it.

    Returns:
        int64 [pairs, 2]: index into `pretrain`, index into `test`.
    """
    own_frames, test_frames = pretrain.shape[1], test.shape[1]
    own_grey, test_grey = _grey(pretrain, test), _grey(test, test)
    middle = test_frames // 2
    # Of two neighbours one meets every second frame, by whatever time the clips are apart.
    test_hashes = {at: perceptual_hashes(test[:, at]) for at in (middle - 1, middle)}
    found = [np.zeros((0, 2), np.int64)]
    for own_at in range(0, own_frames, 2):
        own_hashes = perceptual_hashes(pretrain[:, own_at])
        for test_at, of_test in test_hashes.items():
            shift = own_at - test_at
            first, last = max(0, -shift), min(test_frames, own_frames - shift)
            if 2 * (last - first) < test_frames:
                continue
            for pairs in _close(own_hashes, of_test):
                own = own_grey[pairs[:, 0], first + shift : last + shift]
                found.append(pairs[_alike(own, test_grey[pairs[:, 1], first:last])])
    return np.unique(np.concatenate(found), axis=0)


def _close(own: np.ndarray, test: np.ndarray) -> list[np.ndarray]:
    """Returns pairs whose hashes are within `MOST_BITS`, int64 [at most _PAIRS, 2] each."""
    found = []
    for start in range(0, len(test), _CHUNK):
        differing = test[start : start + _CHUNK, None] ^ own
        close = np.argwhere(np.bitwise_count(differing) <= MAX_BITS)
        pairs = np.stack([close[:, 1], close[:, 0] + start], axis=1)
        found += [pairs[first : first + _PAIRS] for first in range(0, len(pairs), _PAIRS)]
    return found


def _alike(own: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Compares grey clips pairwise, [pairs, frames, height * width] each; returns bool [pairs]."""
    pairs = len(own)
    whole = is_similar(own.reshape(pairs, -1), test.reshape(pairs, -1))
    own_moving, test_moving = (each - each.mean(1, keepdims=True) for each in (own, test))
    difference = np.sqrt(np.square(own_moving - test_moving).mean((1, 2)))
    most = np.maximum(_STILL, MOST_MOVING_DIFFERENCE * test_moving.std((1, 2)))
    return whole & (difference <= most)


def _grey(clips: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Returns uint8 [N, frames, height * width], grey and of the size of the clips `like`."""
    frames = clips.reshape(-1, *clips.shape[2:])
    return to_gray(frames, (0, *like.shape[2:])).reshape(*clips.shape[:2], -1)
