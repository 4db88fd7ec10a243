"""Parquet, Arrow and Feather files, folders that `datasets` saved, and what such tables hold."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from fm.data.load import load
from fm.data.media import audio, image
from fm.data.readers import hf_datasets
from fm.data.readers.arrow import read_arrow_file
from fm.data.readers.columns import read_rows
from fm.data.readers.examples import ReadLog, TextFormat
from fm.errors import UserError
from fm.study.config import short_name
from tests.data.helpers_files import column, labels_by_text, reviews, write_table


def write_arrow(path, rows, schema=None):
    """Writes rows as .parquet, .feather, or .arrow (a stream, as `datasets` does)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=schema)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    return str(path)


def with_classes(names, column_name="label"):
    """A schema of texts and class numbers, with the names of the classes as `datasets` writes."""
    features = {
        "text": {"dtype": "string", "_type": "Value"},
        column_name: {"names": names, "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([("text", pa.string()), (column_name, pa.int64())], metadata)


@pytest.mark.parametrize("ending", ["parquet", "feather", "arrow"])
def test_the_same_rows_make_the_same_data_as_csv(tmp_path, ending):
    rows = reviews(60)
    plain = load(write_table(tmp_path / "r.csv", rows))
    data = load(write_arrow(tmp_path / f"r.{ending}", rows))
    assert data.info["fingerprint"] == plain.info["fingerprint"]
    expected = {row["text"]: f"r.{ending}:{n}" for n, row in enumerate(rows, 1)}
    assert column(data.train, "row_ids") | column(data.test, "row_ids") == expected


def test_null_labels_are_unlabeled_and_numbers_of_pandas_are_classes(tmp_path):
    rows = [{"text": f"t {n}", "label": None if n % 3 == 0 else float(n % 3)} for n in range(60)]
    data = load(write_arrow(tmp_path / "r.parquet", rows))
    assert data.classes == ("1", "2") and int(np.sum(data.train.labels < 0)) == 20
    rows[4]["label"] = 1.5
    path = write_arrow(tmp_path / "s.parquet", rows)
    with pytest.raises(
        UserError, match=r"row 5: 'label' is the decimal number 1.5; .*value_column"
    ):
        load(path)
    data = load(path, value_column="label")
    assert data.info["target"] == "value"


def test_lists_are_label_sets(tmp_path):
    rows = [{"text": f"t {n}", "label": [["a"], ["a", "b"], []][n % 3]} for n in range(60)]
    data = load(write_arrow(tmp_path / "r.parquet", rows))
    assert data.classes == ("a", "b")
    assert set(data.train.label_sets(range(len(data.train)))) == {(), (0,), (0, 1)}


def test_names_of_classes_are_those_of_datasets(tmp_path):
    rows = [{"text": f"t {n}", "label": n % 3 - 1} for n in range(60)]
    data = load(write_arrow(tmp_path / "r.parquet", rows, with_classes(["neg", "pos"])))
    assert data.classes == ("neg", "pos")
    names = labels_by_text(data, data.train) | labels_by_text(data, data.test)
    assert all(names[f"t {n}"] == (None, "neg", "pos")[n % 3] for n in range(60))


def test_shards_of_splits(tmp_path):
    for split, count in (("train", 2), ("test", 1)):
        for n in range(count):
            name = f"{split}-{n:05d}-of-{count:05d}.parquet"
            write_arrow(tmp_path / name, reviews(20, prefix=f"{split} {n}"))
    data = load(str(tmp_path))
    assert (len(data.train), len(data.test)) == (40, 20)


def _pictures(count=12):
    draws = np.random.default_rng(0).integers(0, 255, (count, 8, 8, 3), np.uint8)
    return [{"bytes": image.encode_png(each), "path": None} for each in draws]


@pytest.mark.parametrize("name", ["r.parquet", "r.arrow"])
@pytest.mark.parametrize("as_struct", [True, False])
def test_images_in_a_column(tmp_path, name, as_struct):
    rows = [
        {"image": each if as_struct else each["bytes"], "label": "ab"[n % 2], "key": f"k{n}"}
        for n, each in enumerate(_pictures())
    ]
    path = write_arrow(tmp_path / name, rows)
    data = load(path, id_column="key")
    assert data.modality == "image" and data.info["shape"] == [8, 8, 3]
    assert len(data.train) + len(data.test) == 12 and data.classes == ("a", "b")
    ids = data.train.row_ids(range(len(data.train)))
    label_of = {row["key"]: row["label"] for row in rows}
    assert [label_of[each] for each in ids] == [data.classes[n] for n in data.train.labels]
    named = load(path, text_column="image")
    assert sorted(named.train.ids) == sorted(data.train.ids)


def test_sounds_in_a_column(tmp_path):
    draws = np.random.default_rng(0).integers(-900, 900, (12, 800)).astype(np.int16)
    rows = [
        {"audio": {"bytes": audio.encode_wav(each, 8000), "path": f"{n}.wav"}, "label": n % 2}
        for n, each in enumerate(draws)
    ]
    data = load(write_arrow(tmp_path / "r.parquet", rows))
    assert data.modality == "audio" and data.info["rate"] == 8000


def test_a_column_error_names_the_flag_and_the_columns(tmp_path):
    path = write_arrow(tmp_path / "r.parquet", reviews(9))
    with pytest.raises(UserError, match=r"--text_column=body: .*it has: 'text', 'label'"):
        load(path, text_column="body")
    empty = write_arrow(tmp_path / "e.parquet", [], pa.schema([("text", pa.string())]))
    with pytest.raises(UserError, match=r"e\.parquet is empty"):
        load(empty)


def _saved(folder, rows, names):
    """Writes what `datasets.Dataset.save_to_disk` writes."""
    write_arrow(folder / "data-00000-of-00001.arrow", rows, with_classes(names))
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))


