"""1,797 handwritten digits, 8x8 pixels, from scikit-learn."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fm.data.media.image import encode_png
from fm.data.splitting import array_digest, is_test, with_unique_keys

TEST_SHARE = 0.2


class Digits(tfds.core.GeneratorBasedBuilder):
    """Features: image uint8 [8, 8, 1], 0..16 in the original stretched to 0..255; label.

    Split by hash, 20% test.
    """

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of 43 people, 8x8 grey pixels (test half of the UCI "
            "data set Optical Recognition of Handwritten Digits).",
            citation="Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI "
            "Machine Learning Repository.",
            license="CC BY 4.0",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {
            "train": self._generate_examples(test=False),
            "test": self._generate_examples(test=True),
        }

    def _generate_examples(self, test: bool) -> Iterator[tuple[str, dict]]:
        return with_unique_keys(
            (digest, {"image": io.BytesIO(encode_png(image)), "label": label})
            for digest, image, label in load()
            if is_test(digest, TEST_SHARE) == test
        )


def load() -> Iterator[tuple[str, np.ndarray, int]]:
    """Yields digest, uint8 [8, 8, 1] image and label of every digit."""
    from sklearn.datasets import load_digits  # takes seconds that only preparing needs

    bunch: Any = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    for image, label in zip(images, bunch.target, strict=True):
        yield array_digest(image), image, int(label)
