"""Features of images for classical models: pixels, HOG, and codes of patches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

HOG_ORIENTATIONS = 9
# A side has about this many cells, of at least 2 pixels.
HOG_CELLS = 8

NUM_CODES = 128
# Patches that the codes are learned from.
_MAX_PATCHES = 20_000
_PATCHES_PER_SIDE = 14
# Added to a patch's variance before its contrast is made 1, and to all variances in whitening.
_CONTRAST_FLOOR, _WHITENING_FLOOR = 1e-3, 0.1
_CHUNK = 512


def unit_pixels(images: np.ndarray, rate: float | None = None) -> np.ndarray:
    """Returns images as float32 [N, height, width, channels], integers scaled to 0..1."""
    scale = 255 if np.issubdtype(images.dtype, np.integer) else 1
    return np.asarray(images / np.float32(scale), np.float32)


def pixel_features(images: np.ndarray, rate: float | None = None) -> np.ndarray:
    """Returns pixels from 0 to 1, float32 [N, height * width * channels]."""
    return unit_pixels(images).reshape(len(images), -1)


def hog_features(images: np.ndarray, rate: float | None = None) -> np.ndarray:
    """Returns histograms of oriented gradients (Dalal and Triggs 2005), float32 [N, F].

    9 orientations; cells of an eighth of the smaller side but at least 2 pixels; blocks of 2x2
    cells. Of colors the channel with the largest gradient counts.
    """
    from skimage.feature import hog  # a second to import

    side = min(images.shape[1:3])
    cell = max(2, round(side / HOG_CELLS))
    block = min(2, side // cell) or 1
    return np.stack(
        [
            hog(
                image,
                orientations=HOG_ORIENTATIONS,
                pixels_per_cell=(min(cell, side),) * 2,
                cells_per_block=(block, block),
                channel_axis=-1,
            )
            for image in unit_pixels(images)
        ]
    ).astype(np.float32)


def learn_patch_codes(images: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Learns k-means codes of patches from unlabeled images (Coates, Ng and Lee 2011).

    Patches are normalized in contrast and whitened. A code is on by how much nearer than the mean
    its center is ("triangle"), and is added up over each quarter of the image.

    Args:
      images: float [N, height, width, channels], from 0 to 1.

    Returns:
      The function from images to codes, float32 [N, 4 * codes].
    """
    from sklearn.cluster import MiniBatchKMeans

    side, stride = _patch_grid(images.shape)
    per_image = -(-_MAX_PATCHES // len(images))
    random = np.random.default_rng(0)
    some = images[np.sort(random.permutation(len(images))[:_MAX_PATCHES])]
    windows = _patches(some, side, stride)
    picked = random.integers(0, windows.shape[1], (len(some), min(per_image, windows.shape[1])))
    patches = _normalized(np.take_along_axis(windows, picked[..., None], axis=1))
    patches = patches.reshape(-1, patches.shape[-1])
    mean = patches.mean(axis=0)
    variance, basis = np.linalg.eigh(np.cov(patches.T) + 0.0)
    whiten = (basis / np.sqrt(np.maximum(variance, 0) + _WHITENING_FLOOR)) @ basis.T
    whiten = whiten.astype(np.float32)
    codes = min(NUM_CODES, len(patches))
    options: dict[str, Any] = {"random_state": 0, "n_init": 1, "batch_size": 2048, "max_iter": 20}
    means: Any = MiniBatchKMeans(codes, **options).fit((patches - mean) @ whiten)
    centers = means.cluster_centers_.astype(np.float32)

    def encode(others: np.ndarray) -> np.ndarray:
        starts = range(0, len(others), _CHUNK)
        return np.concatenate([encode_some(others[start : start + _CHUNK]) for start in starts])

    def encode_some(others: np.ndarray) -> np.ndarray:
        rows, columns = (1 + (size - side) // stride for size in others.shape[1:3])
        x = (_normalized(_patches(others, side, stride)) - mean) @ whiten
        square = np.sum(x * x, -1, keepdims=True) + np.sum(centers**2, 1) - 2 * x @ centers.T
        distance = np.sqrt(np.maximum(square, 0))
        on = np.maximum(distance.mean(-1, keepdims=True) - distance, 0)
        on = on.reshape(len(others), rows, columns, codes)
        down, right = -(-rows // 2), -(-columns // 2)
        quarters = [
            on[:, top, left].sum((1, 2))
            for top in (slice(down), slice(down, None))
            for left in (slice(right), slice(right, None))
        ]
        return np.concatenate(quarters, axis=1)

    return encode


def _patch_grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """Side of a patch, and the distance between patches: few enough to be quick."""
    smaller, larger = min(shape[1:3]), max(shape[1:3])
    side = min(smaller, max(3, round(smaller / 5)))
    return side, max(1, round((larger - side) / (_PATCHES_PER_SIDE - 1)))


def _patches(images: np.ndarray, side: int, stride: int) -> np.ndarray:
    """Returns [N, patches, side * side * channels]."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (side, side), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]
    return windows.reshape(len(images), windows.shape[1] * windows.shape[2], -1)


def _normalized(patches: np.ndarray) -> np.ndarray:
    """Returns patches of mean 0 and variance 1."""
    centered = patches - patches.mean(-1, keepdims=True)
    return centered / np.sqrt(centered.var(-1, keepdims=True) + _CONTRAST_FLOOR)
