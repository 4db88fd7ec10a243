import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fm.data import patches as pieces
from fm.data import tokenizer
from fm.errors import UserError

TOKENIZER = tokenizer.train(["some text to learn from"], 270)


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(1, 20))
def test_chunks(count, length):
    ids = np.arange(4, 4 + count, dtype=np.int32)
    found = pieces.token_chunks(ids, length, TOKENIZER)
    assert all(chunk.dtype == np.int32 and 1 <= len(chunk) <= length for chunk in found)
    assert all(len(chunk) == length for chunk in found[:-1])
    assert np.concatenate(found).tolist() == [TOKENIZER.bos, *ids, TOKENIZER.eos]


def test_text_pieces_keep_documents_in_order():
    texts = ["first document", "", "a second, longer document"]
    found = pieces.tokenize_chunks(TOKENIZER, texts, 8)
    starts = [index for index, piece in enumerate(found) if piece[0] == TOKENIZER.bos]
    ends = [index for index, piece in enumerate(found) if piece[-1] == TOKENIZER.eos]
    documents = [found[a : b + 1] for a, b in zip(starts, ends, strict=True)]
    assert [TOKENIZER.decode(np.concatenate(each)) for each in documents] == texts


@pytest.mark.parametrize(
    ("shape", "patch"), [((2, 8, 12, 3), 4), ((3, 6, 4, 1), 2), ((1, 5, 5, 1), 5)]
)
def test_patches_and_back(shape, patch):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    patches = pieces.patchify(images, patch)
    _, height, width, channels = shape
    assert patches.dtype == np.uint8
    assert patches.shape == (shape[0], height * width // patch**2, patch**2 * channels)
    np.testing.assert_array_equal(pieces.unpatchify(patches, patch, height, width), images)
    for index, (row, column) in enumerate(pieces.patch_positions(height, width, patch)):
        top, left = row * patch, column * patch
        expected = images[:, top : top + patch, left : left + patch].reshape(shape[0], -1)
        np.testing.assert_array_equal(patches[:, index], expected)


def test_positions_go_row_by_row():
    positions = pieces.patch_positions(4, 6, 2)
    assert positions.dtype == np.int32
    assert positions.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_errors_name_the_sizes():
    with pytest.raises(UserError, match="patch size 3 does not divide an image of 8x9"):
        pieces.patchify(np.zeros((1, 8, 9, 1), np.uint8), 3)
    with pytest.raises(UserError, match="patch size 0"):
        pieces.patchify(np.zeros((1, 8, 9, 1), np.uint8), 0)
    with pytest.raises(UserError, match="5 patches of 4 values are not an image of 4x4"):
        pieces.unpatchify(np.zeros((1, 5, 4), np.uint8), 2, 4, 4)
