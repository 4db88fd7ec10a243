"""3,594 clips of handwritten digits on the move; the label is the motion, not the digit.

No frame gives the motion away: place and size are spread alike over all clips at all times. Nor
does the set of frames tell the two motions of a pair apart: a clip of one, played backwards, is a
clip of the other.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fm.data.builders.digits import TEST_SHARE, load
from fm.data.splitting import array_digest, is_test, with_unique_keys

# The two motions of a pair are each other's time reversed.
MOTIONS = (
    *("left", "right"),
    *("up", "down"),
    *("clockwise", "counterclockwise"),
    *("growing", "shrinking"),
)
FRAMES, SIDE, RATE = 8, 16, 8.0
CLIPS_PER_DIGIT = 2

_SIZES = (5.0, 11.0)  # pixels
_RADII = (2.5, 4.5)  # pixels
_SPEEDS = (1.0, 2.0)  # pixels a frame
_STILL_BRIGHTNESS = 0.35  # of full
_NOISE = 12.0  # of 255, standard deviation


class MovingDigits(tfds.core.GeneratorBasedBuilder):
    """Features: video uint8 [8, 16, 16, 1] at 8 frames/s, grey 0..255; label.

    A digit moves over a plane whose edges meet, past another that stands still, under noise. Each
    of scikit-learn's digits moves in two clips. The split is that of `digits`, by hash of the
    digit, 20% test: the digits of test clips, moving or still, are in no training clip.
    """

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits that move past other, still ones, 8 frames of 16x16 "
            "grey pixels at 8 frames/s: made from the digits of 43 people (test half of the UCI "
            "data set Optical Recognition of Handwritten Digits).",
            citation="Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI "
            "Machine Learning Repository.",
            license="CC BY 4.0 (the digits)",
            features=tfds.features.FeaturesDict(
                {
                    "video": tfds.features.Tensor(
                        shape=(FRAMES, SIDE, SIDE, 1), dtype=np.uint8, encoding="bytes"
                    ),
                    "label": tfds.features.ClassLabel(names=MOTIONS),
                }
            ),
            metadata=tfds.core.MetadataDict(rate=RATE),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {
            "train": self._generate_examples(test=False),
            "test": self._generate_examples(test=True),
        }

    def _generate_examples(self, test: bool) -> Iterator[tuple[str, dict]]:
        named = {digest: image[..., 0] for digest, image, _ in load()}
        own = {key: named[key] for key in sorted(named) if is_test(key, TEST_SHARE) == test}
        clips = (
            (clip, label) for copy in range(CLIPS_PER_DIGIT) for clip, label in _clips(own, copy)
        )
        return with_unique_keys(
            (array_digest(clip), {"video": clip, "label": label}) for clip, label in clips
        )


def _clips(digits: dict[str, np.ndarray], copy: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields a clip of every digit, as many of each motion; the digest seeds all that is random."""
    pool = list(digits.values())
    for number, (digest, digit) in enumerate(digits.items()):
        rng = np.random.default_rng([int(digest[:16], 16), copy])
        label = (number + 3 * copy) % len(MOTIONS)
        moving = drawn(digit, *path(label, rng)) * rng.uniform(0.7, 1.0)
        still = drawn(pool[rng.integers(len(pool))], *standing(rng)) * _STILL_BRIGHTNESS
        scene = 255 * np.maximum(moving, still) + rng.normal(0, _NOISE, moving.shape)
        yield np.clip(np.round(scene), 0, 255).astype(np.uint8)[..., None], label


def path(label: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws a way of moving.

    Args:
        label: of `MOTIONS`.
        rng: for the start and the speed.

    Returns:
        Row and column of the middle, and size, in pixels, float64 [frames] each. At every time
        row and column are uniform over the frame and the size log-uniform over 5 to 11 pixels.
    """
    motion, backwards = MOTIONS[label - label % 2], label % 2
    time = np.arange(FRAMES) * (-1 if backwards else 1)
    row, column, size = standing(rng)
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
        # It grows by 5 to 10% a frame, and begins again where it ends.
        low, high = np.log(_SIZES)
        size = np.exp(low + (np.log(size) - low + 0.05 * speed * time) % (high - low))
    return row % SIDE, column % SIDE, size


def standing(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws a place and a size, kept over the frames; see `path`."""
    row, column = rng.uniform(0, SIDE, 2)
    size = np.exp(rng.uniform(*np.log(_SIZES)))
    return np.full(FRAMES, row), np.full(FRAMES, column), np.full(FRAMES, size)


def drawn(
    digit: np.ndarray, rows: np.ndarray, columns: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Draws a digit, uint8 [8, 8], into frames; returns [frames, SIDE, SIDE] from 0 to 1."""
    down, across = (_weights(len(digit), places, sizes) for places in (rows, columns))
    return down @ (digit / 255) @ across.swapaxes(1, 2)


def _weights(source: int, places: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Linear interpolation along one axis, [frames, SIDE, source]; zero off the digit."""
    away = (np.arange(SIDE) - places[:, None] + SIDE / 2) % SIDE - SIDE / 2
    where = away * source / sizes[:, None] + (source - 1) / 2
    return np.maximum(0, 1 - np.abs(where[..., None] - np.arange(source)))
