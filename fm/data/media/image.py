"""Images: files that Pillow reads, uint8 [height, width, channels]."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageOps, UnidentifiedImageError

from fm.data.dedup import image as dedup
from fm.data.media.base import (
    BaselineFeatureSpec,
    DuplicateRule,
    MediaSpec,
    Modality,
    ModalityCodec,
    Patching,
)
from fm.data.patches import patch_positions, patchify, unpatchify
from fm.errors import UserError

if TYPE_CHECKING:
    from fm.data.layouts import PatchLayout

# The formats Pillow may recognize, whatever a file is called. Others are handed to external
# programs (PostScript to Ghostscript).
PILLOW_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Images keep their size if all have the same, no larger than this; else they become squares of it.
MAX_SIDE = 32

_GRAY_MODES = ("1", "L", "LA", "I;16", "I", "F")
_MAX_PATCHES, _MIN_PATCH, _MAX_PATCH = 64, 2, 32

ImageShape = tuple[int, int, int]


def open_image(encoded: bytes) -> Image.Image:
    """Returns the decoded Pillow image, rotated by its EXIF orientation.

    Raises:
        OSError: it cannot be decoded, or is none of `PILLOW_FORMATS`.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=PILLOW_FORMATS)
        image.load()
        return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise OSError(f"it is none of {', '.join(PILLOW_FORMATS)}") from error
    except (SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from error


def common_image_shape(sizes: Iterable[tuple[int, int, bool]]) -> ImageShape:
    """Returns the (height, width, channels) of all images if equal and at most 32x32, else 32x32.

    Args:
        sizes: (height, width, is gray) of every image.

    Returns:
        Their own size if they all have the same, at most 32x32, else 32x32; one channel if all are
        gray, else three.
    """
    distinct = set(sizes)
    channels = 1 if all(gray for _, _, gray in distinct) else 3
    shapes = {(height, width) for height, width, _ in distinct}
    if len(shapes) == 1 and max(max(shapes)) <= MAX_SIDE:
        return (*next(iter(shapes)), channels)
    return MAX_SIDE, MAX_SIDE, channels


def measure_image(image: Image.Image) -> tuple[int, int, bool]:
    """Returns the height and width in pixels of an image, and whether it is grayscale."""
    return image.height, image.width, image.mode in _GRAY_MODES


def image_to_array(image: Image.Image, shape: ImageShape) -> np.ndarray:
    """Returns a Pillow image as uint8 array (0..255), converted and resized to `shape`."""
    height, width, channels = shape
    if image.mode in ("I;16", "I", "F"):
        # 16 bits to 8: Pillow's own conversion would clip.
        values = np.asarray(image, np.float64)
        scale = 1 / 257 if values.max(initial=0) > 255 else 1
        image = Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(shape)


def array_to_image(pixels: np.ndarray) -> Image.Image:
    """Returns uint8 [height, width, 1 or 3] as a Pillow image."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def encode_png(pixels: np.ndarray) -> bytes:
    """Returns uint8 [height, width, 1 or 3] encoded as the bytes of a PNG file."""
    buffer = io.BytesIO()
    array_to_image(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


class ImageCodec(ModalityCodec):
    """Reads images from files or TFDS; resizes a data set to one shape, as uint8 gray or RGB."""

    dtype = np.uint8
    extensions = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
    stores_bytes = True
    preview_extension = "png"

    def open(self, path: pathlib.Path) -> Image.Image:
        """Returns the decoded Pillow image of a file, rotated by its EXIF orientation."""
        return open_image(path.read_bytes())

    def measure(self, opened: Image.Image) -> tuple[int, int, bool]:
        """Returns height, width, is gray."""
        return measure_image(opened)

    def common_spec(self, measures: Sequence[tuple[int, int, bool]]) -> MediaSpec:
        """Returns the (height, width, channels) to which all images are resized."""
        return MediaSpec(common_image_shape(measures))

    def to_array(self, opened: Image.Image, spec: MediaSpec) -> np.ndarray:
        """Returns uint8 [height, width, channels], resized as needed."""
        height, width, channels = spec.shape
        return image_to_array(opened, (height, width, channels))

    def tfds_feature(self, spec: MediaSpec) -> Any:
        """Returns an `Image` feature."""
        return tfds.features.Image(shape=spec.shape)

    def encode(self, array: np.ndarray) -> io.BytesIO:
        """Returns a PNG file."""
        return io.BytesIO(encode_png(array))

    def accepts_feature(self, feature: Any) -> bool:
        """Accepts an `Image` feature."""
        return type(feature) is tfds.features.Image

    def declared_spec(self, feature: Any, rate: float | None) -> MediaSpec | None:
        """Returns the shape if it is known, small, and gray or RGB."""
        shape = feature.shape
        if None in shape or max(shape[:2]) > MAX_SIDE or shape[2] not in (1, 3):
            return None
        return MediaSpec(tuple(shape))

    def decode(self, stored: bytes, rate: float | None) -> Image.Image:
        """Returns the decoded Pillow image, rotated by its EXIF orientation."""
        return open_image(stored)

    def encode_preview(self, array: np.ndarray, rate: float) -> bytes:
        """Returns a PNG file."""
        return encode_png(array)


class ImagePatching(Patching):
    """Cuts images into square patches and back; `patch_shape` is (side,)."""

    num_axes = 2

    def patch_shape(self, shape: tuple[int, ...], size: int | None) -> tuple[int, ...]:
        """Returns `size`, or the smallest side from 2 on that gives at most 64 patches."""
        if size is not None:
            return (size,)
        height, width, _ = shape
        for side in range(_MIN_PATCH, _MAX_PATCH + 1):
            divides = height % side == 0 and width % side == 0
            if divides and height * width // side**2 <= _MAX_PATCHES:
                return (side,)
        raise UserError(
            f"images of {height}x{width} cannot be cut into at most {_MAX_PATCHES} patches"
        )

    def patch_dim(self, layout: PatchLayout) -> int:
        """Returns pixels times channels."""
        return layout.patch_shape[0] ** 2 * layout.shape[-1]

    def positions(self, layout: PatchLayout) -> np.ndarray:
        """Returns row and column."""
        height, width, _ = layout.shape
        return patch_positions(height, width, *layout.patch_shape)

    def to_patches(self, examples: np.ndarray, layout: PatchLayout) -> np.ndarray:
        """Returns uint8 [N, L, P]."""
        return patchify(examples, *layout.patch_shape)

    def from_patches(self, patches: np.ndarray, layout: PatchLayout) -> np.ndarray:
        """Returns uint8 [N, height, width, channels]."""
        height, width, _ = layout.shape
        (side,) = layout.patch_shape
        return unpatchify(unit_range_to_uint8(patches), side, height, width)

    def to_picture(self, example: np.ndarray, layout: PatchLayout) -> np.ndarray:
        """Returns the image itself."""
        return example


def unit_range_to_uint8(values: np.ndarray) -> np.ndarray:
    """Returns float values in 0..1 as uint8, in 256 bins of equal width."""
    return np.clip(values * 256.0, 0.0, 255.0).astype(np.uint8)


IMAGE = Modality(
    name="image",
    noun="image",
    metric_unit="bits_per_dimension",
    duplicates=DuplicateRule(dedup.METHOD, dedup.find_image_duplicate_pairs),
    codec=ImageCodec(),
    patching=ImagePatching(),
    baseline=BaselineFeatureSpec(
        extract=lambda images, rate: images.reshape(len(images), -1), log10_c_range=(-3, 2)
    ),
)
