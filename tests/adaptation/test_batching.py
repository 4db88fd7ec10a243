import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fm.adaptation import batching
from fm.adaptation import batching as module
from fm.adaptation.batching import (
    continuous_examples,
    image_examples,
    map_batches,
    map_bucketed,
    take,
    text_examples,
)
from fm.data import tokenizer as bpe
from fm.data.log_mel import LogMelConfig, log_mel_patches
from fm.data.media import PatchLayout
from fm.errors import UserError
from tests.adaptation.helpers_models import text


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train(["a few words to learn from, again and again"] * 3, bpe.MIN_VOCAB_SIZES["bpe"])


def test_text_rows_hold_a_text_in_windows_side_by_side(tokenizer):
    rows = text_examples(tokenizer, ["abcdefgh", "x", "y" * 50], seq_len=5, num_windows=2)
    a, x = tokenizer.encode(["abcdefgh"])[0], tokenizer.encode(["x"])[0]
    bos, eos, pad = tokenizer.bos, tokenizer.eos, tokenizer.pad
    assert rows["tokens"].tolist()[:2] == [
        [bos, *a[:8], eos],
        [bos, *x, eos, *[pad] * 7],
    ]
    assert rows["segments"].tolist() == [[1] * 5 + [2] * 5, [1] * 3 + [0] * 7, [1] * 5 + [2] * 5]
    assert rows["positions"].tolist() == [[0, 1, 2, 3, 4] * 2] * 3
    assert {value.dtype for value in rows.values()} == {np.dtype(np.int32)}


def test_a_longer_text_keeps_its_end_of_text_if_asked(tokenizer):
    texts = ["abcdefgh", "y" * 50]
    cut = text_examples(tokenizer, texts, seq_len=5, num_windows=1, keep_eos=True)
    a = tokenizer.encode(texts)[0]
    assert cut["tokens"][0].tolist() == [tokenizer.bos, *a[:3], tokenizer.eos]
    whole = text_examples(tokenizer, ["x"], seq_len=5, num_windows=1)
    kept = text_examples(tokenizer, ["x"], seq_len=5, num_windows=1, keep_eos=True)
    assert np.array_equal(whole["tokens"], kept["tokens"])


def test_what_no_text_reaches_is_cut_off(tokenizer):
    texts = ["a b", "c" * 30]
    short = text_examples(tokenizer, texts, seq_len=64, num_windows=2)
    assert short["tokens"].shape == (2, 32)
    longer = text_examples(tokenizer, [*texts, "d" * 200], seq_len=64, num_windows=2)
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
    rows = continuous_examples(sounds, PatchLayout("audio", (700,), (40, 2), 8000.0))
    np.testing.assert_array_equal(rows["audio"], log_mel_patches(sounds, LogMelConfig(8000, 700)))
    assert rows["audio"].shape == (2, 3, 80) and rows["audio"].dtype == np.float32
    assert rows["positions"].tolist() == [[[0], [1], [2]]] * 2
    assert rows["segments"].tolist() == [[1] * 3] * 2


def test_rows_of_clips_hold_the_tubelets_and_where_they_lie():
    clips = np.arange(2 * 2 * 2 * 4, dtype=np.uint8).reshape(2, 2, 2, 4, 1)
    rows = continuous_examples(clips, PatchLayout("video", (2, 2, 4, 1), (2, 2, 2)))
    assert rows["video"][0].tolist() == [[0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15]]
    assert rows["positions"].tolist() == [[[0, 0, 0], [0, 0, 1]]] * 2
    assert rows["segments"].tolist() == [[1] * 2] * 2


def test_take_takes_rows_of_every_array():
    rows = image_examples(np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2, 1), 1)
    taken = take(rows, np.array([2, 0]))
    assert taken.keys() == rows.keys()
    assert all(np.array_equal(taken[key], rows[key][[2, 0]]) for key in rows)


