"""Data sets made from scikit-learn's images: digits, moving digits, their frames, photos."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from fm.data.media.image import encode_png
from fm.data.prepare import BuiltinBuilder, Examples
from fm.data.splitting import array_digest, is_test, with_unique_keys

PHOTO_SIDE = 8
# Each photograph is cut at full, half and quarter size: texture, edges, whole shapes.
PHOTO_REDUCTIONS = (1, 2, 4)

# The two motions of a pair are each other's time reversed.
MOTIONS = (
    *("left", "right"),
    *("up", "down"),
    *("clockwise", "counterclockwise"),
    *("growing", "shrinking"),
)
NUM_FRAMES, CLIP_SIDE, RATE = 8, 16, 8.0
CLIPS_PER_DIGIT = 2

_SIZES = (5.0, 11.0)  # pixels
_RADII = (2.5, 4.5)  # pixels
_SPEEDS = (1.0, 2.0)  # pixels a frame
_STILL_BRIGHTNESS = 0.35  # of full
_NOISE = 12.0  # of 255, standard deviation

# Of both data sets made of them.
_DIGITS_LICENSE = "CC BY 4.0"
_DIGITS_CITATION = (
    "Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning "
    "Repository."
)


class Digits(BuiltinBuilder):
    """1,797 images of handwritten digits, gray 8x8; split by hash, 20% test.

    Features: image uint8 [8, 8, 1], 0..16 in the original stretched to 0..255; label.
    """

    DESCRIPTION = (
        "Handwritten digits of 43 people, 8x8 gray pixels (test half of the UCI data set Optical "
        "Recognition of Handwritten Digits)."
    )
    CITATION = _DIGITS_CITATION
    LICENSE = _DIGITS_LICENSE
    FEATURES = {  # noqa: RUF012
        "image": tfds.features.Image(shape=(8, 8, 1)),
        "label": tfds.features.ClassLabel(num_classes=10),
    }

    def _examples(self) -> Examples:
        for digest, image, label in load_digits():
            yield digest, {"image": io.BytesIO(encode_png(image)), "label": label}


def load_digits() -> Iterator[tuple[str, np.ndarray, int]]:
    """Yields (digest, image uint8 [8, 8, 1], label) of each of scikit-learn's digits."""
    from sklearn import datasets  # takes seconds that only preparing needs

    bunch: Any = datasets.load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    for image, label in zip(images, bunch.target, strict=True):
        yield array_digest(image), image, int(label)


class Photos(BuiltinBuilder):
    """11,080 unlabeled 8x8 gray crops of two photos without digits, for out-of-domain pretraining.

    Features: image uint8 [8, 8, 1]. Crops on a grid, without overlap; split by hash, 2% test.
    """

    DESCRIPTION = (
        "8x8 gray crops at three scales of two photographs, a Chinese temple and a flower, that "
        "ship with scikit-learn."
    )
    LICENSE = "CC BY 2.0 (photographs by danielbuechele and vultilion)"
    FEATURES = {"image": tfds.features.Image(shape=(PHOTO_SIDE, PHOTO_SIDE, 1))}  # noqa: RUF012
    TEST_SHARE = 0.02

    def _examples(self) -> Examples:
        for crop in _photo_crops():
            yield array_digest(crop), {"image": io.BytesIO(encode_png(crop))}


def _photo_crops() -> Iterator[np.ndarray]:
    """Yields uint8 [8, 8, 1] crops by scale, photograph, row and column."""
    from sklearn import datasets

    photographs: Any = datasets.load_sample_images()
    side = PHOTO_SIDE
    for reduction in PHOTO_REDUCTIONS:
        for photograph in photographs.images:
            gray = Image.fromarray(photograph).convert("L").reduce(reduction)
            rows, columns = gray.height // side, gray.width // side
            cropped = np.asarray(gray)[: rows * side, : columns * side, None]
            tiles = cropped.reshape(rows, side, columns, side, 1).swapaxes(1, 2)
            yield from tiles.reshape(-1, side, side, 1)


class MovingDigits(BuiltinBuilder):
    """3,594 clips of moving handwritten digits; the label is the motion, not the digit.

    Features: video uint8 [8, 16, 16, 1] at 8 frames/s, gray 0..255; label.

    A digit moves over a torus, past another that stands still, under noise. Each of scikit-learn's
    digits moves in two clips. The split is that of `digits`: the digits of test clips, moving or
    still, are in no training clip.

    No frame reveals the motion: position and size have the same distribution for all motions at all
    times. Nor does the set of frames tell the two motions of a pair apart: a clip of one, played
    backwards, is a clip of the other.
    """

    DESCRIPTION = (
        "Handwritten digits that move past other, still ones, 8 frames of 16x16 gray pixels at 8 "
        "frames/s: made from the digits of 43 people (test half of the UCI data set Optical "
        "Recognition of Handwritten Digits)."
    )
    CITATION = _DIGITS_CITATION
    LICENSE = _DIGITS_LICENSE
    FEATURES = {  # noqa: RUF012
        "video": tfds.features.Tensor(
            shape=(NUM_FRAMES, CLIP_SIDE, CLIP_SIDE, 1), dtype=np.uint8, encoding="bytes"
        ),
        "label": tfds.features.ClassLabel(names=MOTIONS),
    }
    METADATA = {"rate": RATE}  # noqa: RUF012

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {
            "train": self._generate_examples((), test=False),
            "test": self._generate_examples((), test=True),
        }

    def _generate_examples(self, examples: Examples, test: bool) -> Iterator[tuple[str, dict]]:
        return with_unique_keys(
            (array_digest(clip), {"video": clip, "label": label})
            for clip, label in _moving_clips(test, self.TEST_SHARE)
        )


