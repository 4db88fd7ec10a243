import dataclasses
import importlib.util
import io
import json
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fm.data import index
from fm.data.builders import BUILDERS
from fm.data.datasets import subset, without
from fm.data.feature_columns import find_columns
from fm.data.load import load
from fm.data.media.image import encode_png
from fm.data.prepare import tell_once
from fm.errors import UserError
from fm.evaluation.model_selection import draw_train_idx


def test_unknown_name_lists_the_built_in_ones():
    with pytest.raises(UserError) as raised:
        load("no_such_data")
    assert all(name in str(raised.value) for name in BUILDERS)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["hub:thing", "", "a b", "name:1", "../x/name", "reviews.csv"])
def test_odd_names_are_user_errors(name):
    with pytest.raises(UserError):
        load(name)


@pytest.mark.parametrize("name", ["mnist", "imdb_reviews/plain_text:1.0.0", "goemotions"])
def test_missing_tensorflow_names_the_extra(name, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorflow" else found(name)
    )
    with pytest.raises(UserError, match=r'pip install "fm\[tfds\]"'):
        load(name)


@pytest.fixture
def digits():
    return load("digits")


def test_info_is_json(digits):
    assert json.loads(json.dumps(digits.info)) == digits.info
    assert {"description", "licence", "citation", "version", "split", "fingerprint"} <= set(
        digits.info
    )
    assert sum(digits.info["counts"]["test_by_class"].values()) == len(digits.test)


def test_subset_and_without(digits):
    train = digits.train
    chosen = subset(train, [7, 3])
    np.testing.assert_array_equal(chosen.inputs([0, 1]), train.inputs([7, 3]))
    assert chosen.ids == (train.ids[7], train.ids[3])
    assert chosen.labels.tolist() == train.labels[[7, 3]].tolist()
    rest = without(train, [0, 2])
    assert len(rest) == len(train) - 2 and rest.ids[:2] == (train.ids[1], train.ids[3])
    np.testing.assert_array_equal(rest.inputs([1]), train.inputs([3]))
    assert rest.labels.dtype == np.int32
    again = without(rest, [0])
    assert again.ids == train.ids[3:]


def test_the_index_is_made_once(digits, monkeypatch):
    def refuse(*_):
        raise AssertionError("read everything again")

    monkeypatch.setattr(index, "_write_index", refuse)
    assert load("digits").train.ids == digits.train.ids


def test_the_key_of_an_index_has_further_columns_only_where_they_are_given():
    plain = index.FeatureColumns("image", "image", "label")
    spelled = index._spelled("Columns", plain)
    assert spelled == (
        "Columns(modality='image', content='image', label='label', tags=None, target=None)"
    )
    on_demand = {"group": "who", "row_id": "id", "label_set": "topics"}
    assert index._spelled("Columns", dataclasses.replace(plain, **on_demand)) == spelled
    for name in ("value", "file", "position", "second_text"):
        assert index._spelled("Columns", dataclasses.replace(plain, **{name: "x"})) != spelled


class Foreign(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A stock-like data set: no test split, other feature names."""

    name = "foreign"
    VERSION = tfds.core.Version("2.0.0")
    pkg_dir_path = None

    def _info(self):
        features = {
            "title": tfds.features.Text(),
            "body": tfds.features.Text(),
            "sentiment": tfds.features.ClassLabel(names=["bad", "good"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(50):
            yield number, {"title": "t", "body": f"body {number}", "sentiment": number % 2}


@pytest.mark.parametrize("by_path", [True, False])
def test_a_prepared_folder(tmp_path, by_path):
    builder = Foreign(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    name, data_dir = (str(builder.data_path), None) if by_path else ("foreign", str(tmp_path))
    dataset = load(name, data_dir=data_dir, text_column="body")
    assert dataset.classes == ("bad", "good") and dataset.info["split"] == "by hash"
    assert dataset.info["version"] == "2.0.0"
    assert len(dataset.train) + len(dataset.test) == 50
    for split in (dataset.train, dataset.test):
        texts = split.inputs(range(len(split)))
        assert [int(text.split()[1]) % 2 for text in texts] == split.labels.tolist()
    unlabeled = load(name, data_dir=data_dir, text_column="body", label_column="")
    assert unlabeled.classes == ()


@pytest.mark.parametrize("by_path", [True, False])
def test_tfrecord_is_refused_with_the_remedy(tmp_path, by_path):
    builder = Foreign(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    folder = pathlib.Path(builder.data_path)
    info = (folder / "dataset_info.json").read_text()
    (folder / "dataset_info.json").write_text(info.replace("array_record", "tfrecord"))
    name, data_dir = (str(folder), None) if by_path else ("foreign", str(tmp_path))
    with pytest.raises(UserError, match='prepare it with file_format="array_record"') as raised:
        load(name, data_dir=data_dir, text_column="body")
    assert "\n" not in str(raised.value)


class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images of different sizes, with a validation split only."""

    name = "pictures"
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def _info(self):
        features = {"picture": tfds.features.Image(shape=(None, None, 3))}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12), "validation": self._generate_examples(3)}

    def _generate_examples(self, count):
        for number in range(count):
            pixels = np.full((40 + number, 50, 3), 10 * number, np.uint8)
            yield number, {"picture": io.BytesIO(encode_png(pixels))}


