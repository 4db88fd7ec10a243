"""Streamed text: chunks are never taken back and contain nothing of a stop string."""

import numpy as np
import pytest

from fm.errors import UserError
from fm.model.text_stream import continuation_decoder, num_unsettled_chars, stream_text


class Scripted:
    """A generation whose tokens are given; `decode` joins what they stand for."""

    def __init__(self, rows):
        self._rows = [list(row) for row in rows]
        self._at, self._over = 0, [False] * len(rows)
        self.batch_size, self.remaining = len(rows), max(map(len, self._rows))

    @property
    def finished(self):
        return self.remaining == 0 or all(self._over)

    def next_tokens(self, tokens):
        taken = slice(self._at, self._at + tokens)
        new = [[] if over else row[taken] for row, over in zip(self._rows, self._over, strict=True)]
        self._at += tokens
        self.remaining -= tokens
        self._over = [
            over or self._at > len(row) for row, over in zip(self._rows, self._over, strict=True)
        ]
        return [np.array(each, np.int32) for each in new]

    def stop_rows(self, rows):
        for row in rows:
            self._over[row] = True


def decode(ids):
    return bytes(int(each) for each in ids).decode("utf-8", errors="replace")


def written(texts, every, stop=()):
    generation = Scripted([text.encode() for text in texts])
    chunks = list(stream_text(generation, decode, stop_strings=stop, tokens_per_chunk=every))
    return ["".join(row) for row in zip(*chunks, strict=True)], chunks, generation


@pytest.mark.parametrize("every", [1, 2, 3, 7, 100])
def test_joined_chunks_are_the_texts(every):
    texts = ["naïve café — ☕🫖", "plain", "日本語"]
    assert written(texts, every)[0] == texts


@pytest.mark.parametrize("every", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("text", "stop", "want"),
    [
        ("one. two. three", (". t",), "one"),
        ("one. two", ("xyz",), "one. two"),
        ("a<b<bb<bbb|c", ("<bbb|",), "a<b<bb"),
        ("first\n\nQ: second\nA: third", ("\nA", "\n\nQ"), "first"),
        ("stop at once", ("stop",), ""),
        ("ends with sto", ("stop",), "ends with sto"),
        ("tea ☕ end", ("☕",), "tea "),
    ],
)
def test_a_text_ends_right_before_the_first_stop_string(text, stop, want, every):
    (got,), chunks, generation = written([text], every, stop)
    assert got == want
    if want != text:
        # No more tokens are asked for than the stop string needs.
        needed = len(want.encode()) + max(len(each.encode()) for each in stop)
        assert len(chunks) <= -(-needed // every) + 1 and generation.finished


def test_each_row_stops_by_itself():
    got, _, _ = written(["one|two", "three four|", "five"], 2, ("|",))
    assert got == ["one", "three four", "five"]


def test_a_broken_character_at_the_very_end_is_shown():
    generation = Scripted(["é".encode()[:1]])
    assert [
        "".join(row)
        for row in zip(*stream_text(generation, decode, tokens_per_chunk=1), strict=True)
    ] == ["\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize(
    ("text", "stop", "count"),
    [
        ("abc", ("cd",), 1),
        ("abc", ("d",), 0),
        ("aab", ("aabb", "ba"), 3),
        ("ab�", (), 1),
        ("", ("a",), 0),
    ],
)
def test_unsettled_chars(text, stop, count):
    assert num_unsettled_chars(text, stop) == count


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UserError, match="at least one character"):
        list(stream_text(Scripted([[1]]), decode, stop_strings=("",)))


def test_what_follows_a_prompt_keeps_the_space_between():
    """Words that bring the space before them lose it where a text begins."""
    words = ["a", "prompt", "goes", "on"]

    def joined(ids):
        return " ".join(words[each] for each in ids)

    follows = continuation_decoder(np.array([0, 1]), joined)
    assert follows(np.array([2, 3])) == " goes on" and follows(np.array([], np.int32)) == ""
    assert continuation_decoder(np.array([], np.int32), joined)(np.array([2, 3])) == "goes on"
