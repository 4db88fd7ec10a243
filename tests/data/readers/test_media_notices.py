import numpy as np
import pytest
from PIL import Image

from fm.data.load import load
from fm.errors import UserError


def picture(path, value, size=64):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size, size), value, np.uint8)
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)


def test_files_that_are_equal_once_converted_are_counted(tmp_path, capsys):
    for number in range(8):
        picture(tmp_path / "ab"[number % 2] / f"{number}.png", 20 * number)
    large = np.full((64, 64), 200, np.uint8)
    for number in range(2):
        large[40, number] = 201  # too little to be seen at half the size
        Image.fromarray(large).save(tmp_path / "a" / f"large{number}.png")
    load(str(tmp_path))
    assert "2 of 10 different images are equal to another once converted" in capsys.readouterr().err


def test_a_label_whose_examples_become_equal_says_so(tmp_path, capsys):
    for number in range(6):
        picture(tmp_path / "ab"[number % 2] / f"{number}.png", 20 * number * (number % 2))
    for number in (2, 4):
        Image.fromarray(np.zeros((60 + number, 64), np.uint8)).save(tmp_path / f"a/{number}.png")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "a/0.png")
    with pytest.raises(UserError, match=r"label 'a' has only one example \(3 that are equal"):
        load(str(tmp_path))
    assert "different images are equal to another once converted" in capsys.readouterr().err


@pytest.mark.parametrize("depth", ["clip1/", ""])
def test_images_below_classes_are_told_of(tmp_path, capsys, depth):
    for number in range(12):
        name = f"cam{number // 6}_{number % 6 // 2}.png"
        picture(tmp_path / f"{'ab'[number % 2]}/{depth}{name}", 20 * number)
    assert load(str(tmp_path)).modality == "image"
    told = "12 images in 2 folders below the classes, such as clip1, are each an example of its own"
    assert (told in capsys.readouterr().err) == bool(depth)
