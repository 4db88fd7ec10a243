import unicodedata

import numpy as np
import pytest
from PIL import Image

from fm.data.load import load
from fm.errors import UserError

RNG = np.random.default_rng(0)


def picture(path, size=(8, 8), mode="L"):
    """Writes a random image; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    pixels = RNG.integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels, mode).save(path)
    return pixels


def by_class(folder, count=10, **options):
    return {
        name: [picture(folder / name / f"{i}.png", **options) for i in range(count)]
        for name in ("cat", "dog")
    }


def test_images_by_class(tmp_path):
    written = by_class(tmp_path)
    (tmp_path / ".DS_Store").write_text("hidden")
    (tmp_path / "cat" / ".hidden").write_text("hidden")
    (tmp_path / "README.md").write_text("beside the classes")
    dataset = load(str(tmp_path))
    assert dataset.modality == "image" and dataset.classes == ("cat", "dog")
    assert dataset.info["shape"] == [8, 8, 1]
    expected = {
        (pixels.tobytes(), number)
        for number, name in enumerate(dataset.classes)
        for pixels in written[name]
    }
    found = {
        (image.tobytes(), label)
        for split in (dataset.train, dataset.test)
        for image, label in zip(split.inputs(range(len(split))), split.labels, strict=True)
    }
    assert found == expected


@pytest.mark.parametrize(
    ("sizes", "mode", "shape"),
    [
        ([(20, 12)], "L", [12, 20, 1]),
        ([(20, 12)], "RGB", [12, 20, 3]),
        ([(20, 12)], "RGBA", [12, 20, 3]),
        ([(20, 12), (12, 20)], "L", [32, 32, 1]),
        ([(64, 64)], "RGB", [32, 32, 3]),
    ],
)
def test_image_sizes(tmp_path, sizes, mode, shape):
    for number in range(10):
        picture(tmp_path / f"{number}.png", sizes[number % len(sizes)], mode)
    dataset = load(str(tmp_path))
    assert dataset.info["shape"] == shape
    assert list(dataset.train.inputs([0]).shape[1:]) == shape
    assert dataset.train.labels is None


def test_one_colour_image_makes_all_colour(tmp_path):
    by_class(tmp_path)
    picture(tmp_path / "cat" / "colour.jpg", mode="RGB")
    assert load(str(tmp_path)).info["shape"] == [8, 8, 3]


def test_given_split_of_images_is_kept(tmp_path):
    by_class(tmp_path / "train", count=3)
    by_class(tmp_path / "test", count=1)
    dataset = load(str(tmp_path))
    assert dataset.info["split"] == "official"
    assert (len(dataset.train), len(dataset.test)) == (6, 2)


def test_given_split_of_texts_is_kept(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\nc,x\n")
    (tmp_path / "test.csv").write_text("text,label\nd,y\n")
    dataset = load(str(tmp_path))
    assert dataset.info["split"] == "official" and dataset.classes == ("x", "y")
    assert dataset.test.inputs([0]) == ["d"] and dataset.test.labels.tolist() == [1]
    assert sorted(dataset.train.inputs(range(3))) == ["a", "b", "c"]


def test_texts_by_class(tmp_path):
    for name in ("neg", "pos"):
        for number in range(5):
            path = tmp_path / name / "deeper" / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name}\n\n{number}")
    dataset = load(str(tmp_path))
    assert dataset.classes == ("neg", "pos")
    assert dataset.info["counts"]["train"] + dataset.info["counts"]["test"] == 10


def test_a_pile_of_texts(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(f"one {number}\n\ntwo {number}")
    dataset = load(str(tmp_path))
    assert len(dataset.train) + len(dataset.test) == 10 and dataset.classes == ()


def _broken(folder):
    by_class(folder)
    (folder / "cat" / "bad.png").write_bytes(b"not an image")


def _cut_off(folder):
    by_class(folder)
    path = folder / "cat" / "bad.png"
    picture(path, (30, 30))
    path.write_bytes(path.read_bytes()[:200])


def _single(folder):
    by_class(folder)
    picture(folder / "emu" / "0.png")


def _empty_class(folder):
    by_class(folder)
    (folder / "emu").mkdir()


def _one_class(folder):
    by_class(folder)
    for path in (folder / "dog").iterdir():
        path.unlink()
    (folder / "dog").rmdir()


def _unknown(folder):
    by_class(folder)
    (folder / "cat" / "notes.doc").write_text("x")


def _unknown_flat(folder):
    (folder / "notes.doc").write_text("x")


def _mixed(folder):
    by_class(folder)
    (folder / "cat" / "notes.txt").write_text("x")


def _mixed_flat(folder):
    picture(folder / "a.png")
    (folder / "a.txt").write_text("x")


def _no_test(folder):
    by_class(folder / "train")


def _unseen(folder):
    by_class(folder / "train")
    picture(folder / "test" / "emu" / "0.png")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (_broken, r"bad\.png is a broken image"),
        (_cut_off, r"bad\.png is a broken image"),
        (_single, "label 'emu' has only one example"),
        (_empty_class, "emu is empty"),
        (_one_class, "label 'cat' is the only one"),
        (_unknown, r"notes\.doc: unknown ending '\.doc'.*accepted: .*\.png"),
        (_unknown_flat, r"unknown ending '\.doc'; accepted: \.txt, .*\.png"),
        (_mixed, "mixes images and texts"),
        (_mixed_flat, r"mixes \.png, \.txt files"),
        (_no_test, "only one of the subfolders train and test"),
        (_unseen, "label 'emu' occurs in the test split only"),
        (lambda folder: None, "is empty"),
    ],
)
def test_errors(tmp_path, make, expected):
    make(tmp_path)
    with pytest.raises(UserError, match=expected) as raised:
        load(str(tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("train", "test", "more"),
    [
        ("Train", "Test", ()),
        ("TRAIN", "TEST", ()),
        ("training", "testing", ()),
        ("Training_Set", "test-set", ()),
        ("train", "val", ()),
        ("train2017", "dev", ()),
        ("train_images", "evaluation", ()),
        ("train", "test", ("extra",)),
    ],
)
def test_spellings_of_split_folders(tmp_path, capsys, train, test, more):
    for name, count in ((train, 3), (test, 2), *((name, 1) for name in more)):
        by_class(tmp_path / name, count)
    dataset = load(str(tmp_path))
    assert dataset.classes == ("cat", "dog") and dataset.info["split"] == "official"
    assert (len(dataset.train), len(dataset.test)) == (6, 4)
    said = capsys.readouterr().err
    assert all(f"{name} is left out" in said for name in more)
    if (train, test) != ("train", "test"):
        assert f"{train} is read as the train split, {test} as the test split" in said


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("Train",), "only one of the subfolders train and test .it has: Train"),
        (("Test", "validation"), "only one of the subfolders train and test"),
        (("train", "Training", "test"), "train and Training both say train|Training and train"),
        (("cat/train", "cat/test", "dog/x"), "cat is a class folder with the splits inside"),
    ],
)
def test_split_folders_that_make_no_split(tmp_path, names, expected):
    for name in names:
        by_class(tmp_path / name, 2)
    with pytest.raises(UserError, match=expected) as raised:
        load(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_a_class_named_like_a_split_is_told(tmp_path, capsys):
    by_class(tmp_path)
    for number in range(9):
        picture(tmp_path / "Train" / f"{number}.png")
    picture(tmp_path / "stray.png")
    assert load(str(tmp_path)).classes == ("Train", "cat", "dog")
    said = capsys.readouterr().err
    assert "Train, named like a split, is read as a class" in said
    assert "1 files beside the class folders are left out, such as stray.png" in said


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train.csv", "TEST.csv"),
        ("reviews_train.csv", "reviews_dev.csv"),
        ("training.csv", "testing.csv"),
        ("myTrain.csv", "myTest.csv"),
        ("train-set.jsonl", "val.csv"),
        ("train.tsv", "test.csv"),
    ],
)
def test_spellings_of_split_files(tmp_path, capsys, train, test):
    for name, texts in ((train, "abc"), (test, "d")):
        rows = [(text, "xyx"[number % 3]) for number, text in enumerate(texts)]
        comma = "\t" if name.endswith("tsv") else ","
        lines = [f"text{comma}label", *(f"{text}{comma}{label}" for text, label in rows)]
        if name.endswith("jsonl"):
            lines = [f'{{"text": "{text}", "label": "{label}"}}' for text, label in rows]
        (tmp_path / name).write_text("\n".join(lines))
    (tmp_path / "README.txt").write_text("about")
    dataset = load(str(tmp_path))
    assert (len(dataset.train), len(dataset.test), dataset.info["split"]) == (3, 1, "official")
    assert f"{train} is read as the train split, {test} as" in capsys.readouterr().err or (
        train == "train.tsv"
    )


def test_two_files_of_one_split_are_refused(tmp_path):
    for name in ("train.csv", "train.txt", "test.csv"):
        (tmp_path / name).write_text("text,label\na,x\nb,y\n")
    with pytest.raises(UserError, match=r"train\.csv and train\.txt both say train"):
        load(str(tmp_path))


def test_what_lies_behind_links_is_read_again_when_it_changes(tmp_path):
    folder, store = tmp_path / "data", tmp_path / "store"
    by_class(store, 6)
    (folder / "cat").mkdir(parents=True)
    (folder / "dog").symlink_to(store / "dog")
    for name in ("a", "bb", "c", "dd", "e", "ff"):
        picture(store / "named" / f"{name}.png")
    (folder / "cat" / "deep").symlink_to(store / "named")
    prints = {load(str(folder)).info["fingerprint"] for _ in range(2)}
    picture(store / "named" / "a.png")
    prints.add(load(str(folder)).info["fingerprint"])
    picture(store / "dog" / "0.png")
    prints.add(load(str(folder)).info["fingerprint"])
    (folder / "dog").unlink()
    by_class(tmp_path / "other", 9)
    (folder / "dog").symlink_to(tmp_path / "other" / "dog")
    counts = load(str(folder)).info["counts"]
    assert len(prints) == 3 and counts["train"] + counts["test"] == 15


def test_a_link_to_a_folder_above_is_refused(tmp_path):
    by_class(tmp_path)
    (tmp_path / "cat" / "again").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link to a folder that it lies in"):
        load(str(tmp_path))


def test_class_folders_in_two_unicode_forms_are_one_class(tmp_path, capsys):
    for form in ("NFC", "NFD"):
        for number in range(4):
            picture(tmp_path / unicodedata.normalize(form, "café") / f"{number}.png")
    for number in range(4):
        picture(tmp_path / "bar" / f"{number}.png")
    assert load(str(tmp_path)).classes == ("bar", unicodedata.normalize("NFC", "café"))
    assert "2 spellings of the label 'café'" in capsys.readouterr().err


def test_litter_of_other_systems_is_no_data(tmp_path):
    by_class(tmp_path)
    for name in ("__MACOSX/cat/._0.png", "cat/Thumbs.db", "dog/desktop.ini", "cat/.DS_Store"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert load(str(tmp_path)).classes == ("cat", "dog")
