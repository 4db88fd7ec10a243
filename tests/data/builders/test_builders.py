import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fm.data.load import load
from fm.data.splitting import is_test


def test_digits():
    dataset = load("digits")
    assert (len(dataset.train), len(dataset.test)) == (1403, 394)
    assert dataset.modality == "image" and dataset.classes == tuple("0123456789")
    assert dataset.info["shape"] == [8, 8, 1] and dataset.info["split"] == "by hash"
    assert all(is_test(digest, 0.2) for digest in dataset.test.ids)
    assert not any(is_test(digest, 0.2) for digest in dataset.train.ids)


def test_digits_are_those_of_scikit_learn():
    dataset = load("digits")
    original = load_digits()
    expected = {
        (np.round(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(original.images, original.target, strict=True)
    }
    found = {
        (image.tobytes(), int(label))
        for split in (dataset.train, dataset.test)
        for image, label in zip(split.inputs(range(len(split))), split.labels, strict=True)
    }
    assert found == expected


def test_the_split_is_stable_under_order(monkeypatch, empty_cache):
    before = load("digits").info["fingerprint"]
    original = load_digits()
    original.images, original.target = original.images[::-1], original.target[::-1]
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: original)
    monkeypatch.setenv("FM_CACHE", str(empty_cache.with_name("other_cache")))
    assert load("digits").info["fingerprint"] == before


def test_photos():
    dataset = load("photos")
    assert len(dataset.train) + len(dataset.test) == 11_080
    assert 100 < len(dataset.test) < 400
    assert dataset.classes == () and dataset.train.labels is None
    crops = dataset.train.inputs(range(500))
    assert crops.shape == (500, 8, 8, 1) and crops.dtype == np.uint8 and crops.std() > 30


@pytest.mark.usefixtures("reviews_wheel")
@pytest.mark.slow
def test_film_reviews():
    dataset = load("film_reviews")
    assert (len(dataset.train), len(dataset.test)) == (26_697, 6_833)
    assert dataset.modality == "text" and dataset.classes == ("neg", "pos")
    counts = dataset.info["counts"]
    both = {
        name: counts["train_by_class"][name] + counts["test_by_class"][name]
        for name in dataset.classes
    }
    assert both == {"neg": 16_765, "pos": 16_765}
    assert "research" in dataset.info["licence"]
    assert not set(dataset.train.ids) & set(dataset.test.ids)
    texts = dataset.train.inputs(range(300))
    assert not any("<br />" in text for text in texts) and any("\n" in text for text in texts)


def test_nothing_loads_tensorflow():
    code = "import sys, fm.data.load; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
