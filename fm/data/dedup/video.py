"""Near-duplicate clips: copies up to compression, brightness, noise or a shift in time."""

import numpy as np

from fm.data.dedup.image import (
    MAX_BITS,
    MAX_BRIGHTNESS_GAP,
    MAX_DIFFERENCE,
    are_similar,
    candidate_pairs,
    pairs_at_once,
    perceptual_hashes,
    resize_to_gray,
)

# Two clips of one scene differ only in what moves, which the rule for images hardly sees.
MAX_MOTION_DIFFERENCE = 0.5
_STILL = 2.0

METHOD = (
    f"perceptual hashes of a frame within {MAX_BITS} of 64 bits, confirmed on the gray pixels of "
    "at least half of the frames, those that overlap in time: mean brightness within "
    f"{MAX_BRIGHTNESS_GAP:.0f} of 255, RMS difference apart from it at most {MAX_DIFFERENCE} of "
    "the test clip's contrast, and RMS difference of what changes over time at most "
    f"{MAX_MOTION_DIFFERENCE} of its own (or {_STILL:.0f} of 255)"
)

_MAX_PAIRS = 512


def find_video_duplicate_pairs(pretrain: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Returns (pretrain index, test index) of every pair of near-duplicate clips, int64 [n, 2].

    `METHOD` is the rule. Hashing, 0.13 ms a frame, takes most of the time.

    Args:
        pretrain: uint8 [N, frames, height, width, channels].
        test: the same, of any number and size of frames; the pretraining frames are resized to it.

    Returns:
        int64 [pairs, 2]: index into `pretrain`, index into `test`.
    """
    pretrain_frames, test_frames = pretrain.shape[1], test.shape[1]
    pretrain_gray, test_gray = _gray_frames(pretrain, test), _gray_frames(test, test)
    max_pairs = pairs_at_once(_MAX_PAIRS, test_gray[0].size if len(test_gray) else 1)
    middle = test_frames // 2
    # Every second pretraining frame meets one of two neighboring test frames, whatever the shift.
    test_hashes = {at: perceptual_hashes(test[:, at]) for at in (middle - 1, middle)}
    found = [np.zeros((0, 2), np.int64)]
    for pretrain_at in range(0, pretrain_frames, 2):
        pretrain_hashes = perceptual_hashes(pretrain[:, pretrain_at])
        for test_at, hashes in test_hashes.items():
            shift = pretrain_at - test_at
            first, last = max(0, -shift), min(test_frames, pretrain_frames - shift)
            if 2 * (last - first) < test_frames:
                continue
            for pairs in candidate_pairs(pretrain_hashes, hashes, max_pairs):
                overlap = pretrain_gray[pairs[:, 0], first + shift : last + shift]
                found.append(pairs[_is_similar_clip(overlap, test_gray[pairs[:, 1], first:last])])
    return np.unique(np.concatenate(found), axis=0)


def _is_similar_clip(pretrain: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Compares gray clips [pairs, frames, height * width] pairwise; returns bool [pairs]."""
    pairs = len(pretrain)
    whole = are_similar(pretrain.reshape(pairs, -1), test.reshape(pairs, -1))
    pretrain_motion, test_motion = (each - each.mean(1, keepdims=True) for each in (pretrain, test))
    difference = np.sqrt(np.square(pretrain_motion - test_motion).mean((1, 2)))
    limit = np.maximum(_STILL, MAX_MOTION_DIFFERENCE * test_motion.std((1, 2)))
    return whole & (difference <= limit)


def _gray_frames(clips: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Returns uint8 [N, frames, height * width], in the frame size of the clips `like`."""
    frames = clips.reshape(-1, *clips.shape[2:])
    return resize_to_gray(frames, (0, *like.shape[2:])).reshape(*clips.shape[:2], -1)
