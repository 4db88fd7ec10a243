"""Conversion of images to square patches and clips to tubelets (Arnab et al. 2021), and back."""

from collections.abc import Sequence

import numpy as np

from fm.errors import UserError

# Frames, rows, columns, of frames up to 32x32. A clip of 8x16x16 is 64 tubelets of 32 gray values.
TUBELET_SHAPE = (2, 4, 4)

# Largest side of images and frames in pixels: by default, and at most.
DEFAULT_IMAGE_SIZE, MAX_IMAGE_SIZE = 32, 256
IMAGE_SIZE_STEP = 8

# Of an image of up to 32x32 cut without a given patch size. One single patch would leave nothing to
# attend to.
MIN_PATCHES, MAX_PATCHES = 4, 64
# Of larger images.
_MIN_PATCHES_LARGE, _MAX_PATCHES_LARGE = 16, 256
_MIN_PATCH = 2


def check_image_size(image_size: int) -> None:
    """Raises UserError unless images and frames can have sides of up to `image_size` pixels."""
    if image_size % IMAGE_SIZE_STEP or not IMAGE_SIZE_STEP <= image_size <= MAX_IMAGE_SIZE:
        raise UserError(
            f"--image_size={image_size}: must be a multiple of {IMAGE_SIZE_STEP} from "
            f"{IMAGE_SIZE_STEP} to {MAX_IMAGE_SIZE} (pixels)"
        )


def is_large(height: int, width: int) -> bool:
    """Returns whether an image has more pixels than one of 32x32."""
    return height * width > DEFAULT_IMAGE_SIZE**2


def min_patches(height: int, width: int) -> int:
    """Returns the fewest patches of an image cut by default: 4, or 16 beyond 32x32 pixels."""
    return _MIN_PATCHES_LARGE if is_large(height, width) else MIN_PATCHES


def max_patches(height: int, width: int) -> int:
    """Returns the most patches of an image cut by default: 64, beyond 32x32 pixels up to 256.

    A larger image may have as many more patches as it has more pixels, so 4x4 pixels stay a patch
    up to 64x64.
    """
    by_pixels = height * width * MAX_PATCHES // DEFAULT_IMAGE_SIZE**2
    return min(max(by_pixels, MAX_PATCHES), _MAX_PATCHES_LARGE)


def default_patch_side(height: int, width: int) -> int | None:
    """Returns the smallest patch side from 2 on that gives a default number of patches, or None.

    From `min_patches` to `max_patches`: 4 to 64 patches of images up to 32x32.
    """
    least, most = min_patches(height, width), max_patches(height, width)
    return _smallest_side(height, width, _MIN_PATCH, least, most)


def tubelet_shape(height: int, width: int) -> tuple[int, int, int] | None:
    """Returns the tubelet shape of frames of this size, `TUBELET_SHAPE` up to 32x32; or None.

    Larger frames have larger tubelets, at most 64 to two frames. None if nothing divides the frame
    into two or more a side.
    """
    frames, side, _ = TUBELET_SHAPE
    if is_large(height, width):
        found = _smallest_side(height, width, side, _MIN_PATCHES_LARGE, MAX_PATCHES)
    else:
        found = side if height % side == 0 and width % side == 0 else None
    if found is None or min(height, width) < 2 * found:
        return None
    return frames, found, found


def fits_tubelets(height: int, width: int) -> bool:
    """Returns whether frames of this size can be cut into tubelets, two or more a side."""
    return tubelet_shape(height, width) is not None


def _smallest_side(height: int, width: int, first: int, least: int, most: int) -> int | None:
    """Returns the smallest side from `first` on that gives `least` to `most` squares, or None."""
    for side in range(first, min(height, width) + 1):
        divides = height % side == 0 and width % side == 0
        if divides and least <= height * width // side**2 <= most:
            return side
    return None


def patchify(images: np.ndarray, patch: int) -> np.ndarray:
    """Returns images cut into square patches in row-major order, uint8 [N, L, P].

    Args:
        images: uint8 [N, height, width, channels].
        patch: side of a patch in pixels; must divide height and width.

    Returns:
        uint8 [N, L, P]: L = (height / patch) * (width / patch), P = patch * patch * channels;
        within a patch pixels are row by row, channels last.

    Raises:
        UserError: `patch` does not divide the image.
    """
    number, height, width, channels = images.shape
    rows, columns = _patch_grid(height, width, patch)
    tiles = images.reshape(number, rows, patch, columns, patch, channels).swapaxes(2, 3)
    return tiles.reshape(number, rows * columns, patch * patch * channels)