@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather"])
def test_a_damaged_file_is_read_or_refused(tmp_path, ending):
    path = tmp_path / f"r.{ending}"
    write_arrow(path, _numbered(60, "a"), with_classes(["no", "yes"]))
    whole, draws, refused = path.read_bytes(), np.random.default_rng(0), 0
    for n in range(80):
        content = bytearray(whole[: draws.integers(len(whole))] if n % 3 == 0 else whole)
        for place in draws.integers(len(whole), size=4):
            content[place % max(len(content), 1) : place % max(len(content), 1) + 1] = b"\xff"
        path.write_bytes(content)
        try:
            read_rows(path, read_arrow_file(path), TextFormat(), ReadLog(path, "r", tmp_path))
        except UserError as error:
            refused += 1
            assert path.name in str(error) and "\n" not in str(error)
    assert refused > 40


def _numbered(count, prefix):
    return [{"text": f"{prefix} {n}", "label": n % 2} for n in range(count)]


def test_a_folder_saved_by_datasets(tmp_path):
    _saved(tmp_path / "one", _numbered(40, "a"), ["no", "yes"])
    data = load(str(tmp_path / "one"))
    assert data.classes == ("no", "yes") and data.info["split"] == "by hash"
    many = tmp_path / "many"
    for split, count in (("train", 20), ("test", 6), ("validation", 4), ("unsupervised", 9)):
        _saved(many / split, _numbered(count, split), ["no", "yes"])
    splits = {"splits": ["train", "test", "validation", "unsupervised"]}
    (many / "dataset_dict.json").write_text(json.dumps(splits))
    data = load(str(many))
    assert (len(data.train), len(data.test)) == (33, 6)
    assert int(np.sum(data.train.labels < 0)) == 9


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("{", "is not readable JSON"),
        ('{"_data_files": 1}', "lists no data files"),
        ('{"_data_files": [{"filename": "../x.arrow"}]}', "has no '../x.arrow'"),
    ],
)
def test_a_broken_folder_is_refused(tmp_path, state, says):
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(UserError, match=says):
        load(str(tmp_path))


def test_the_library_itself_saves_what_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    made = datasets.Dataset.from_list(_numbered(40, "a"), features=features)
    made.save_to_disk(str(tmp_path / "one"))
    data = load(str(tmp_path / "one"))
    assert data.classes == ("no", "yes") and len(data.train) + len(data.test) == 40
    made.train_test_split(test_size=8, seed=0).save_to_disk(str(tmp_path / "two"))
    assert len(load(str(tmp_path / "two")).test) == 8
    sets = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.Sequence(datasets.ClassLabel(names=["a", "b"])),
        }
    )
    rows = [{"text": f"t {n}", "label": [[0], [0, 1]][n % 2]} for n in range(40)]
    datasets.Dataset.from_list(rows, features=sets).save_to_disk(str(tmp_path / "sets"))
    data = load(str(tmp_path / "sets"))
    assert data.classes == ("a", "b") and data.info["target"] == "label_set"


class _Library:
    """Stands in for `datasets`: hands out one saved data set."""

    def __init__(self):
        self.asked = []

    def load_dataset(self, name, config):
        self.asked.append((name, config))
        if name == "gone":
            raise ConnectionError("no such data set\nmore")
        return self

    def save_to_disk(self, folder):
        import pathlib

        _saved(pathlib.Path(folder), _numbered(40, "a"), ["no", "yes"])


def test_a_name_of_the_hub_is_fetched_once(monkeypatch, empty_cache):
    library = _Library()
    monkeypatch.setattr(hf_datasets.importlib, "import_module", lambda name: library)
    for _ in range(2):
        data = load("hf:owner/name:config")
        assert data.classes == ("no", "yes") and library.asked == [("owner/name", "config")]
    with pytest.raises(UserError, match=r"datasets cannot fetch hf:gone: no such data set$"):
        load("hf:gone")
    with pytest.raises(UserError, match=r"hf:a b: takes hf:NAME"):
        load("hf:a b")
    assert not list(empty_cache.rglob("gone")), "nothing half-written"
    assert short_name("hf:owner/name:config") == "name"


def test_without_the_library_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(hf_datasets.importlib, "import_module", missing)
    with pytest.raises(UserError, match=r'pip install "fm\[datasets\]"'):
        load("hf:name")
