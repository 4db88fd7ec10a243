import pytest

from fm.data.builders import docstrings
from fm.data.load import load

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
    found = list(docstrings.parse_docstrings(path))
    assert [each.of_function for each in found] == [False, True]
    assert list(docstrings.prose_paragraphs(each.text for each in found)) == [
        PROSE,
        f"Second {PROSE}",
    ]


def test_what_does_not_parse_is_passed_over(tmp_path):
    (tmp_path / "broken.py").write_text("def (")
    assert list(docstrings.parse_docstrings(tmp_path / "broken.py")) == []


def test_passages_close_at_paragraphs():
    paragraphs = [f"{number} " + "word " * 80 for number in range(20)]
    passages = list(docstrings.join_paragraphs(paragraphs, 1000, 2000))
    assert "\n\n".join(passages) == "\n\n".join(paragraphs)
    assert all(1000 <= len(passage) <= 2000 for passage in passages[:-1])


@pytest.fixture
def packages(tmp_path, monkeypatch, empty_cache):
    """Five small packages in the place of the installed ones."""
    files = []
    for number in range(150):
        path = tmp_path / f"m{number}.py"
        topic = docstrings.TOPICS[number % 5]
        path.write_text(
            f'"""Module {number}. {PROSE}\n\n{PROSE}"""\n'
            f"def f{number}():\n"
            f'    """Make {"abcdefghij"[number % 10]} and {"abcdefghijklmno"[number // 10]} '
            "meet again.\n"
            f"\n    The {topic} one, {topic}.of.{number}, is number {number}. {PROSE}\n"
            f'\n    Args:\n      x: {PROSE}\n    """\n'
        )
        files.append((topic, path))
    monkeypatch.setattr(docstrings, "source_paths", lambda: files)


@pytest.mark.usefixtures("packages")
def test_docstrings():
    dataset = load("docstrings")
    texts = dataset.train.texts(range(len(dataset.train)))
    texts += dataset.test.texts(range(len(dataset.test)))
    # Each file's own paragraphs; the one that all of them share once only.
    assert len(texts) == 150 and sum(f"{PROSE}\n\n{PROSE}" in text for text in texts) == 1
    assert dataset.train.labels is None and 0 < len(dataset.test) < 15
    assert any(package.startswith("numpy-") for package in dataset.info["packages"])


@pytest.mark.usefixtures("packages")
def test_topics_are_balanced_and_do_not_say_their_names():
    dataset = load("docstring_topics")
    assert dataset.classes == docstrings.TOPICS
    counts = dataset.info["counts"]
    for split in ("train_by_class", "test_by_class"):
        assert len(set(counts[split].values())) == 1
    assert counts["test"] >= 5
    for text in dataset.train.texts(range(len(dataset.train))):
        assert not any(topic in text for topic in docstrings.TOPICS), text


def test_names_and_markup_are_masked():
    text = (
        "Args: like :func:`numpy.zeros`, a jnp array (NumPyro, scikit-learn, e.g. ``x``), Python 3"
    )
    assert docstrings.mask_package_names(text) == (
        "like [name], a [name] array ([name], [name], e.g. x), [name] 3"
    )


def test_a_docstring_parted():
    body = (
        "The answer is found by looking at every element of the input once, in order, and no more."
    )
    rest = f"{body}\n\nx : int\n    {body}\n\nParameters\n----------\n{PROSE}"
    assert docstrings.summarization_pair(f"Find the first element.\n\n{rest}") == (
        body,
        "Find the first element.",
    )
    assert docstrings.summarization_pair(f"Find it.\n\n{rest}") is None
    assert docstrings.summarization_pair(f"Find the `x` in 3 steps.\n\n{rest}") is None
    assert docstrings.summarization_pair(f"The answer is found.\n\n{rest}") is None
    assert docstrings.summarization_pair(f"Find the first element.\n\nArgs:\n  x: {body}") is None


def test_installed_packages_are_found():
    files = [path.as_posix() for _, path in docstrings.source_paths()]
    for part in ("/sklearn/", "/scipy/", "/numpy/", "/jax/", "/argparse.py"):
        assert any(part in path for path in files), part
    assert not any("/tests/" in path.rpartition("site-packages")[2] for path in files)


@pytest.mark.usefixtures("packages")
def test_summaries_are_each_on_one_side():
    dataset = load("docstring_summaries")
    both = {}
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        rows = range(len(split))
        both[name] = set(zip(split.texts(rows), split.targets(rows), strict=True))
    assert len(both["train"] | both["test"]) == 150 and both["test"]
    assert not {target for _, target in both["train"]} & {target for _, target in both["test"]}
    for text, target in both["train"]:
        assert PROSE in text and target.endswith("meet again.") and target not in text
