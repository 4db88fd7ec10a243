"""Tables that name media files: labels, numbers, ids and groups of images, sounds and clips."""

import zipfile

import numpy as np
import pytest

from fm.data.load import load
from fm.data.media import image
from fm.errors import UserError
from tests.data.helpers_files import write_table


def pictures(folder, count=12):
    """Writes different images and returns the rows of a table that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0).integers(0, 255, (count, 8, 8, 3), np.uint8)
    for n, pixels in enumerate(draws):
        (folder / f"{n}.png").write_bytes(image.encode_png(pixels))
    return [
        {"file": f"{folder.name}/{n}.png", "label": "ab"[n % 2], "age": n / 2, "who": f"w{n % 4}"}
        for n in range(count)
    ]


@pytest.mark.parametrize("by_folder", [True, False])
def test_a_table_gives_labels_groups_and_ids(tmp_path, capsys, by_folder):
    rows = pictures(tmp_path / "images")
    rows[0]["label"] = ""
    table = write_table(tmp_path / "labels.csv", rows)
    path = str(tmp_path) if by_folder else table
    data = load(path, file_column="file", group_column="who")
    assert data.modality == "image" and data.classes == ("a", "b")
    assert "below the classes" not in capsys.readouterr().err
    by_file = {row["file"]: row for row in rows}
    for split in (data.train, data.test):
        every = range(len(split))
        own = [by_file[each] for each in split.row_ids(every)]
        assert split.groups(every) == [row["who"] for row in own]
        names = ["" if label < 0 else data.classes[label] for label in split.labels]
        assert names == [row["label"] for row in own]
    sides = [set(each.groups(range(len(each)))) for each in (data.train, data.test)]
    assert not set.intersection(*sides) and data.info["split"] == "by who"


def test_a_number_for_each_image(tmp_path):
    path = write_table(tmp_path / "t.csv", pictures(tmp_path / "images"))
    data = load(path, file_column="file", value_column="age", id_column="file")
    found = dict(zip(data.train.row_ids(range(len(data.train))),
                     data.train.values(range(len(data.train))), strict=True))  # fmt: skip
    assert data.info["target"] == "value" and found
    assert all(found[f"images/{n}.png"] == n / 2 for n in range(12) if f"images/{n}.png" in found)
    assert data.train.images(range(len(data.train))).shape[1:] == (8, 8, 3)
    # A changed image is another data set, though the table is the same.
    (tmp_path / "images" / "3.png").write_bytes(image.encode_png(np.zeros((8, 8, 3), np.uint8)))
    again = load(path, file_column="file", value_column="age")
    assert again.info["fingerprint"] != data.info["fingerprint"]


def test_texts_that_a_table_names(tmp_path):
    rows = [{"file": f"{n}.txt", "label": "ab"[n % 2]} for n in range(20)]
    for n in range(20):
        (tmp_path / f"{n}.txt").write_text(f"text {n}\n\nmore")
    data = load(write_table(tmp_path / "t.csv", rows), file_column="file")
    assert data.modality == "text" and "text" in data.train.texts([0])[0]
    assert data.train.row_ids([0])[0].endswith(".txt")


@pytest.mark.parametrize(
    ("change", "flags", "says"),
    [
        ({"file": "images/99.png"}, {}, r"--file_column=file: .*line 2: there is no file 'images/"),
        ({"file": ""}, {}, "--file_column=file: .*line 2: 'file' is missing, empty"),
        ({}, {"file_column": "path"}, "--file_column=path: .*it has: 'file', 'label'"),
        ({}, {"second_text_column": "who"}, "--file_column=file and --second_text_column=who"),
    ],
)
def test_files_that_are_not_there_are_refused(tmp_path, change, flags, says):
    rows = pictures(tmp_path / "images", 4)
    rows[0] |= change
    path = write_table(tmp_path / "t.csv", rows)
    with pytest.raises(UserError, match=says):
        load(path, **({"file_column": "file"} | flags))


def test_a_table_in_an_archive_names_no_file_outside(tmp_path):
    pictures(tmp_path / "images", 4)
    for name, file in (("good.zip", "images/0.png"), ("bad.zip", str(tmp_path / "images/0.png"))):
        with zipfile.ZipFile(tmp_path / name, "w") as opened:
            for n in range(4):
                opened.write(tmp_path / "images" / f"{n}.png", f"images/{n}.png")
            rows = [f"images/{n}.png,{n % 2}" for n in range(1, 4)]
            opened.writestr("t.csv", "\n".join(["file,label", f"{file},0", *rows]) + "\n")
    assert len(load(str(tmp_path / "good.zip"), file_column="file").train)
    with pytest.raises(UserError, match="lies outside the archive"):
        load(str(tmp_path / "bad.zip"), file_column="file")


def test_two_tables_in_a_folder_are_refused(tmp_path):
    rows = pictures(tmp_path / "images", 4)
    for name in ("a.csv", "b.csv"):
        write_table(tmp_path / name, rows)
    with pytest.raises(UserError, match=r"it holds: a\.csv, b\.csv"):
        load(str(tmp_path), file_column="file")
