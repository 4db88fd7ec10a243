"""Images: files that Pillow reads, uint8 [height, width, channels]."""

import io
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image as Pillow

from fm.data import pixels
from fm.data.media.medium import Form, Medium


class Image(Medium):
    """Stored as PNG. Values 0..255, one channel (grey) or three (red, green, blue)."""

    name = "image"
    noun = "image"
    dtype = np.uint8
    endings = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
    encoded = True

    def open(self, path: pathlib.Path) -> Pillow.Image:
        """Opens a file; see `pixels.open_image`."""
        return pixels.open_image(path.read_bytes())

    def measure(self, opened: Pillow.Image) -> tuple[int, int, bool]:
        """Returns height, width, is grey."""
        return pixels.measure(opened)

    def common(self, measures: Sequence[tuple[int, int, bool]]) -> Form:
        """Returns their own size where they share a small one; see `pixels.common_shape`."""
        return Form(pixels.common_shape(measures))

    def to_array(self, opened: Pillow.Image, form: Form) -> np.ndarray:
        """Returns uint8 [height, width, channels], resized as needed."""
        height, width, channels = form.shape
        return pixels.to_array(opened, (height, width, channels))

    def feature(self, form: Form) -> Any:
        """Returns an `Image` of that shape."""
        return tfds.features.Image(shape=form.shape)

    def encode(self, array: np.ndarray) -> io.BytesIO:
        """Returns a PNG."""
        return io.BytesIO(pixels.encode_png(array))

    def fits(self, feature: Any) -> bool:
        """Says whether it is an `Image`."""
        return type(feature) is tfds.features.Image

    def declared(self, feature: Any, rate: float | None) -> Form | None:
        """Returns the shape, where it is known, small, and grey or colour."""
        shape = feature.shape
        if None in shape or max(shape[:2]) > pixels.SMALL or shape[2] not in (1, 3):
            return None
        return Form(tuple(shape))

    def restore(self, stored: bytes, rate: float | None) -> Pillow.Image:
        """Opens an encoded image."""
        return pixels.open_image(stored)
