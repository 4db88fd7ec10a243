"""Image files to uint8 arrays of one common shape, and back."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL import Image as Pillow

from fm.data.media.base import ArraySpec, ModalityCodec

# Whatever a file is called, Pillow may take it for one of these. Others it would hand to programs:
# PostScript to Ghostscript.
PILLOW_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Images keep their size when all share one no larger than this; others become squares of it.
MAX_SIDE = 32
_GREY_MODES = ("1", "L", "LA", "I;16", "I", "F")

ImageShape = tuple[int, int, int]


def open_image(encoded: bytes) -> Image.Image:
    """Opens an encoded image, turned the way its camera says.

    Raises:
        OSError: it cannot be decoded, or is none of `FORMATS`.
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
    """Returns the (height, width, channels) that all images get.

    Args:
        sizes: (height, width, is grey) of every image.

    Returns:
        Their own size when all share one of at most 32x32, else 32x32; one channel when all are
        grey, else three.
    """
    seen = set(sizes)
    channels = 1 if all(grey for _, _, grey in seen) else 3
    shapes = {(height, width) for height, width, _ in seen}
    if len(shapes) == 1 and max(max(shapes)) <= MAX_SIDE:
        return (*next(iter(shapes)), channels)
    return MAX_SIDE, MAX_SIDE, channels


def measure_image(image: Image.Image) -> tuple[int, int, bool]:
    """Returns (height, width, is grey) of an opened image, as `common_shape` takes it."""
    return image.height, image.width, image.mode in _GREY_MODES


def image_to_array(image: Image.Image, shape: ImageShape) -> np.ndarray:
    """Returns the image as uint8 of `shape`, converted and resized (antialiased) as needed."""
    height, width, channels = shape
    if image.mode in ("I;16", "I", "F"):
        # Sixteen bits to eight: Pillow's own conversion would clip them to white.
        values = np.asarray(image, np.float64)
        scale = 1 / 257 if values.max(initial=0) > 255 else 1
        image = Image.fromarray(np.clip(values * scale, 0, 255).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(shape)


def encode_png(pixels: np.ndarray) -> bytes:
    """Returns a uint8 [height, width, 1 or 3] image as PNG."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


class ImageCodec(ModalityCodec):
    """Stored as PNG. Values 0..255, one channel (grey) or three (red, green, blue)."""

    name = "image"
    noun = "image"
    dtype = np.uint8
    extensions = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
    stores_bytes = True

    def open(self, path: pathlib.Path) -> Pillow.Image:
        """Opens a file; see `pixels.open_image`."""
        return open_image(path.read_bytes())

    def measure(self, opened: Pillow.Image) -> tuple[int, int, bool]:
        """Returns height, width, is grey."""
        return measure_image(opened)

    def common_spec(self, measures: Sequence[tuple[int, int, bool]]) -> ArraySpec:
        """Returns their own size where they share a small one; see `pixels.common_shape`."""
        return ArraySpec(common_image_shape(measures))

    def to_array(self, opened: Pillow.Image, form: ArraySpec) -> np.ndarray:
        """Returns uint8 [height, width, channels], resized as needed."""
        height, width, channels = form.shape
        return image_to_array(opened, (height, width, channels))

    def tfds_feature(self, form: ArraySpec) -> Any:
        """Returns an `Image` of that shape."""
        return tfds.features.Image(shape=form.shape)

    def encode(self, array: np.ndarray) -> io.BytesIO:
        """Returns a PNG."""
        return io.BytesIO(encode_png(array))

    def accepts_feature(self, feature: Any) -> bool:
        """Says whether it is an `Image`."""
        return type(feature) is tfds.features.Image

    def declared_spec(self, feature: Any, rate: float | None) -> ArraySpec | None:
        """Returns the shape, where it is known, small, and grey or colour."""
        shape = feature.shape
        if None in shape or max(shape[:2]) > MAX_SIDE or shape[2] not in (1, 3):
            return None
        return ArraySpec(tuple(shape))

    def decode(self, stored: bytes, rate: float | None) -> Pillow.Image:
        """Opens an encoded image."""
        return open_image(stored)
