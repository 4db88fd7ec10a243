import numpy as np
import pytest

from fm.data.builders import arcade_clips
from fm.data.load import load
from fm.errors import UserError


def test_without_the_games_the_extra_is_named(monkeypatch, empty_cache):
    monkeypatch.setattr(arcade_clips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs the games of ale-py: pip install "fm\[arcade\]"'):
        load("arcade_clips")


def test_sessions_are_their_seeds():
    pytest.importorskip("ale_py")
    ale = arcade_clips._environment()
    first, again, other = (
        np.stack(list(arcade_clips._session(ale, "pong", seed))) for seed in (0, 0, 100)
    )
    assert first.shape == (10, 8, 32, 32, 1) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert not any((clip == own).all() for clip in other for own in first)
    assert all(np.ptp(clip, axis=0).any() for clip in first), "nothing moves"
    assert not {*arcade_clips.SESSIONS["train"]} & {*arcade_clips.SESSIONS["test"]}
