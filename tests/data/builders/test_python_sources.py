import pytest

from fm.data.builders import python_sources
from fm.data.load import load


def test_passages_are_the_text_in_whole_lines():
    lines = [f"line {n} = {'x' * (n % 7)}\n" for n in range(100)] + ["y" * 300 + "\n", "end"]
    text = "".join(lines)
    found = list(python_sources.passages(text, 200))
    assert "".join(found) == text
    assert all(len(each) <= 200 or each.count("\n") <= 1 for each in found)
    assert all(each.endswith("\n") for each in found[:-1])


def test_source_files_are_sorted_and_only_utf8(tmp_path):
    (tmp_path / "b.py").write_text("b = 1\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/c.py").write_text("c = 'é'\n", encoding="utf-8")
    (tmp_path / "a/latin.py").write_bytes(b"d = '\xe9'\n")
    (tmp_path / "a/empty.py").write_text("\n")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages/e.py").write_text("e = 1\n")
    found = list(python_sources.source_files(tmp_path))
    assert found == [("a/c.py", "c = 'é'\n"), ("b.py", "b = 1\n")]


@pytest.mark.slow
def test_the_data_set():
    dataset = load("python_sources")
    assert dataset.modality == "text" and dataset.classes == ()
    total = sum(len(text) for text in dataset.train.texts(range(len(dataset.train))))
    assert total > 5_000_000
    share = len(dataset.test) / (len(dataset.train) + len(dataset.test))
    assert 0.02 < share < 0.1
