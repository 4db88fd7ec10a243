"""Unlabelled 8x8 grey crops of scikit-learn's two sample photographs: upstream data for digits."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from fm.data.media.image import encode_png
from fm.data.splitting import array_digest, is_test, with_unique_keys

TEST_SHARE = 0.02
SIDE = 8
# Each photograph is cut at full, half and quarter size: fine texture, edges, whole shapes.
SHRINKS = (1, 2, 4)


class Photos(tfds.core.GeneratorBasedBuilder):
    """Features: image uint8 [8, 8, 1]. 11,080 crops on a grid, no overlap; by hash, 2% test."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="8x8 grey crops at three scales of two photographs, a Chinese temple and a "
            "flower, that ship with scikit-learn.",
            license="CC BY 2.0 (photographs by danielbuechele and vultilion)",
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=(SIDE, SIDE, 1))}
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {
            "train": self._generate_examples(test=False),
            "test": self._generate_examples(test=True),
        }

    def _generate_examples(self, test: bool) -> Iterator[tuple[str, dict]]:
        crops = ((array_digest(crop), crop) for crop in _crops())
        return with_unique_keys(
            (digest, {"image": io.BytesIO(encode_png(crop))})
            for digest, crop in crops
            if is_test(digest, TEST_SHARE) == test
        )


def _crops() -> Iterator[np.ndarray]:
    """Yields uint8 [8, 8, 1] crops, row by row, photograph by photograph, scale by scale."""
    from sklearn.datasets import load_sample_images  # takes seconds that only preparing needs

    photographs: Any = load_sample_images()
    for shrink in SHRINKS:
        for photograph in photographs.images:
            grey = Image.fromarray(photograph).convert("L").reduce(shrink)
            rows, columns = grey.height // SIDE, grey.width // SIDE
            cut = np.asarray(grey)[: rows * SIDE, : columns * SIDE, None]
            tiles = cut.reshape(rows, SIDE, columns, SIDE, 1).swapaxes(1, 2)
            yield from tiles.reshape(-1, SIDE, SIDE, 1)
