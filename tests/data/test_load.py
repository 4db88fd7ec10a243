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
from fm.data.load import load
from fm.data.media.image import encode_png
from fm.errors import UserError


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
    assert load(name, data_dir=data_dir, label_column="").classes == ()


@pytest.mark.parametrize("by_path", [True, False])
def test_tfrecord_is_refused_with_the_remedy(tmp_path, by_path):
    builder = Foreign(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    folder = pathlib.Path(builder.data_path)
    info = (folder / "dataset_info.json").read_text()
    (folder / "dataset_info.json").write_text(info.replace("array_record", "tfrecord"))
    name, data_dir = (str(folder), None) if by_path else ("foreign", str(tmp_path))
    with pytest.raises(UserError, match='prepare it with file_format="array_record"') as raised:
        load(name, data_dir=data_dir)
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
