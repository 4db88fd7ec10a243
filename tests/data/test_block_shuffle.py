import dataclasses

import numpy as np
import pytest

from fm.data.block_shuffle import shuffle_blocks, with_shuffled_blocks
from fm.errors import UserError
from tests.study.helpers_study import dataset, images


def test_blocks_stay_whole_and_only_their_places_change():
    image = np.arange(36).reshape(6, 6, 1)
    shuffled = shuffle_blocks(image, 3, seed=0, index=2)
    assert shuffled.shape == image.shape
    blocks = {shuffled[y : y + 3, x : x + 3].tobytes() for y in (0, 3) for x in (0, 3)}
    assert blocks == {image[y : y + 3, x : x + 3].tobytes() for y in (0, 3) for x in (0, 3)}
    assert not np.array_equal(shuffled, image)
    np.testing.assert_array_equal(shuffle_blocks(image, 6, seed=0, index=2), image)


def test_each_image_of_a_data_set_has_its_own_order_every_time_the_same():
    data = dataset(make=images)
    shuffled = with_shuffled_blocks(data, 4)
    again = shuffled.train.images(range(len(data.train)))
    np.testing.assert_array_equal(shuffled.train.images(range(len(data.train))), again)
    # Read in another order or alone an image is the same.
    np.testing.assert_array_equal(shuffled.train.images([7, 3]), again[[7, 3]])
    for n, image in enumerate(data.train.images([0, 1, 2])):
        np.testing.assert_array_equal(again[n], shuffle_blocks(image, 4, 0, n))
    assert shuffled.train.ids == data.train.ids


def test_what_cannot_be_shuffled_is_refused():
    data = dataset(make=images)
    with pytest.raises(UserError, match="side 3 do not cover images of 8x8"):
        with_shuffled_blocks(data, 3)
    with pytest.raises(UserError, match="in images only"):
        with_shuffled_blocks(dataclasses.replace(data, modality="text"), 4)
