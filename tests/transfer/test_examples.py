import numpy as np
import pytest

from fm.adaptation.batching import continuous_examples, image_examples, take, text_examples
from fm.data import tokenizer as bpe
from fm.data.layouts import Layout
from fm.data.log_mel import LogMelConfig, log_mel_patches


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train(["a few words to learn from, again and again"] * 3, bpe.MIN_VOCAB_SIZE)


def test_text_rows_hold_a_text_in_windows_side_by_side(tokenizer):
    rows = text_examples(tokenizer, ["abcdefgh", "x", "y" * 50], length=5, windows=2)
    a, x = tokenizer.encode(["abcdefgh"])[0], tokenizer.encode(["x"])[0]
    bos, eos, pad = tokenizer.bos, tokenizer.eos, tokenizer.pad
    assert rows["tokens"].tolist()[:2] == [
        [bos, *a[:8], eos],
        [bos, *x, eos, *[pad] * 7],
    ]
    assert rows["segments"].tolist() == [[1] * 5 + [2] * 5, [1] * 3 + [0] * 7, [1] * 5 + [2] * 5]
    assert rows["positions"].tolist() == [[0, 1, 2, 3, 4] * 2] * 3
    assert {value.dtype for value in rows.values()} == {np.dtype(np.int32)}


def test_what_no_text_reaches_is_cut_off(tokenizer):
    texts = ["a b", "c" * 30]
    short = text_examples(tokenizer, texts, length=64, windows=2)
    assert short["tokens"].shape == (2, 32)
    longer = text_examples(tokenizer, [*texts, "d" * 200], length=64, windows=2)
    assert longer["tokens"].shape == (3, 128)
    assert all(np.array_equal(short[key], longer[key][:2, :32]) for key in short)


def test_image_rows_hold_the_patches_and_where_they_lie():
    images = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1)
    rows = image_examples(images, 2)
    assert rows["image"][0].tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]
    assert rows["positions"].tolist() == [[[0, 0], [0, 1], [1, 0], [1, 1]]] * 2
    assert rows["segments"].tolist() == [[1] * 4] * 2


def test_rows_of_sounds_hold_the_pieces_and_when_they_are():
    sounds = np.random.default_rng(0).integers(-9000, 9000, (2, 700)).astype(np.int16)
    rows = continuous_examples(sounds, Layout("audio", (700,), (40, 2), 8000.0))
    np.testing.assert_array_equal(rows["audio"], log_mel_patches(sounds, LogMelConfig(8000, 700)))
    assert rows["audio"].shape == (2, 3, 80) and rows["audio"].dtype == np.float32
    assert rows["positions"].tolist() == [[[0], [1], [2]]] * 2
    assert rows["segments"].tolist() == [[1] * 3] * 2


def test_rows_of_clips_hold_the_tubelets_and_where_they_lie():
    clips = np.arange(2 * 2 * 2 * 4, dtype=np.uint8).reshape(2, 2, 2, 4, 1)
    rows = continuous_examples(clips, Layout("video", (2, 2, 4, 1), (2, 2, 2)))
    assert rows["video"][0].tolist() == [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]
    assert rows["positions"].tolist() == [[[0, 0, 0], [0, 0, 1]]] * 2
    assert rows["segments"].tolist() == [[1] * 2] * 2


def test_take_takes_rows_of_every_array():
    rows = image_examples(np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2, 1), 1)
    taken = take(rows, np.array([2, 0]))
    assert taken.keys() == rows.keys()
    assert all(np.array_equal(taken[key], rows[key][[2, 0]]) for key in rows)
