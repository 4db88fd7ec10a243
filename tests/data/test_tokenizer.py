import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fm.data import tokenizer
from fm.errors import UserError

TEXTS = ["the film was good, the film was bad\n"] * 20 + ["a naïve 🎬 story of the film"]
TOKENIZER = tokenizer.train(TEXTS, 320)


@settings(max_examples=300)
@given(st.text())
def test_round_trip(text):
    (ids,) = TOKENIZER.encode([text])
    assert ids.dtype == np.int32 and (ids >= tokenizer.NUM_SPECIALS).all()
    assert (ids < TOKENIZER.vocab_size).all()
    assert TOKENIZER.decode(ids) == text


@pytest.mark.parametrize("text", ["<pad><mask></s>[MASK]", " leading", "\r\n\t\0", "", "\ufeffx"])
def test_round_trip_of_awkward_texts(text):
    assert TOKENIZER.decode(TOKENIZER.encode([text])[0]) == text


@settings(max_examples=200)
@given(st.text())
def test_spelled_tokens_joined_are_the_text(text):
    ids = TOKENIZER.encode([text])[0]
    assert b"".join(TOKENIZER.token_bytes(ids)) == text.encode()


def test_spelled_out():
    assert sorted(tokenizer.BYTE_OF_CHAR) == sorted(tokenizer.pre_tokenizers.ByteLevel.alphabet())
    ids = [TOKENIZER.bos, *TOKENIZER.encode([" film🎈"])[0], TOKENIZER.eos]
    first, word, *emoji, last = TOKENIZER.token_bytes(ids)
    assert (first, word, last) == (b"", b" film", b"")
    assert len(emoji) > 1 and b"".join(emoji) == "🎈".encode()


def test_merges_are_learned():
    assert 260 < TOKENIZER.vocab_size <= 320
    assert TOKENIZER.bytes_per_token(TEXTS) > 2
    assert tokenizer.train(["x"], 260).bytes_per_token(["some text"]) == 1


def test_specials_are_skipped_by_decode():
    ids = TOKENIZER.encode(["film"])[0]
    assert TOKENIZER.decode([TOKENIZER.bos, *ids, TOKENIZER.eos, TOKENIZER.pad]) == "film"
    assert {TOKENIZER.pad, TOKENIZER.bos, TOKENIZER.eos, TOKENIZER.mask} == {0, 1, 2, 3}


def test_same_texts_same_tokenizer(tmp_path):
    words = np.random.default_rng(0).integers(0, 500, (300, 30))
    texts = [" ".join(f"w{word}" for word in row) for row in words]
    for name in ("a", "b"):
        tokenizer.train(texts, 600).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_save_and_load(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer.json")
    loaded = tokenizer.load(tmp_path / "tokenizer.json")
    for text in TEXTS:
        np.testing.assert_array_equal(loaded.encode([text])[0], TOKENIZER.encode([text])[0])
    assert loaded.vocab_size == TOKENIZER.vocab_size


def test_large_corpora_are_thinned_evenly(monkeypatch):
    monkeypatch.setattr(tokenizer, "TRAINING_BYTES", 100)
    assert list(tokenizer._training_sample(["x" * 50] * 3 + ["y" * 50] * 3)) == ["x" * 50, "y" * 50]


def test_errors(tmp_path):
    with pytest.raises(UserError, match="259; at least 260"):
        tokenizer.train(TEXTS, 259)
    with pytest.raises(UserError, match="cannot read"):
        tokenizer.load(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text('{"model": 1}')
    with pytest.raises(UserError, match="not a saved tokenizer") as raised:
        tokenizer.load(tmp_path / "bad.json")
    assert "\n" not in str(raised.value)


@given(st.integers(0, 50), st.integers(1, 20))
def test_chunks(count, length):
    ids = np.arange(4, 4 + count, dtype=np.int32)
    found = tokenizer.token_chunks(ids, length, TOKENIZER)
    assert all(chunk.dtype == np.int32 and 1 <= len(chunk) <= length for chunk in found)
    assert all(len(chunk) == length for chunk in found[:-1])
    assert np.concatenate(found).tolist() == [TOKENIZER.bos, *ids, TOKENIZER.eos]


def test_chunks_keep_documents_in_order():
    texts = ["first document", "", "a second, longer document"]
    found = tokenizer.tokenize_chunks(TOKENIZER, texts, 8)
    starts = [index for index, chunk in enumerate(found) if chunk[0] == TOKENIZER.bos]
    ends = [index for index, chunk in enumerate(found) if chunk[-1] == TOKENIZER.eos]
    documents = [found[a : b + 1] for a, b in zip(starts, ends, strict=True)]
    assert [TOKENIZER.decode(np.concatenate(each)) for each in documents] == texts


def test_symbols_are_tokens(tmp_path):
    texts = ["[MAX 2 9 [MIN 4 7 ] 0 ]", "[MIN 2 2 ]"]
    symbols = tokenizer.train_symbols(texts, 100)
    ids = symbols.encode(texts)
    assert [len(each) for each in ids] == [9, 4]
    assert [symbols.decode(each) for each in ids] == texts
    assert b"".join(symbols.token_bytes(ids[1])) == b"[MIN 2 2 ] "
    assert symbols.vocab_size == tokenizer.NUM_SPECIALS + 1 + len({*" ".join(texts).split()})
    symbols.save(tmp_path / "tokenizer.json")
    loaded = tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.digest() == symbols.digest() != TOKENIZER.digest()
    np.testing.assert_array_equal(loaded.encode(texts)[0], ids[0])
    assert loaded.token_bytes([1, *ids[1][:1]]) == [b"", b"[MIN "]


def test_rare_and_new_symbols_are_unknown():
    symbols = tokenizer.train_symbols(["a a b c", "a b"], tokenizer.NUM_SPECIALS + 3)
    a, b, c, new = symbols.encode(["a b c <unknown>"])[0]
    assert len({a, b, c}) == 3 and new == c
    with pytest.raises(UserError, match="at least 6"):
        tokenizer.train_symbols(["a"], 5)
