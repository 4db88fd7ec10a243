"""Near-duplicate images: copies up to compression, brightness or a little noise."""

from collections.abc import Iterator

import imagehash
import numpy as np
from PIL import Image

# Thresholds from Fashion-MNIST and 8x8 digits: JPEG at quality 75 moves nine images in ten by 6
# bits or less and by 0.12 of their contrast, while the nearest two distinct digits, often of one
# class and within 2 bits, differ by 0.17 of it.
MAX_BITS = 8
MAX_DIFFERENCE = 0.14
MAX_BRIGHTNESS_GAP = 16.0

METHOD = (
    f"perceptual hashes within {MAX_BITS} of 64 bits, confirmed on gray pixels: mean brightness "
    f"within {MAX_BRIGHTNESS_GAP:.0f} of 255, and RMS difference apart from it at most "
    f"{MAX_DIFFERENCE} of the test image's contrast"
)

_TEST_CHUNK = 256
# Pixels of the candidate pairs that are compared at once: 20,000 pairs of 32x32 images.
_MAX_PIXELS = 20_000 * 32 * 32
_MAX_PAIRS = 20_000


def find_image_duplicate_pairs(pretrain: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Returns (pretrain index, test index) of every pair of near-duplicate images, int64 [n, 2].

    `METHOD` is the rule. 60,000 x 10,000 images take about 17 s, half of it for the hashes.

    Args:
        pretrain: uint8 [N, height, width, channels].
        test: the same, of any size; the pretraining images are resized to it.

    Returns:
        int64 [pairs, 2]: index into `pretrain`, index into `test`.
    """
    pretrain_hashes, test_hashes = perceptual_hashes(pretrain), perceptual_hashes(test)
    pretrain_gray, test_gray = (
        resize_to_gray(pretrain, test.shape),
        resize_to_gray(test, test.shape),
    )
    found = [np.zeros((0, 2), np.int64)]
    max_pairs = pairs_at_once(_MAX_PAIRS, test_gray.shape[1])
    for pairs in candidate_pairs(pretrain_hashes, test_hashes, max_pairs):
        found.append(pairs[are_similar(pretrain_gray[pairs[:, 0]], test_gray[pairs[:, 1]])])
    return np.concatenate(found)


def pairs_at_once(most: int, pixels: int) -> int:
    """Returns how many pairs of examples to compare at once, so that large ones fit in memory."""
    return max(1, min(most, _MAX_PIXELS // pixels))


def candidate_pairs(
    pretrain_hashes: np.ndarray, test_hashes: np.ndarray, max_pairs: int
) -> Iterator[np.ndarray]:
    """Yields (pretrain, test) index pairs with hashes <= `MAX_BITS` apart, `max_pairs` at once."""
    for start in range(0, len(test_hashes), _TEST_CHUNK):
        differing = test_hashes[start : start + _TEST_CHUNK, None] ^ pretrain_hashes
        close = np.argwhere(np.bitwise_count(differing) <= MAX_BITS)
        pairs = np.stack([close[:, 1], close[:, 0] + start], axis=1)
        for first in range(0, len(pairs), max_pairs):
            yield pairs[first : first + max_pairs]


def are_similar(pretrain: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Returns bool [N]: whether grayscale images pretrain_NP[n] and test_NP[n] nearly agree."""
    pretrain, test = pretrain.astype(np.float32), test.astype(np.float32)
    pretrain_mean, test_mean = pretrain.mean(1, keepdims=True), test.mean(1, keepdims=True)
    difference = np.sqrt(np.square((pretrain - pretrain_mean) - (test - test_mean)).mean(1))
    similar = difference <= MAX_DIFFERENCE * test.std(1) + 1e-3
    return similar & (np.abs(pretrain_mean - test_mean)[:, 0] <= MAX_BRIGHTNESS_GAP)


def perceptual_hashes(images: np.ndarray) -> np.ndarray:
    """Returns the 64-bit perceptual hash (imagehash's pHash) of each image, uint64 [N]."""
    bits = [imagehash.phash(_pillow(image)).hash.ravel() for image in images]
    packed = np.packbits(np.array(bits, bool).reshape(len(bits), 64), axis=1)
    return packed.view(np.uint64)[:, 0]


def resize_to_gray(images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns images as gray uint8 [N, h * w], resized to the target `shape` (_, h, w, _)."""
    if images.shape[1:3] != shape[1:3] or images.shape[3] != 1:
        size = (shape[2], shape[1])
        boxed = [_pillow(image).convert("L").resize(size, Image.Resampling.BOX) for image in images]
        images = np.array([np.asarray(image) for image in boxed], np.uint8)
    return images.reshape(len(images), shape[1] * shape[2])


def _pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