class MovingDigitFrames(MovingDigits):
    """7,188 unlabeled 8x8 frames of `moving_digits`: other pictures near to `digits`.

    Features: image uint8 [8, 8, 1], two frames of each clip at half size. The split is that of
    `digits`: the digits of test frames, moving or still, are in no training frame.
    """

    DESCRIPTION = (
        "8x8 gray frames of clips in which handwritten digits move past other, still ones: made "
        "from the digits of 43 people (test half of the UCI data set Optical Recognition of "
        "Handwritten Digits)."
    )
    FEATURES = {"image": tfds.features.Image(shape=(8, 8, 1))}  # noqa: RUF012
    METADATA = {}  # noqa: RUF012

    def _generate_examples(self, examples: Examples, test: bool) -> Iterator[tuple[str, dict]]:
        return with_unique_keys(
            (array_digest(frame), {"image": io.BytesIO(encode_png(frame))})
            for clip, _ in _moving_clips(test, self.TEST_SHARE)
            for frame in _halved(clip[:: NUM_FRAMES // 2])
        )


def _halved(frames: np.ndarray) -> np.ndarray:
    """Returns the means of 2x2 pixels, uint8 [frames, side / 2, side / 2, 1]."""
    side = frames.shape[1] // 2
    blocks = frames.reshape(len(frames), side, 2, side, 2, 1)
    return np.round(blocks.mean(axis=(2, 4))).astype(np.uint8)


def _moving_clips(test: bool, test_share: float) -> Iterator[tuple[np.ndarray, int]]:
    """Yields clips and motions of the digits of one split."""
    digits = {digest: image[..., 0] for digest, image, _ in load_digits()}
    own = {key: digits[key] for key in sorted(digits) if is_test(key, test_share) == test}
    return (each for copy in range(CLIPS_PER_DIGIT) for each in _clips(own, copy))


def _clips(digits: dict[str, np.ndarray], copy: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields one clip per digit, equally many of each motion, seeded by the digest."""
    pool = list(digits.values())
    for number, (digest, digit) in enumerate(digits.items()):
        rng = np.random.default_rng([int(digest[:16], 16), copy])
        label = (number + 3 * copy) % len(MOTIONS)
        moving = _render(digit, *motion_path(label, rng)) * rng.uniform(0.7, 1.0)
        still = _render(pool[rng.integers(len(pool))], *_still_path(rng)) * _STILL_BRIGHTNESS
        scene = 255 * np.maximum(moving, still) + rng.normal(0, _NOISE, moving.shape)
        yield np.clip(np.round(scene), 0, 255).astype(np.uint8)[..., None], label


def motion_path(label: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a random path of a motion: row, column and size of the digit in every frame.

    Args:
        label: index into `MOTIONS`.
        rng: draws start and speed.

    Returns:
        Row and column of the center, and size, in pixels, float64 [frames] each. At every time row
        and column are uniform over the frame and the size is log-uniform over 5 to 11 pixels.
    """
    motion, backwards = MOTIONS[label - label % 2], label % 2
    time = np.arange(NUM_FRAMES) * (-1 if backwards else 1)
    row, column, size = _still_path(rng)
    speed = rng.uniform(*_SPEEDS)
    if motion == "left":
        column = column - speed * time
    elif motion == "up":
        row = row - speed * time
    elif motion == "clockwise":
        radius = rng.uniform(*_RADII)
        angle = rng.uniform(0, 2 * np.pi) + speed / radius * time
        row, column = row + radius * np.sin(angle), column + radius * np.cos(angle)
    else:
        # Grows by 5 to 10% a frame; past the largest size it restarts at the smallest.
        low, high = np.log(_SIZES)
        size = np.exp(low + (np.log(size) - low + 0.05 * speed * time) % (high - low))
    return row % CLIP_SIDE, column % CLIP_SIDE, size


def _still_path(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws a position and size that stay constant over all frames."""
    row, column = rng.uniform(0, CLIP_SIDE, 2)
    size = np.exp(rng.uniform(*np.log(_SIZES)))
    return np.full(NUM_FRAMES, row), np.full(NUM_FRAMES, column), np.full(NUM_FRAMES, size)


def _render(
    digit: np.ndarray, rows: np.ndarray, columns: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Draws a digit, uint8 [8, 8], along a path; returns [frames, side, side] in 0..1."""
    down, across = (_resampling_weights(len(digit), at, sizes) for at in (rows, columns))
    return down @ (digit / 255) @ across.swapaxes(1, 2)


def _resampling_weights(source: int, centers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Linear interpolation along one axis, [frames, side, source]; zero outside the digit."""
    offset = (np.arange(CLIP_SIDE) - centers[:, None] + CLIP_SIDE / 2) % CLIP_SIDE - CLIP_SIDE / 2
    where = offset * source / sizes[:, None] + (source - 1) / 2
    return np.maximum(0, 1 - np.abs(where[..., None] - np.arange(source)))
