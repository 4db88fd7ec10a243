"""Images and clips larger than 32x32 go the whole way from files, archives and TFDS to arrays."""

import io
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from fm.data import decontamination
from fm.data.datasets import Split
from fm.data.load import load
from fm.data.media import image
from fm.data.readers import plain_files
from fm.errors import UserError
from tests.data.media.test_video import by_class, frames, noise

RNG = np.random.default_rng(0)


def pictures(folder, count=24, sizes=((80, 100), (60, 60))):
    """Two classes of smooth noise, in turn of the given (height, width)."""
    for number in range(count):
        height, width = sizes[number % len(sizes)]
        small = RNG.integers(0, 256, (8, 8, 3), np.uint8)
        picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    return folder


def archive(folder):
    path = folder.with_suffix(".tar.gz")
    with tarfile.open(path, "w:gz") as packed:
        packed.add(folder, folder.name)
    return path


@pytest.mark.parametrize("form", [lambda folder: folder, archive], ids=["folder", "archive"])
def test_the_same_items_at_every_size(tmp_path, capsys, form):
    path = str(form(pictures(tmp_path / "pictures")))
    usual, default, large = load(path), load(path, image_size=32), load(path, image_size=64)
    assert usual.info == default.info and usual.train.ids == default.train.ids
    assert usual.info["shape"] == [32, 32, 3] and large.info["shape"] == [64, 64, 3]
    assert usual.info["shrunk"] == {"from": [80, 100], "to": [32, 32], "count": 24}
    assert large.info["shrunk"] == {"from": [80, 100], "to": [64, 64], "count": 12}
    said = capsys.readouterr().err
    assert "resized to 64x64 pixels (width x height), 12 of them shrunk, typically from" in said
    for split in ("train", "test"):
        small, big = getattr(usual, split), getattr(large, split)
        assert len(small) == len(big) > 0 and small.labels.tolist() == big.labels.tolist()
        shrunk = big.images(range(len(big))).reshape(len(big), 32, 2, 32, 2, 3).mean((2, 4))
        kept = small.images(range(len(small))).astype(float)
        assert np.abs(shrunk - kept).mean((1, 2, 3)).max() < 8  # the same picture in each place
    assert load(path, image_size=128).info["shape"] == [128, 128, 3]
    assert load(path, image_size=128).info["shrunk"] is None


def test_clips_are_kept_larger(tmp_path):
    by_class(tmp_path, lambda path, _: frames(path, noise(8, 48)))
    data = load(str(tmp_path), image_size=64)
    assert data.modality == "video" and data.info["shape"] == [8, 48, 48, 1]
    assert data.info["shrunk"] is None
    usual = load(str(tmp_path))
    assert usual.info["shrunk"] == {"from": [48, 48], "to": [32, 32], "count": 8}
    assert usual.train.labels.tolist() == data.train.labels.tolist()


class Stored(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images whose declared shape is given, with a training split alone."""

    name = "stored"
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def __init__(self, folder, shape):
        self._shape = shape
        super().__init__(data_dir=folder, file_format="array_record")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=self._shape),
                "label": tfds.features.ClassLabel(names=["a", "b"]),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(20):
            pixels = np.full((60, 48, 3), 10 * number, np.uint8)
            encoded = io.BytesIO(image.encode_png(pixels))
            yield number, {"image": encoded, "label": number % 2}


@pytest.mark.parametrize("declared", [(60, 48, 3), (None, None, 3)])
def test_tfds_images_are_kept_larger(tmp_path, declared):
    Stored(tmp_path, declared).download_and_prepare()
    usual, large = (
        load("stored", data_dir=str(tmp_path), image_size=image_size) for image_size in (32, 64)
    )
    assert usual.info["shape"] == [32, 32, 3] and large.info["shape"] == [60, 48, 3]
    assert usual.info["shrunk"] == {"from": [60, 48], "to": [32, 32], "count": 20}
    assert large.info["shrunk"] is None
    for split in ("train", "test"):
        small, big = getattr(usual, split), getattr(large, split)
        gray = [each.images(range(len(each)))[:, 0, 0, 0].tolist() for each in (small, big)]
        assert gray[0] == gray[1] and gray[0]


def split(images):
    return Split(
        None, tuple(map(str, range(len(images)))), np.arange(len(images)), lambda rows: images[rows]
    )


@pytest.mark.parametrize(
    ("modality", "shape"), [("image", (256, 256, 3)), ("video", (8, 96, 64, 1))]
)
def test_near_duplicates_are_found_at_any_size(modality, shape, monkeypatch):
    monkeypatch.setattr("fm.data.dedup.image._MAX_PIXELS", 2 * 256 * 256)  # several chunks
    small = RNG.integers(0, 256, (12, *shape[:-3], 6, 6, shape[-1]), np.uint8)
    factors = -(-shape[-3] // 6), -(-shape[-2] // 6)
    large = small.repeat(factors[0], axis=-3).repeat(factors[1], axis=-2)
    pretrain = large[..., : shape[-3], : shape[-2], :]
    noisy = np.clip(pretrain[:4] + RNG.integers(-3, 4, pretrain[:4].shape), 0, 255)
    found = decontamination.find_duplicates(
        split(pretrain), split(noisy.astype(np.uint8)), modality
    )
    assert found.duplicate_idx.tolist() == [0, 1, 2, 3]


def test_what_is_no_image_is_told_of_and_a_bad_size_refused(tmp_path, capsys):
    path = tmp_path / "texts.csv"
    path.write_text("text,label\n" + "".join(f"word {n},{n % 2}\n" for n in range(20)))
    data = load(str(path), image_size=64)
    said = "--image_size=64 is for images and clips, and changes no text"
    assert said in capsys.readouterr().err and data.train.ids == load(str(path)).train.ids
    with pytest.raises(UserError, match="--image_size=100: must be a multiple of 8 from 8 to 256"):
        load(str(path), image_size=100)


@pytest.mark.parametrize("form", [lambda folder: folder, archive], ids=["folder", "archive"])
def test_images_too_many_for_memory_are_decoded_when_stored(tmp_path, monkeypatch, form):
    path = str(form(pictures(tmp_path / "pictures")))
    loaded = []
    for name, limit in (("kept", 2**28), ("again", 0)):
        monkeypatch.setenv("FM_CACHE", str(tmp_path / name))
        monkeypatch.setattr(plain_files, "_MAX_DECODED_BYTES", limit)
        loaded.append(load(path, image_size=64))
    kept, again = loaded
    assert kept.info == again.info
    for split in ("train", "test"):
        a, b = getattr(kept, split), getattr(again, split)
        assert a.ids == b.ids
        np.testing.assert_array_equal(a.array(range(len(a))), b.array(range(len(b))))
