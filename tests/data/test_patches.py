import numpy as np
import pytest

from fm.data import patches as patching
from fm.errors import UserError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((8, 16, 16, 1), patching.TUBELET_SHAPE),
        ((6, 4, 9, 3), (3, 2, 3)),
        ((2, 5, 5, 1), (1, 5, 5)),
    ],
)
def test_tubelets_and_back(shape, size):
    given = RNG.integers(0, 256, (2, *shape), np.uint8)
    tubelets = patching.clips_to_tubelets(given, size)
    positions = patching.tubelet_positions(shape, size)
    a, b, c = size
    assert tubelets.dtype == np.uint8 and positions.dtype == np.int32
    assert tubelets.shape == (2, np.prod(shape[:3]) // (a * b * c), a * b * c * shape[3])
    np.testing.assert_array_equal(patching.tubelets_to_clips(tubelets, size, shape), given)
    for index, (time, row, column) in enumerate(positions * size):
        box = given[:, time : time + a, row : row + b, column : column + c]
        np.testing.assert_array_equal(tubelets[:, index], box.reshape(2, -1))


def test_positions_go_by_time_then_row_by_row():
    assert patching.tubelet_positions((4, 4, 8, 1), (2, 4, 4)).tolist() == [
        [0, 0, 0],
        [0, 0, 1],
        [1, 0, 0],
        [1, 0, 1],
    ]


def test_errors_name_the_sizes_of_clips():
    with pytest.raises(UserError, match="tubelets of 3x4x4 do not divide a clip of 8x16x16"):
        patching.clips_to_tubelets(np.zeros((1, 8, 16, 16, 1), np.uint8), (3, 4, 4))
    with pytest.raises(UserError, match="tubelets of 0x4x4"):
        patching.tubelet_positions((8, 16, 16, 1), (0, 4, 4))
    with pytest.raises(UserError, match="5 tubelets of 32 values are not a clip of 2x8x8"):
        patching.tubelets_to_clips(
            np.zeros((1, 5, 32), np.uint8), patching.TUBELET_SHAPE, (2, 8, 8, 1)
        )


@pytest.mark.parametrize(
    ("shape", "patch"), [((2, 8, 12, 3), 4), ((3, 6, 4, 1), 2), ((1, 5, 5, 1), 5)]
)
def test_patches_and_back(shape, patch):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    patches = patching.patchify(images, patch)
    _, height, width, channels = shape
    assert patches.dtype == np.uint8
    assert patches.shape == (shape[0], height * width // patch**2, patch**2 * channels)
    np.testing.assert_array_equal(patching.unpatchify(patches, patch, height, width), images)
    for index, (row, column) in enumerate(patching.patch_positions(height, width, patch)):
        top, left = row * patch, column * patch
        expected = images[:, top : top + patch, left : left + patch].reshape(shape[0], -1)
        np.testing.assert_array_equal(patches[:, index], expected)


@pytest.mark.parametrize(
    ("size", "side"),
    [
        *(((8, 8), 2), ((28, 28), 4), ((32, 32), 4), ((32, 16), 4), ((29, 29), None)),
        *(((48, 48), 4), ((64, 64), 4), ((96, 64), 8), ((128, 128), 8), ((256, 256), 16)),
        *(((62, 62), None), ((40, 8), 4), ((50, 50), 5)),
    ],
)
def test_larger_images_have_as_many_more_patches_as_pixels_up_to_256(size, side):
    assert patching.default_patch_side(*size) == side


@pytest.mark.parametrize("image_size", [0, -8, 4, 31, 37, 260, 264, 10**9])
def test_an_image_size_out_of_range_is_refused(image_size):
    with pytest.raises(UserError, match=rf"--image_size={image_size}: must be a multiple of 8 "):
        patching.check_image_size(image_size)


def test_positions_go_row_by_row():
    positions = patching.patch_positions(4, 6, 2)
    assert positions.dtype == np.int32
    assert positions.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_errors_name_the_sizes_of_images():
    with pytest.raises(UserError, match="patch size 3 does not divide an image of 8x9"):
        patching.patchify(np.zeros((1, 8, 9, 1), np.uint8), 3)
    with pytest.raises(UserError, match="patch size 0"):
        patching.patchify(np.zeros((1, 8, 9, 1), np.uint8), 0)
    with pytest.raises(UserError, match="5 patches of 4 values are not an image of 4x4"):
        patching.unpatchify(np.zeros((1, 5, 4), np.uint8), 2, 4, 4)
