"""Texts are encoded word by word exactly as whole, whatever is between the words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fm.data import tokenizer as bpe
from fm.data.streaming import word_encoder
from fm.data.streaming.word_encoder import WordEncoder
from tests.data.streaming.made_text import make_documents

TEXTS = list(make_documents(50_000))[:150]
ODD = [
    "it's  two",
    "a \tb",
    "a\t b",
    "a \n b",
    "\n\n a",
    "x   y ",
    " x",
    "",
    " ",
    "1 2.5 3",
    "é\u00a0ü ☃",
]
TOKENIZER = bpe.train([*TEXTS, *ODD * 50, "we're don't I'll  12 345\t\n\n "], 500)
WORDS = WordEncoder(TOKENIZER)


def assert_same(encoder, texts):
    for a, b in zip(encoder.encode(texts), TOKENIZER.encode(texts), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_documents():
    for _ in range(2):  # with and without a memory of their words
        assert_same(WORDS, TEXTS)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.text(st.sampled_from("ab'st1. \t\n\r\x0b\u00a0\u2003é,☃"), max_size=14)))
def test_any_white_space(texts):
    assert_same(WORDS, [*texts, *ODD])


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(max_size=30)))
def test_any_text(texts):
    texts = [each for each in texts if each.encode("utf-8", "ignore").decode() == each]
    assert_same(WORDS, texts)


def test_the_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(word_encoder, "MAX_WORDS", 50)
    encoder = WordEncoder(TOKENIZER)
    for _ in range(2):
        assert_same(encoder, [*TEXTS, "x" * 100])
    assert len(encoder._ids) == 50


@pytest.mark.parametrize("options", [{"add_prefix_space": True}, {"use_regex": False}])
def test_another_kind_of_tokenizer_encodes_texts_whole(options):
    from tokenizers import Tokenizer, pre_tokenizers

    own = Tokenizer.from_str(TOKENIZER.to_json())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(**{"add_prefix_space": False} | options)
    tokenizer = bpe.Tokenizer(own)
    found = WordEncoder(tokenizer).encode(["one two"])
    np.testing.assert_array_equal(found[0], tokenizer.encode(["one two"])[0])
