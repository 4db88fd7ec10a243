import gzip
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fm.data.builders.tweet_entities import TYPES, WHEEL
from fm.data.datasets import subset
from fm.data.file_counts import describe_files
from fm.data.load import load
from fm.data.readers import conll as tagged
from fm.data.readers.conll import Sentence
from fm.errors import UserError
from fm.study.task_types import task_type_of
from tests.data.conftest import SHARED, fetched


def conll(path, count, start=0):
    """Sentences of three words, places in half of them."""
    kinds = ("B-place", "O")
    path.write_text(
        "\n\n".join(f"see O\nspot{n} {kinds[n % 2]}\nnow O" for n in range(start, start + count))
    )
    return path


def test_a_file_of_ones_own(tmp_path, capsys):
    path = conll(tmp_path / "own.conll", 40)
    path.write_text(path.read_text().replace("spot4 B-place", "spot4 I-place"))
    dataset = load(str(path))
    assert dataset.modality == "text" and dataset.train.labels is None and dataset.classes == ()
    assert dataset.info["tags"] == ["O", "B-place", "I-place"]
    assert dataset.info["repaired_tags"] == 1
    assert "own.conll: 1 entities begin with I-, the first on line 18" in capsys.readouterr().err
    assert len(dataset.train) + len(dataset.test) == 40 and len(dataset.test) > 2
    for split in (dataset.train, subset(dataset.test, [1, 0])):
        rows = range(len(split))
        assert split.texts(rows) == [" ".join(words) for words in split.words(rows)]
        for words, tags in zip(split.words(rows), split.tags(rows), strict=True):
            even = int(words[1].removeprefix("spot")) % 2 == 0
            assert tags == ["O", "B-place" if even else "O", "O"]


def test_a_folder_and_what_changes_its_fingerprint(tmp_path):
    conll(tmp_path / "my.train.conll", 6)
    conll(tmp_path / "my.dev.conll", 2, 10)
    test = conll(tmp_path / "my.test.annotated", 3, 20)
    dataset = load(str(tmp_path))
    assert (len(dataset.train), len(dataset.test), dataset.info["split"]) == (6, 3, "official")
    assert ["see", "spot20", "now"] in dataset.test.words(range(3))
    test.write_text(test.read_text().replace("spot21 O", "spot21 B-place"))
    again = load(str(tmp_path))
    assert again.test.ids == dataset.test.ids
    assert again.info["fingerprint"] != dataset.info["fingerprint"]


def test_a_kind_unknown_to_training_is_an_error(tmp_path, empty_cache):
    conll(tmp_path / "train.bio", 6)
    test = conll(tmp_path / "test.bio", 3)
    test.write_text(test.read_text().replace("spot1 O", "spot1 B-planet"))
    with pytest.raises(UserError, match=r"test\.bio, line 6: 'B-planet' is not in train\.bio"):
        load(str(tmp_path))
    assert not list(empty_cache.rglob("*.array_record*"))


def test_every_kind_is_in_training():
    sentences = [Sentence((f"word{n}",), (f"B-kind{n}",), 1) for n in range(30)]
    sides = tagged.split_sentences(sentences, 0.5)
    assert len(sides["train"]) == 30 and not sides["test"]
    # The same words twice: both cross over.
    twice = [Sentence(("same",), ("B-a",), 1), Sentence(("same",), ("B-b",), 1)]
    assert len(tagged.split_sentences(twice, 1.0)["train"]) == 2


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load(str(tmp_path / "none.conll")[1:])


