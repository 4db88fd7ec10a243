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
