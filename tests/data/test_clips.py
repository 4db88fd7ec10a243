import io

import numpy as np
import pytest
from PIL import Image

from fm.data import patches
from fm.errors import UserError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((8, 16, 16, 1), patches.TUBELET_SHAPE), ((6, 4, 9, 3), (3, 2, 3)), ((2, 5, 5, 1), (1, 5, 5))],
)
def test_tubelets_and_back(shape, size):
    given = RNG.integers(0, 256, (2, *shape), np.uint8)
    pieces = patches.clips_to_tubelets(given, size)
    positions = patches.tubelet_positions(shape, size)
    a, b, c = size
    assert pieces.dtype == np.uint8 and positions.dtype == np.int32
    assert pieces.shape == (2, np.prod(shape[:3]) // (a * b * c), a * b * c * shape[3])
    np.testing.assert_array_equal(patches.tubelets_to_clips(pieces, size, shape), given)
    for index, (time, row, column) in enumerate(positions * size):
        box = given[:, time : time + a, row : row + b, column : column + c]
        np.testing.assert_array_equal(pieces[:, index], box.reshape(2, -1))


def test_positions_go_by_time_then_row_by_row():
    assert patches.tubelet_positions((4, 4, 8, 1), (2, 4, 4)).tolist() == [
        [0, 0, 0],
        [0, 0, 1],
        [1, 0, 0],
        [1, 0, 1],
    ]


def test_errors_name_the_sizes():
    with pytest.raises(UserError, match="tubelets of 3x4x4 do not divide a clip of 8x16x16"):
        patches.clips_to_tubelets(np.zeros((1, 8, 16, 16, 1), np.uint8), (3, 4, 4))
    with pytest.raises(UserError, match="tubelets of 0x4x4"):
        patches.tubelet_positions((8, 16, 16, 1), (0, 4, 4))
    with pytest.raises(UserError, match="5 tubelets of 32 values are not a clip of 2x8x8"):
        patches.tubelets_to_clips(
            np.zeros((1, 5, 32), np.uint8), patches.TUBELET_SHAPE, (2, 8, 8, 1)
        )
    with pytest.raises(UserError, match="GIF, PNG or WEBP, not MP4"):
        patches.encode_animation(np.zeros((2, 4, 4, 1), np.uint8), 8, image_format="MP4")


@pytest.mark.parametrize(
    ("form", "channels", "lasting"), [("GIF", 1, 120), ("PNG", 3, 125), ("WEBP", 3, 125)]
)
def test_animations_play_what_was_given(form, channels, lasting):
    clip = RNG.integers(0, 256, (3, 4, 6, channels), np.uint8)
    played = Image.open(io.BytesIO(patches.encode_animation(clip, 8.0, scale=2, image_format=form)))
    assert played.format == form and played.n_frames == 3 and played.info["loop"] == 0
    for number, frame in enumerate(clip.repeat(2, axis=1).repeat(2, axis=2)):
        played.seek(number)
        played.load()
        assert played.info["duration"] == lasting
        shown = np.asarray(played.convert("L" if channels == 1 else "RGB"))
        np.testing.assert_array_equal(shown.reshape(frame.shape), frame)