def test_images_of_different_sizes(tmp_path):
    Pictures(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    dataset = load("pictures", data_dir=str(tmp_path))
    assert dataset.modality == "image" and dataset.info["shape"] == [32, 32, 3]
    assert (len(dataset.train), len(dataset.test)) == (12, 3)
    images = dataset.train.inputs(range(12))
    assert sorted(images[:, 5, 5, 0]) == list(range(0, 120, 10))


def test_fashion_mnist_keeps_its_test_split(shared_tfds):
    dataset = load("fashion_mnist", data_dir=shared_tfds)
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)
    assert dataset.info["split"] == "official" and dataset.info["shape"] == [28, 28, 1]
    assert dataset.classes[0] == "T-shirt/top" and dataset.test.labels.dtype == np.int32


def test_tiny_shakespeare(shared_tfds):
    dataset = load("tiny_shakespeare", data_dir=shared_tfds)
    assert dataset.modality == "text" and dataset.classes == ()
    assert dataset.train.inputs([0])[0].startswith("First Citizen:")


class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set whose features and labels of each split are given."""

    name = "sent"
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def __init__(self, folder, features, **splits):
        self._own_features, self._splits = features, splits
        super().__init__(data_dir=folder, file_format="array_record")

    def _info(self):
        features = tfds.features.FeaturesDict(self._own_features)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(examples) for name, examples in self._splits.items()}

    def _generate_examples(self, examples):
        yield from enumerate(examples)


def prepared(folder, features, **splits):
    """The path of a prepared data set with these examples."""
    builder = Prepared(folder, features, **splits)
    builder.download_and_prepare()
    return str(builder.data_path)


def sentences(split, labels):
    return [{"text": f"{split} {n}", "label": label} for n, label in enumerate(labels)]


SENTENCES = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["no", "yes"])}


def test_withheld_test_labels_leave_the_validation_split(tmp_path, capsys):
    path = prepared(
        tmp_path,
        SENTENCES,
        train=sentences("train", [0, 1] * 10),
        validation=sentences("validation", [0, 1, 1]),
        test=sentences("test", [-1] * 5),
    )
    dataset = load(path)
    assert sorted(dataset.test.labels.tolist()) == [0, 1, 1] and len(dataset.train) == 20
    assert all(text.startswith("validation") for text in dataset.test.texts(range(3)))
    assert "validation split, as the labels of the test split are withheld" in dataset.info["split"]
    assert "its validation split is used as the test split" in capsys.readouterr().err


def test_withheld_labels_without_another_split_are_refused(tmp_path):
    splits = {"train": sentences("train", [0, 1] * 10), "test": sentences("test", [-1] * 5)}
    path = prepared(tmp_path, SENTENCES, **splits)
    with pytest.raises(UserError, match="labels of its test split are withheld, and no other"):
        load(path)
    assert len(load(path, label_column="").test) == 5


@pytest.mark.parametrize("held_out", [True, False])
def test_examples_without_label_are_unlabeled_data(tmp_path, capsys, held_out):
    splits = {"train": sentences("train", [0, 1, -1] * 10)}
    if held_out:
        splits["test"] = sentences("test", [0, 1, -1])
    dataset = load(prepared(tmp_path, SENTENCES, **splits))
    assert set(dataset.test.labels.tolist()) == {0, 1}
    labels = dataset.train.labels
    assert np.sum(labels < 0) == 10 and set(labels.tolist()) == {-1, 0, 1}
    assert min(labels[draw_train_idx(labels, int(np.sum(labels >= 0)), seed=0)]) == 0
    with pytest.raises(UserError, match="exceeds the pool"):
        draw_train_idx(labels, int(np.sum(labels >= 0)) + 1, seed=0)
    said = capsys.readouterr().err
    assert "training examples have no label that is a class; they are unlabeled data" in said
    left_out = "1 of 3 test examples have no label that is a class and are left out" in said
    assert left_out == held_out


def test_labels_beyond_the_classes_are_no_classes(tmp_path):
    path = prepared(tmp_path, SENTENCES, train=sentences("train", [0, 1] * 10))
    names = pathlib.Path(path, "label.labels.txt")
    names.write_text("only\n")
    features = pathlib.Path(path, "features.json")
    features.write_text(features.read_text().replace('"numClasses": "2"', '"numClasses": "1"'))
    assert set(load(path).train.labels.tolist()) == {-1, 0}


def test_training_data_without_any_label_are_refused(tmp_path):
    splits = {"train": sentences("train", [-1] * 9), "test": sentences("test", [0, 1])}
    with pytest.raises(UserError, match="has no labels in its train split; --label_column= reads"):
        load(prepared(tmp_path, SENTENCES, **splits))


def labels_of(*names):
    return dict.fromkeys(names, tfds.features.ClassLabel(names=["a", "b"]))


def texts_of(*names):
    return dict.fromkeys(names, tfds.features.Text())


def images_of(*names):
    return dict.fromkeys(names, tfds.features.Image(shape=(8, 8, 1)))


def tags_of(*names):
    tags = tfds.features.Sequence(tfds.features.ClassLabel(names=["O", "B-x", "I-x"]))
    return dict.fromkeys(names, tags)


WORDS = {"tokens": tfds.features.Sequence(tfds.features.Text())}
MISSING = {
    "two texts": (texts_of("one", "two"), {}, "several columns for --text_column: one, two"),
    "no such text": (texts_of("text", "b"), {"text_column": "c"}, "no column 'c'.*has: b, text"),
    "no such lone text": (texts_of("b"), {"text_column": "c"}, "no column 'c'.*it has: b"),
    "two labels": (texts_of("text") | labels_of("y", "x"), {}, "--label_column: x, y; give one"),
    "no such label": (
        texts_of("text") | labels_of("label"),
        {"label_column": "lable"},
        "no column 'lable' for --label_column; it has: label",
    ),
    "no labels": (texts_of("text"), {"label_column": "lable"}, "no column 'lable'.*it has: none"),
    "a label of no class": (
        texts_of("text") | {"label": tfds.features.Scalar(np.float32)},
        {},
        "no column 'label' for --label_column; it has: none",
    ),
    "two images": (images_of("left", "right"), {}, "--text_column: left, right; give one"),
    "an image and no such text": (
        images_of("image") | texts_of("caption"),
        {"text_column": "captoin"},
        "no column 'captoin'.*it has: caption, image",
    ),
    "two tags": (WORDS | tags_of("chunks", "ner"), {}, "--label_column: chunks, ner; give one"),
    "no such tags": (WORDS | tags_of("ner"), {"label_column": "nre"}, "no column 'nre'.*has: ner"),
    "two sources": (texts_of("a", "b", "target"), {}, "several columns for --text_column: a, b"),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_missing_or_ambiguous_column_is_refused_with_the_list(case):
    features, flags, expected = MISSING[case]
    asked = {"text_column": "text", "label_column": "label", "target_column": ""} | flags
    for each in (features, dict(reversed(features.items()))):
        with pytest.raises(UserError, match=expected) as raised:
            find_columns("name", each, *asked.values())
        assert "\n" not in str(raised.value)


FOUND = {
    "a lone text and label": (texts_of("body") | labels_of("y"), {}, ("text", "body", "y")),
    "the usual names": (
        texts_of("text", "title") | labels_of("label", "other"),
        {},
        ("text", "text", "label"),
    ),
    "others asked for": (
        texts_of("text", "title") | labels_of("label", "other"),
        {"text_column": "title", "label_column": "other"},
        ("text", "title", "other"),
    ),
    "no label": (
        texts_of("text") | labels_of("x", "y"),
        {"label_column": ""},
        ("text", "text", None),
    ),
    "an image beside its caption": (
        images_of("image") | texts_of("caption"),
        {},
        ("image", "image", None),
    ),
    "the caption": (
        images_of("image") | texts_of("caption"),
        {"text_column": "caption"},
        ("text", "caption", None),
    ),
    "one of two images": (
        images_of("left", "right"),
        {"text_column": "right"},
        ("image", "right", None),
    ),
    "flags of other data sets": (
        images_of("image") | labels_of("label"),
        {"text_column": "body"},
        ("image", "image", "label"),
    ),
}


@pytest.mark.parametrize("case", FOUND)
def test_columns_do_not_depend_on_the_order_of_features(case):
    features, flags, expected = FOUND[case]
    asked = {"text_column": "text", "label_column": "label", "target_column": ""} | flags
    for each in (features, dict(reversed(features.items()))):
        found = find_columns("name", each, *asked.values())
        assert (found.modality, found.content, found.label) == expected


def test_a_file_or_folder_named_like_a_built_in_set_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "a.txt").write_text("one\ntwo\nthree")
    monkeypatch.chdir(tmp_path)
    tell_once.cache_clear()
    assert load("digits").modality == "image"
    assert "digits: the built-in data set is read; ./digits is the" in capsys.readouterr().err
    assert load("./digits").modality == "text"


def test_columns_of_a_built_in_set_are_its_own(capsys):
    tell_once.cache_clear()
    assert load("digits", label_column="lable").classes
    assert "without a column 'lable'; --label_column is for other" in capsys.readouterr().err


@pytest.mark.parametrize("own", ["file", "folder"])
def test_a_prepared_folder_behind_links_is_read_again(tmp_path, own):
    stores = [
        prepared(tmp_path / str(n), SENTENCES, train=sentences(f"x{n}", [0, 1] * 10))
        for n in range(2)
    ]
    link, found = tmp_path / "sent", []
    for store in stores:
        if own == "folder":
            link.unlink(missing_ok=True)
            link.symlink_to(store)
        else:
            link.mkdir(exist_ok=True)
            for file in pathlib.Path(store).iterdir():
                (link / file.name).unlink(missing_ok=True)
                (link / file.name).symlink_to(file)
        found.append(load(str(link)).train.texts([0])[0][:2])
    assert found == ["x0", "x1"]
