"""Prepared folders whose description names code of somebody else's."""

import json
import sys

import pytest

from fm.data import tfds_safety
from fm.data.load import load
from fm.errors import UserError
from tests.data.test_load import Foreign


@pytest.fixture
def folder(tmp_path):
    builder = Foreign(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    return builder.data_path


def renamed(folder, name, key="pythonClassName"):
    """Every feature is now of another class; of older versions in another spelling."""
    text = (folder / "features.json").read_text()
    described = json.loads(text)
    inner = described["featuresDict"]["features"]
    for feature in inner.values():
        feature.pop("pythonClassName")
        feature[key] = name
    (folder / "features.json").write_text(json.dumps(described))


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
@pytest.mark.parametrize("by_path", [True, False])
def test_no_module_is_imported_that_a_folder_names(folder, tmp_path, monkeypatch, by_path, key):
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    renamed(folder, "stranger.Text", key)
    name, data_dir = (str(folder), None) if by_path else ("foreign", str(tmp_path))
    with pytest.raises(UserError, match=r"names the class 'stranger\.Text'.*accepted are TFDS's"):
        load(name, data_dir=data_dir)
    assert not (tmp_path / "ran").exists() and "stranger" not in sys.modules


def test_nor_one_named_in_json_within_json(folder):
    inner = json.dumps({"feature": {"type": "stranger.Text", "content": {}}})
    described = {
        "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
        "jsonFeature": {"json": inner},
    }
    (folder / "features.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"'stranger\.Text'"):
        tfds_safety.check_features(folder)


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "[]", '{"a": 1}'])
def test_a_damaged_description(folder, name, content):
    (folder / name).write_text(content)
    with pytest.raises(UserError) as raised:
        load(str(folder))
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


def test_what_is_cut_short(folder):
    for path in folder.glob("*array_record*"):
        path.write_bytes(path.read_bytes()[:70_000])
    with pytest.raises(UserError, match="is not a complete prepared TFDS data set"):
        load(str(folder), text_column="body")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        TypeError("a bug"),
        AttributeError("a bug"),
        AssertionError("a bug"),
        PermissionError(13, "a bug"),
        OSError(28, "a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("by_path", [True, False])
def test_an_error_that_is_not_of_the_data_stays_what_it_is(folder, monkeypatch, error, by_path):
    def broken(*_, **__):
        raise error

    monkeypatch.setattr("fm.data.load._dataset", broken)
    with pytest.raises(type(error), match="a bug"):
        load(str(folder), text_column="body") if by_path else load("digits")