@given(
    lengths=st.lists(st.integers(0, 23), min_size=1, max_size=6),
    most=st.integers(0, 30),
)
def test_views_hold_every_piece_once_and_span_the_row(lengths, most):
    rows = text([list(range(1, n + 1)) for n in lengths], 23)
    pieces, of = batching.interleaved_chunks(rows, most)
    assert np.all(np.diff(of) >= 0) and set(of) == set(range(len(lengths)))
    assert all(len(value) == len(of) for value in pieces.values())
    if most:
        assert pieces["segments"].shape[1] == min(most, 23)
    for n, length in enumerate(lengths):
        mine = [pieces["tokens"][m][pieces["segments"][m] > 0] for m in np.flatnonzero(of == n)]
        assert sorted(np.concatenate(mine)) == list(range(1, length + 1))
        for view in mine:
            assert len(set(np.diff(view))) <= 1
        filled = [len(view) for view in mine]
        assert max(filled) - min(filled) <= 1


def test_no_views_of_short_rows():
    rows = text([[1, 2, 3], [4]], 3)
    pieces, of = batching.interleaved_chunks(rows, 3)
    assert pieces is rows and of.tolist() == [0, 1]


def test_the_mean_is_over_the_pieces_of_all_views():
    rows = text([[1, 2, 3, 4, 5], [6, 7], []], 5)
    pieces, of = batching.interleaved_chunks(rows, 2)
    sums = np.sum(pieces["tokens"] * (pieces["segments"] > 0), axis=1)
    found = batching.mean_over_chunks(np.stack([sums, 2.0 * sums], axis=1), pieces, of)
    assert found.tolist() == [[3.0, 6.0], [6.5, 13.0], [0.0, 0.0]]


def read(factor, batch):
    return factor * jnp.sum(batch["segments"], axis=1)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 33, 70])
def test_every_row_is_read_once_and_in_order(count):
    rows = {"segments": np.arange(3 * count, dtype=np.int32).reshape(count, 3)}
    made = map_batches(read, 2, rows, batch_size=8)
    assert np.array_equal(made, 2 * rows["segments"].sum(axis=1))


LENGTHS = (3, 40, 17, 1, 16, 33, 17, 5)


def texts(lengths=LENGTHS):
    draws = np.random.default_rng(0)
    return [draws.integers(1, 12, n).astype(np.int32) for n in lengths]


def total(weight, batch):
    return weight * jnp.sum(batch["tokens"] * (batch["positions"] + 1), axis=1)


def plain(ids):
    return np.array([3 * np.sum(each * np.arange(1, len(each) + 1)) for each in ids])


@pytest.mark.parametrize("tokens", [16, 64, 4096])
def test_every_text_in_its_own_place(tokens):
    ids = texts()
    assert np.array_equal(map_bucketed(total, 3, ids, batch_tokens=tokens), plain(ids))


def test_little_padding_and_few_shapes(monkeypatch):
    seen, called = [], module._run_batch

    def spy(operands, batch, read):
        seen.append(batch["segments"])
        return called(operands, batch, read)

    monkeypatch.setattr(module, "_run_batch", spy)
    ids = texts(list(range(1, 81)) * 2)
    map_bucketed(total, 1, ids, batch_tokens=160)
    assert {each.shape[1] for each in seen} <= {16, 32, 48, 64, 80}
    assert len({each.shape for each in seen}) <= 5
    read = sum(each.size for each in seen)
    assert read < 1.35 * sum(map(len, ids))


def test_nothing_is_padded_beyond_the_context():
    def width(_, batch):
        return jnp.full(len(batch["tokens"]), batch["tokens"].shape[1])

    assert map_bucketed(width, 0, texts((18, 3)), max_seq_len=20, batch_tokens=20).tolist() == [
        20,
        16,
    ]


def test_rows_are_padded_as_others_are():
    ids = texts((4, 2))
    made, wanted = module.pad_sequences(ids, 6), text([each.tolist() for each in ids], 6)
    assert made.keys() == wanted.keys()
    assert all(np.array_equal(made[key], wanted[key]) for key in made)


@pytest.mark.parametrize("ids", [[], texts((2, 0))], ids=["no text", "an empty one"])
def test_nothing_to_read_is_refused(ids):
    with pytest.raises(UserError, match="without a single token"):
        map_bucketed(total, 1, ids)
