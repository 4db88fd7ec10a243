"""Image files to uint8 arrays of one common shape, and back."""

import io
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Whatever a file is called, Pillow may take it for one of these. Others it would hand to programs:
# PostScript to Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Images keep their size when all share one no larger than this; others become squares of it.
SMALL = 32
_GREY_MODES = ("1", "L", "LA", "I;16", "I", "F")

Shape = tuple[int, int, int]


def open_image(encoded: bytes) -> Image.Image:
    """Opens an encoded image, turned the way its camera says.

    Raises:
        OSError: it cannot be decoded, or is none of `FORMATS`.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        image.load()
        return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise OSError(f"it is none of {', '.join(FORMATS)}") from error
    except (SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from error


def common_shape(sizes: Iterable[tuple[int, int, bool]]) -> Shape:
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
    if len(shapes) == 1 and max(max(shapes)) <= SMALL:
        return (*next(iter(shapes)), channels)
    return SMALL, SMALL, channels


def measure(image: Image.Image) -> tuple[int, int, bool]:
    """Returns (height, width, is grey) of an opened image, as `common_shape` takes it."""
    return image.height, image.width, image.mode in _GREY_MODES


def to_array(image: Image.Image, shape: Shape) -> np.ndarray:
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
