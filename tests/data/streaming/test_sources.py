"""Which files of a folder are trained on."""

import pytest

from fm.data.readers.examples import TextFormat
from fm.data.streaming.sources import CannotStreamError, plan_text, text_size
from fm.errors import UserError

LINES = "\n".join(f"line {n}" for n in range(20))
ROWS = "text,label\n" + "".join(f"row {n},{n % 2}\n" for n in range(20))


def fill(folder, **files):
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def plan(folder, **options):
    found = plan_text(folder, TextFormat(**options))
    return found, [found.name_of(file) for file in found.files]


def test_a_folder_of_files(tmp_path):
    found, names = plan(fill(tmp_path, b_txt=LINES, a_txt=LINES, README_md="# text"))
    assert names == ["a.txt", "b.txt"] and found.test_share == 0.2
    assert {file.kind for file in found.files} == {"lines"} and not found.notices
    assert text_size(tmp_path) == found.size == 2 * len(LINES)


def test_shards_of_a_table(tmp_path):
    _, names = plan(fill(tmp_path, a_csv=ROWS, b_csv=ROWS))
    assert names == ["a.csv", "b.csv"]


def test_the_test_split_is_left_out(tmp_path):
    found, names = plan(fill(tmp_path, train_csv=ROWS, test_csv=ROWS, validation_csv=ROWS))
    assert names == ["train.csv", "validation.csv"] and found.test_share == 0
    folders = fill(tmp_path / "f", train__a_txt=LINES, unlabeled__b_txt=LINES, test__c_txt=LINES)
    found, names = plan(folders)
    assert names == ["train/a.txt", "unlabeled/b.txt"] and found.test_share == 0


def test_class_folders(tmp_path):
    found, names = plan(fill(tmp_path, good__a_txt="a", bad__b_txt="b", unlabeled__c_txt="c"))
    assert names == ["bad/b.txt", "good/a.txt", "unlabeled/c.txt"]
    assert [file.labeled for file in found.files] == [True, True, False]


def test_paragraphs_are_told(tmp_path):
    text = "\n\n".join(["one\ntwo"] * 12)
    found, _ = plan(fill(tmp_path, a_txt=text))
    assert found.files[0].kind == "paragraphs" and "paragraphs" in found.notices[0]


def test_what_datasets_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    split = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(str(tmp_path / "two"))
    found, names = plan(tmp_path / "two")
    assert len(names) == 1 and names[0].startswith("train/") and found.test_share == 0
    assert "test are left out" in found.notices[0]
    split.save_to_disk(str(tmp_path / "one"))
    found, _ = plan(tmp_path / "one")
    assert found.test_share == 0.2 and found.files[0].kind == "arrow"


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"a_csv": ROWS}, {"group_column": "label"}, "--group_column=label: is for data that fits"),
        ({"a_png": "x"}, {}, "holds images"),
        ({"a_csv": ROWS, "b_txt": LINES}, {}, r"holds \.csv, \.txt files"),
        ({"a_conll": "a O\nb B-x\nc O\n"}, {}, r"holds \.conll files"),
    ],
)
def test_what_cannot_stream(tmp_path, files, options, message):
    with pytest.raises(CannotStreamError, match=message):
        plan(fill(tmp_path, **files), **options)


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match="holds no text"):
        plan(fill(tmp_path, a_txt=""))