def unpatchify(patches: np.ndarray, patch: int, height: int, width: int) -> np.ndarray:
    """Returns images [N, height, width, channels] assembled from patches [N, L, P].

    Raises:
        UserError: L and P do not fit such an image.
    """
    number, length, size = patches.shape
    rows, columns = _patch_grid(height, width, patch)
    if length != rows * columns or size % (patch * patch):
        raise UserError(
            f"{length} patches of {size} values are not an image of {height}x{width} in patches "
            f"of {patch}x{patch}"
        )
    tiles = patches.reshape(number, rows, columns, patch, patch, size // (patch * patch))
    return tiles.swapaxes(2, 3).reshape(number, height, width, -1)


def patch_positions(height: int, width: int, patch: int) -> np.ndarray:
    """Returns the row and column of each patch, int32 [L, 2], in the order of `patchify`."""
    return _grid_positions(_patch_grid(height, width, patch))


def clips_to_tubelets(clips: np.ndarray, size: Sequence[int] = TUBELET_SHAPE) -> np.ndarray:
    """Returns clips cut into tubelets, ordered by time, row, column, uint8 [N, L, P].

    Args:
        clips: uint8 [N, frames, height, width, channels].
        size: frames, rows and columns of a tubelet; each must divide the clip's.

    Returns:
        uint8 [N, L, P]: L tubelets per clip, P values in each, in the same order, channels last.

    Raises:
        UserError: `size` does not divide the clip.
    """
    N, *shape = clips.shape
    (f, h, w), (a, b, c), channels = _tubelet_grid(shape, size), size, shape[3]
    boxes = clips.reshape(N, f, a, h, b, w, c, channels).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return boxes.reshape(N, f * h * w, a * b * c * channels)


def tubelets_to_clips(
    tubelets: np.ndarray, size: Sequence[int], shape: Sequence[int]
) -> np.ndarray:
    """Returns clips [N, *shape] assembled from tubelets [N, L, P] ordered by time, row, column.

    Args:
        tubelets: [N, L, P].
        size: frames, rows and columns of a tubelet.
        shape: frames, height, width and channels of a clip.

    Raises:
        UserError: L and P do not fit such a clip.
    """
    (f, h, w), (a, b, c), channels = _tubelet_grid(shape, size), size, shape[3]
    if tubelets.shape[1:] != (f * h * w, a * b * c * channels):
        raise UserError(
            f"{tubelets.shape[1]} tubelets of {tubelets.shape[2]} values are not a clip of "
            f"{_times(shape)} in tubelets of {_times(size)}"
        )
    boxes = tubelets.reshape(-1, f, h, w, a, b, c, channels).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return boxes.reshape(-1, *shape)


def tubelet_positions(shape: Sequence[int], size: Sequence[int] = TUBELET_SHAPE) -> np.ndarray:
    """Returns time, row and column index of each tubelet, int32 [L, 3]."""
    return _grid_positions(_tubelet_grid(shape, size))


def _grid_positions(grid: Sequence[int]) -> np.ndarray:
    axes = np.meshgrid(*map(np.arange, grid), indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, len(grid)).astype(np.int32)


def _patch_grid(height: int, width: int, patch: int) -> tuple[int, int]:
    if patch < 1 or height % patch or width % patch:
        raise UserError(
            f"patch size {patch} does not divide an image of {height}x{width} (height x width)"
        )
    return height // patch, width // patch


def _tubelet_grid(shape: Sequence[int], size: Sequence[int]) -> tuple[int, int, int]:
    if min(size) < 1 or any(whole % part for whole, part in zip(shape, size, strict=False)):
        raise UserError(
            f"tubelets of {_times(size)} do not divide a clip of {_times(shape)} "
            "(frames x height x width)"
        )
    return shape[0] // size[0], shape[1] // size[1], shape[2] // size[2]


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[:3]))
