import numpy as np
import pytest

from fm.data.media.video import motion_features
from fm.errors import UserError
from fm.evaluation import baselines

RNG = np.random.default_rng(0)


def moving(label, count):
    """Noise that goes right (0) or left (1) by a pixel a frame, over an edgeless plane."""
    scene = RNG.integers(0, 256, (count, 9, 10, 1), np.uint8)
    way = 1 if label == 0 else -1
    return np.stack([np.roll(scene, way * time, axis=2) for time in range(4)], axis=1)


def test_features_are_pixels_changes_and_misfits():
    clips = RNG.integers(0, 256, (3, 4, 9, 10, 1), np.uint8)
    clips[1] = moving(0, 1)[0]
    features = motion_features(clips)
    pixels, changes, misfits = np.split(features, [4 * 90, 7 * 90], axis=1)
    scaled = clips / 255
    np.testing.assert_allclose(pixels, scaled.reshape(3, -1), atol=1e-6)
    np.testing.assert_allclose(
        changes, np.abs(scaled[:, 1:] - scaled[:, :-1]).reshape(3, -1), atol=1e-6
    )
    expected = np.zeros((3, 5, 5))
    for down in range(-2, 3):
        for right in range(-2, 3):
            moved = np.roll(scaled[:, :-1], (down, right), (2, 3))
            error = np.square(moved - scaled[:, 1:])[:, :, 2:-2, 2:-2]
            expected[:, 2 - down, 2 - right] = error.mean((1, 2, 3, 4)) + 1e-4
    expected = 10 * (expected / expected.mean((1, 2), keepdims=True) - 1)
    np.testing.assert_allclose(misfits, expected.reshape(3, -1), atol=1e-3)
    assert divmod(int(misfits[1].argmin()), 5) == (2, 1), "it went right by one"


def test_a_still_clip_matches_whichever_way_it_is_moved():
    assert not motion_features(np.full((1, 4, 9, 10, 1), 7, np.uint8))[0, 7 * 90 :].any()


def test_the_baseline_tells_ways_apart_that_share_their_frames():
    clips = np.concatenate([moving(label, 40) for label in (0, 1)])
    labels = np.repeat([0, 1], 40)
    train = np.arange(80) % 2 == 0
    config = {"C": 0.01}
    prepared = baselines.prepare_inputs("video", clips)
    fitted = baselines.fit("video", prepared[train], labels[train], config)
    assert np.mean(fitted.predict(prepared[~train]) == labels[~train]) == 1
    raw = baselines.fit("video", clips[train], labels[train], config)
    np.testing.assert_array_equal(raw.predict(clips[~train]), fitted.predict(prepared[~train]))


def test_frames_too_small_are_named():
    with pytest.raises(UserError, match="frames of 4x9 are too small"):
        motion_features(np.zeros((1, 4, 4, 9, 1), np.uint8))
