"""A model that was pretrained on test items is told."""

import pytest

from fm.data.datasets import subset
from fm.data.load import load
from fm.errors import UserError
from fm.study.seen_examples import IDS_FILE, save_corpus_ids, tell_seen_items


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "r.csv"
    path.write_text("text,label\n" + "".join(f"review {n},{n % 2}\n" for n in range(60)))
    return load(str(path)), load(str(path), label_column="")


def test_test_items_in_the_corpus_are_counted(data, tmp_path, capsys):
    labeled, whole = data
    save_corpus_ids([labeled.train], tmp_path)
    tell_seen_items(tmp_path, labeled.test)
    assert not capsys.readouterr().err
    save_corpus_ids([subset(whole.train, range(10)), whole.train], tmp_path)
    tell_seen_items(tmp_path, labeled.test)
    count = len(labeled.test)
    assert f"{count} of {count} test items are copies of examples" in capsys.readouterr().err


def test_without_a_file_nothing_is_said_and_a_damaged_one_is_refused(data, tmp_path, capsys):
    tell_seen_items(tmp_path / "none", data[0].test)
    assert not capsys.readouterr().err
    for content in (b"", b"noise", b"\x93NUMPY\x01\x00"):
        (tmp_path / IDS_FILE).write_bytes(content)
        with pytest.raises(UserError, match="is not a readable file of ids"):
            tell_seen_items(tmp_path, data[0].test)
