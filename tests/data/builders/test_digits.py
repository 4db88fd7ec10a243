import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesClassifier

from fm.data import decontamination
from fm.data.builders import digits
from fm.data.datasets import subset
from fm.data.load import load
from fm.data.splitting import is_test


@pytest.fixture(scope="module")
def data(session_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FM_CACHE", str(session_cache))
        return load("moving_digits")


def clips(split):
    return split.clips(range(len(split))), split.labels


def test_what_it_holds(data):
    assert data.modality == "video" and data.classes == digits.MOTIONS
    assert data.info["shape"] == [8, 16, 16, 1] and data.info["rate"] == 8
    assert digits.MovingDigits.LICENSE == digits.Digits.LICENSE == "CC BY 4.0"
    assert (len(data.train), len(data.test)) == (2 * 1403, 2 * 394)
    for split in (data.train, data.test):
        counts = np.bincount(split.labels)
        assert len(counts) == 8 and counts.max() - counts.min() <= 1
    assert len({*data.train.ids, *data.test.ids}) == len(data.train) + len(data.test)


@pytest.mark.parametrize("made", [digits.MovingDigits, digits.MovingDigitFrames])
def test_digits_of_test_clips_are_in_no_training_clip(monkeypatch, made):
    """Each digit has its number in its first two pixels, and every drawing notes it."""
    numbered = [
        (digest, np.array([number % 256, number // 256] * 32).reshape(8, 8, 1), 0)
        for number, (digest, _, _) in enumerate(digits.load_digits())
    ]
    seen = {False: set(), True: set()}
    monkeypatch.setattr(digits, "load_digits", lambda: numbered)
    for test, noted in seen.items():

        def note(digit, *_, noted=noted):
            noted.add(int(digit[0, 0]) + 256 * int(digit[0, 1]))
            return np.zeros((8, 16, 16))

        monkeypatch.setattr(digits, "_render", note)
        builder = made.__new__(made)
        assert list(builder._generate_examples((), test))
        own = {n for n, (digest, _, _) in enumerate(numbered) if is_test(digest, 0.2) == test}
        assert noted == own
    assert not seen[False] & seen[True]


@pytest.mark.slow
def test_frames_are_clips_at_half_size(session_cache, monkeypatch, data):
    monkeypatch.setenv("FM_CACHE", str(session_cache))
    frames = load("moving_digit_frames")
    assert (frames.modality, frames.info["shape"], frames.classes) == ("image", [8, 8, 1], ())
    assert (len(frames.train), len(frames.test)) == (4 * 1403, 4 * 394)
    found = {image.tobytes() for image in frames.test.inputs(range(len(frames.test)))}
    for clip in data.test.clips(range(5)):
        for frame in clip[[0, 4], ..., 0].astype(float):
            half = (frame[::2] + frame[1::2])[:, ::2] + (frame[::2] + frame[1::2])[:, 1::2]
            assert np.round(half / 4).astype(np.uint8).tobytes() in found


def test_a_motion_backwards_is_its_partner():
    for label in range(0, 8, 2):
        there = digits.motion_path(label, np.random.default_rng(label))
        back = digits.motion_path(label + 1, np.random.default_rng(label))
        for ours, theirs in zip(there, back, strict=True):
            assert ours[0] == theirs[0]
        # From one start the two go opposite ways, as fast, round a plane 16 pixels wide.
        if label != 4:  # An orbit's steps turn.
            steps = [np.diff(np.array(each[:2])) for each in (there, back)]
            np.testing.assert_allclose((steps[0] + steps[1]) % 16 % 16, 0, atol=1e-9)
    growing, shrinking = (digits.motion_path(k, np.random.default_rng(0))[2] for k in (6, 7))
    assert np.sum(np.diff(growing) < 0) <= 1 and np.sum(np.diff(shrinking) > 0) <= 1


def test_neither_a_frame_nor_the_mean_of_all_tells_a_motion_from_its_partner(data):
    (train, labels), (test, truth) = clips(data.train), clips(data.test)

    def accuracy(view):
        model = ExtraTreesClassifier(20, random_state=0).fit(view(train), labels)
        return model.predict(view(test))

    chance, noise = 1 / 8, np.sqrt(1 / 8 * 7 / 8 / len(truth))
    for number in (0, 7):
        found = accuracy(lambda each, n=number: each[:, n].reshape(len(each), -1))
        assert abs(np.mean(found == truth) - chance) < 4 * noise
    found = accuracy(lambda each: each.mean(1).reshape(len(each), -1))
    grouped = found // 2 == truth // 2
    assert np.mean(grouped) > 0.5, "the mean frame does show along which way"
    within = np.mean((found == truth)[grouped])
    assert abs(within - 0.5) < 4 * 0.5 / np.sqrt(grouped.sum())


def test_distinct_clips_are_not_flagged(data):
    some = subset(data.train, range(600)), subset(data.test, range(400))
    found = decontamination.find_duplicates(*some, "video")
    assert (found.num_checked, found.num_found) == (400, 0)
