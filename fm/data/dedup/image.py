"""Images that are copies of each other but for compression, brightness or a little noise."""

import imagehash
import numpy as np
from PIL import Image

# The thresholds are from Fashion-MNIST and 8x8 digits: JPEG at quality 75 moves nine images in ten
# by 6 bits or less and by 0.12 of their contrast, while the nearest two distinct digits, often of
# one class and within 2 bits, differ by 0.17 of it.
MAX_BITS = 8
MAX_DIFFERENCE = 0.14
MAX_BRIGHTNESS_GAP = 16.0

METHOD = (
    f"perceptual hashes within {MAX_BITS} of 64 bits, confirmed on grey pixels: mean brightness "
    f"within {MAX_BRIGHTNESS_GAP:.0f} of 255, and RMS difference apart from it at most "
    f"{MAX_DIFFERENCE} of the test image's contrast"
)

_CHUNK = 256
_PAIRS = 20_000


def find_image_duplicates(pretrain: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Finds the pairs that match by `METHOD`; 60,000 x 10,000 take about 17 s, half of it hashing.

    Args:
        pretrain: uint8 [N, height, width, channels].
        test: the same, of any size; the pretraining images are resized to it.

    Returns:
        int64 [pairs, 2]: index into `pretrain`, index into `test`.
    """
    own_hashes, test_hashes = perceptual_hashes(pretrain), perceptual_hashes(test)
    own_grey, test_grey = to_gray(pretrain, test.shape), to_gray(test, test.shape)
    found = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(test), _CHUNK):
        differing = test_hashes[start : start + _CHUNK, None] ^ own_hashes
        close = np.argwhere(np.bitwise_count(differing) <= MAX_BITS)
        candidates = np.stack([close[:, 1], close[:, 0] + start], axis=1)
        for first in range(0, len(candidates), _PAIRS):
            pairs = candidates[first : first + _PAIRS]
            found.append(pairs[is_similar(own_grey[pairs[:, 0]], test_grey[pairs[:, 1]])])
    return np.concatenate(found)


def is_similar(own: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Compares grey images pairwise, [pairs, height * width] each; returns bool [pairs]."""
    own, test = own.astype(np.float32), test.astype(np.float32)
    own_mean, test_mean = own.mean(1, keepdims=True), test.mean(1, keepdims=True)
    difference = np.sqrt(np.square((own - own_mean) - (test - test_mean)).mean(1))
    similar = difference <= MAX_DIFFERENCE * test.std(1) + 1e-3
    return similar & (np.abs(own_mean - test_mean)[:, 0] <= MAX_BRIGHTNESS_GAP)


def perceptual_hashes(images: np.ndarray) -> np.ndarray:
    """Returns imagehash's 64-bit pHash of each image (0.13 ms each) as uint64 [N]."""
    bits = [imagehash.phash(_pillow(image)).hash.ravel() for image in images]
    packed = np.packbits(np.array(bits, bool).reshape(len(bits), 64), axis=1)
    return packed.view(np.uint64)[:, 0]


def to_gray(images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns uint8 [N, height * width], grey and of the test images' size."""
    if images.shape[1:3] != shape[1:3] or images.shape[3] != 1:
        size = (shape[2], shape[1])
        boxed = [_pillow(image).convert("L").resize(size, Image.Resampling.BOX) for image in images]
        images = np.array([np.asarray(image) for image in boxed], np.uint8)
    return images.reshape(len(images), shape[1] * shape[2])


def _pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
