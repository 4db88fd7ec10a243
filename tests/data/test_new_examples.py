"""New examples are read without labels, whatever form the file has."""

import numpy as np
import pytest

from fm.data.new_examples import open_new_examples
from fm.data.readers.examples import TextFormat
from fm.errors import UserError


def sentences_of(path, **options):
    with open_new_examples(
        str(path), "text", None, TextFormat(), words=True, **options
    ) as examples:
        return examples.read(np.arange(len(examples))), list(examples.labels)


WORDS = [["Anna", "sees", "Rome"], ["it", "rains"]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("new.conll", "Anna\nsees\nRome\n\nit\nrains\n"),
        ("new.conll", "Anna\tNNP\nsees\tVB\nRome\tNNP\n\nit\tPRP\nrains\tVB\n"),
        ("new.conll", "Anna B-PER\nsees O\nRome B-LOC\n\nit O\nrains O\n"),
        ("new.txt", "Anna sees Rome\nit rains\n"),
        ("new.csv", "text\nAnna sees Rome\nit rains\n"),
    ],
)
def test_words_need_no_tags(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert sentences_of(tmp_path / name) == (WORDS, [None, None])


def test_tags_are_read_if_they_are_asked_for(tmp_path):
    (tmp_path / "new.conll").write_text("Anna B-PER\nsees O\n\nit O\n")
    _, tags = sentences_of(tmp_path / "new.conll", with_labels=True)
    assert tags == [["B-PER", "O"], ["O"]]


@pytest.mark.parametrize(("content", "said"), [("Anna\n\tsees\n", "line 2"), ("\n\n", "no sent")])
def test_a_file_without_words_is_refused(tmp_path, content, said):
    (tmp_path / "new.conll").write_text(content)
    with pytest.raises(UserError, match=said):
        sentences_of(tmp_path / "new.conll")
