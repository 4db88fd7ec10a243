from fm.data import sources
from fm.data.builders import docstrings

PROSE = "This sentence explains at some length what the function does and why one would call it."
SOURCE = f'''"""{PROSE}

>>> print("an example, which is not prose at all, so it is left out")

x : int | None, a table of | names | and | types | that | is | left | out
"""
raise SystemExit("this file must never be run")
class Thing:
    def method(self):
        """Second {PROSE}"""
'''


def test_prose_is_read_and_nothing_runs(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(SOURCE)
    found = list(docstrings._prose(docstrings._docstrings(path)))
    assert found == [PROSE, f"Second {PROSE}"]


def test_what_does_not_parse_is_passed_over(tmp_path):
    (tmp_path / "broken.py").write_text("def (")
    assert list(docstrings._docstrings(tmp_path / "broken.py")) == []


def test_passages_close_at_paragraphs():
    paragraphs = [f"{number} " + "word " * 80 for number in range(20)]
    passages = list(docstrings.join_paragraphs(paragraphs))
    assert "\n\n".join(passages) == "\n\n".join(paragraphs)
    assert all(1000 <= len(passage) <= 2000 for passage in passages[:-1])


def test_the_builder(tmp_path, monkeypatch, empty_cache):
    for number in range(150):
        (tmp_path / f"m{number}.py").write_text(f'"""Module {number}. {PROSE}\n\n{PROSE}"""')
    files = sorted(tmp_path.glob("*.py"))
    monkeypatch.setattr(docstrings, "_source_files", lambda: iter(files))
    dataset = sources.load("docstrings")
    texts = dataset.train.inputs(range(len(dataset.train)))
    texts += dataset.test.inputs(range(len(dataset.test)))
    assert len(texts) == 150 and sum(text.count(PROSE) for text in texts) == 151
    assert dataset.train.labels is None and 0 < len(dataset.test) < 15
    assert any(package.startswith("numpy-") for package in dataset.info["packages"])


def test_installed_packages_are_found():
    files = [path.as_posix() for path in docstrings._source_files()]
    for part in ("/sklearn/", "/scipy/", "/numpy/", "/jax/", "/argparse.py"):
        assert any(part in path for path in files), part
    assert not any("/tests/" in path.rpartition("site-packages")[2] for path in files)
