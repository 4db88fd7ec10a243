"""Images whose blocks are shuffled: what they show is lost, statistics within a block stay.

Neyshabur et al. (2020, sec. 3.1) fine-tune on such images to tell reused features from what else a
pretrained network brings.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from fm.data.datasets import Dataset, Split
from fm.errors import UserError


def shuffle_blocks(image: np.ndarray, side: int, seed: int, index: int) -> np.ndarray:
    """Returns an image [height, width, ...] with its square blocks in random order.

    Args:
      image: not changed.
      side: of a block in pixels.
      seed: of all images.
      index: of the image; each has an order of its own.

    Raises:
      UserError: blocks of that side do not cover the image exactly.
    """
    height, width, *rest = image.shape
    check_block_side(side, height, width)
    grid = image.reshape(height // side, side, width // side, side, *rest).swapaxes(1, 2)
    blocks = grid.reshape(-1, side, side, *rest)
    blocks = blocks[np.random.default_rng([seed, index]).permutation(len(blocks))]
    return blocks.reshape(grid.shape).swapaxes(1, 2).reshape(image.shape)


def check_block_side(side: int, height: int, width: int) -> None:
    """Raises UserError unless square blocks of a side cover an image exactly."""
    if side < 1 or height % side or width % side:
        raise UserError(f"blocks of side {side} do not cover images of {height}x{width} exactly")


def with_shuffled_blocks(dataset: Dataset, side: int, seed: int = 0) -> Dataset:
    """Returns a data set of images with the blocks of every image shuffled, the same every time.

    Raises:
      UserError: the data are not images, or see `shuffle_blocks`.
    """
    if dataset.modality != "image":
        raise UserError(f"{dataset.name} is {dataset.modality}; blocks are shuffled in images only")
    check_block_side(side, *dataset.info["shape"][:2])

    def shuffled(split: Split) -> Split:
        def read(source_idx: np.ndarray) -> np.ndarray:
            images = np.asarray(split.read(source_idx))
            pairs = zip(images, np.asarray(source_idx).tolist(), strict=True)
            return np.stack([shuffle_blocks(image, side, seed, n) for image, n in pairs])

        return dataclasses.replace(split, read=read)

    return dataclasses.replace(dataset, train=shuffled(dataset.train), test=shuffled(dataset.test))