class Stock(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A stock-like data set with parts of speech beside entities, as CoNLL-2003 has."""

    name = "stock_entities"
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def _info(self):
        one = tfds.features.Sequence
        features = {
            "tokens": one(tfds.features.Text()),
            "pos": one(tfds.features.ClassLabel(names=["DT", "NN"])),
            "ner": one(tfds.features.ClassLabel(names=["O", "B-PER", "I-PER"])),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"tokens": ["Anna", "Ö"], "pos": [1, 1], "ner": ["B-PER", "O"]}
        yield 1, {"tokens": ["the"], "pos": [0], "ner": [0]}


def test_a_stock_data_set(tmp_path):
    Stock(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    dataset = load("stock_entities", data_dir=str(tmp_path))
    found = list(zip(dataset.train.words([0, 1]), dataset.train.tags([0, 1]), strict=True))
    assert sorted(found) == [(["Anna", "Ö"], ["B-PER", "O"]), (["the"], ["O"])]
    assert not dataset.train.tags([])


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_targets_of_ones_own(tmp_path, ending):
    path = tmp_path / f"pairs.{ending}"
    if ending == "csv":
        path.write_text("text,short\n" + "".join(f'"a {n}, long",s{n}\n' for n in range(20)))
    else:
        row = '{"text": "a N, long", "short": "sN"}\n'
        path.write_text("".join(row.replace("N", str(n)) for n in range(20)))
    dataset = load(str(path), target_column="short")
    assert dataset.train.labels is None and len(dataset.train) + len(dataset.test) == 20
    for split in (dataset.train, dataset.test):
        texts, targets = split.texts(range(len(split))), split.targets(range(len(split)))
        assert [text.split()[1].strip(",") for text in texts] == [each[1:] for each in targets]
    with pytest.raises(UserError, match="no column 'title'; it has: 'text', 'short'"):
        load(str(path), target_column="title")
    with pytest.raises(AssertionError, match="no tags"):
        dataset.train.tags([0])


def test_a_file_without_targets(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\nthree")
    with pytest.raises(UserError, match=r"--target_column=short: .*a\.txt is plain text"):
        load(str(tmp_path / "a.txt"), target_column="short")


@pytest.fixture(scope="session")
def tweets_wheel(session_cache):
    return fetched(WHEEL, session_cache)


@pytest.mark.usefixtures("tweets_wheel")
def test_tweet_entities():
    dataset = load("tweet_entities")
    assert len(dataset.train) + len(dataset.test) == 2394 and 400 < len(dataset.test) < 560
    assert dataset.info["tags"] == tagged.bio_tags(TYPES) and dataset.info["split"] == "by hash"
    assert "unclear" in dataset.info["description"]
    assert not set(dataset.train.ids) & set(dataset.test.ids)
    rows = range(len(dataset.train))
    used = {tag for tags in dataset.train.tags(rows) for tag in tags}
    assert used == set(dataset.info["tags"])
    lengths = zip(dataset.train.words(rows), dataset.train.tags(rows), strict=True)
    assert all(len(words) == len(tags) > 0 for words, tags in lengths)


def test_wnut17():
    folder = SHARED / "data" / "wnut17"
    if not folder.is_dir():
        pytest.skip("no wnut17 beside the repository")
    dataset = load(str(folder))
    assert (len(dataset.train), len(dataset.test)) == (3394, 1287)
    assert dataset.info["repaired_tags"] == 0 and len(dataset.info["tags"]) == 13
    first = dataset.train.words([0])[0], dataset.train.tags([0])[0]
    assert len(first[0]) == len(first[1])


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "valid.txt", "test.txt"),
        ("train.tsv", "dev.tsv", "test.tsv"),
        ("eng.train", "eng.testa", "eng.testb"),
        ("train.txt", "val.txt"),
    ],
)
def test_a_folder_is_known_as_conll_by_its_lines(tmp_path, capsys, names):
    for number, name in enumerate(names):
        conll(tmp_path / name, 6, 20 * number)
    dataset = load(str(tmp_path))
    assert dataset.info["tags"] == ["O", "B-place", "I-place"] and len(dataset.train) == 6
    assert ["see", f"spot{20 * len(names) - 20}", "now"] in dataset.test.words(range(6))
    assert "read as CoNLL, a word and its entity tag a line" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["own.txt", "own.tsv", "own.txt.gz", "own.conll.gz", "own.iob2"])
def test_so_is_a_file(tmp_path, name):
    path = conll(tmp_path / name, 30)
    if name.endswith("gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert load(str(path)).info["tags"] == ["O", "B-place", "I-place"]


def test_a_file_of_another_scheme_is_read_as_bio(tmp_path):
    path = conll(tmp_path / "own.txt", 30)
    path.write_text(path.read_text().replace("B-place", "S-place"))
    assert load(str(path)).info["tags"] == ["O", "B-place", "I-place"]


@pytest.mark.parametrize("archived", [False, True])
def test_conll_files_are_no_pile_of_texts(tmp_path, archived):
    for number in range(3):
        conll(tmp_path / f"{number}.txt", 9, 10 * number)
    path = tmp_path
    if archived:
        path = tmp_path / "all.zip"
        with zipfile.ZipFile(path, "w") as opened:
            for file in tmp_path.glob("*.txt"):
                opened.write(file, file.name)
    with pytest.raises(UserError, match=r"0\.txt holds words with entity tags \(CoNLL\)"):
        load(str(path))


def test_prose_is_not_taken_for_conll(tmp_path):
    (tmp_path / "a.txt").write_text("".join(f"a line of words {n} O\nso it is\n" for n in range(9)))
    assert load(str(tmp_path / "a.txt")).info["tags"] is None


def _tagged(count, start=0):
    return "\n\n".join(f"in O\nRome{n} B-loc\nlives O" for n in range(start, start + count))


@pytest.mark.parametrize("in_folder", [True, False])
def test_unlabeled_text_beside_tagged_words(tmp_path, in_folder):
    (tmp_path / "train.conll").write_text(_tagged(30))
    (tmp_path / "unlabeled.txt").write_text("".join(f"some  text {n}\n" for n in range(9)))
    path = tmp_path if in_folder else tmp_path / "train.conll"
    data = load(str(path), unlabeled="" if in_folder else str(tmp_path / "unlabeled.txt"))
    assert len(data.train) + len(data.test) == 39 and data.info["split"] == "by hash"
    bare = [n for n, tags in enumerate(data.train.tags(range(len(data.train)))) if not tags]
    assert len(bare) == 9 and all(data.test.tags(range(len(data.test))))
    assert data.train.texts(bare[:1])[0].startswith("some text ")
    task_type = task_type_of(data)
    strata = task_type.strata(data.train)
    assert np.flatnonzero(strata < 0).tolist() == bare
    assert task_type.max_labels(data) == len(data.train) - 9 and task_type.min_labels(data) == 1
    assert "unlabeled.txt: 9 sentences: 9 unlabeled for training" in describe_files(data)


def test_tagged_files_beside_a_tagged_file(tmp_path, capsys):
    for n, name in enumerate(("a.conll", "t.conll", "v.conll")):
        (tmp_path / name).write_text(_tagged(10, 10 * n))
    path, test, validation = (str(tmp_path / f"{name}.conll") for name in "atv")
    data = load(path, test=test)
    assert (len(data.train), len(data.test), data.info["split"]) == (10, 10, "official")
    data = load(path, test=test, validation=validation)
    assert (len(data.train), len(data.test)) == (20, 10)
    assert "(v.conll) joins the training sentences" in capsys.readouterr().err
    assert len(load(path, unlabeled=test).train) > 10
    (tmp_path / "x.csv").write_text("text,label\na,b\n")
    with pytest.raises(UserError, match=r"--test=.*x\.csv: .*this is no such file"):
        load(path, test=str(tmp_path / "x.csv"))


def test_a_validation_file_in_a_folder_with_a_test_file_is_counted_as_left_out(tmp_path):
    for n, name in enumerate(("train", "dev", "test")):
        (tmp_path / f"{name}.conll").write_text(_tagged(10, 10 * n))
    data = load(str(tmp_path))
    assert (len(data.train), len(data.test)) == (10, 10)
    assert "dev.conll: 10 sentences: 10 ignored (validation split)" in describe_files(data)
    with pytest.raises(UserError, match=r"--test=.* has a test split already"):
        load(str(tmp_path), test=str(tmp_path / "dev.conll"))
