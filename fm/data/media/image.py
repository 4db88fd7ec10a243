"""Images: files that Pillow reads, uint8 [height, width, channels]."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageOps, UnidentifiedImageError

from fm.data.dedup import image as dedup
from fm.data.media import image_features
from fm.data.media.base import (
    BaselineFeatureSpec,
    DuplicateRule,
    MediaSpec,
    Modality,
    ModalityCodec,
    Patching,
    PatchLayout,
)
from fm.data.patches import (
    DEFAULT_IMAGE_SIZE,
    MAX_IMAGE_SIZE,
    default_patch_side,
    max_patches,
    min_patches,
    patch_positions,
    patchify,
    unpatchify,
)
from fm.errors import UserError

# The formats Pillow may recognize, whatever a file is called. Others are handed to external
# programs (PostScript to Ghostscript).
PILLOW_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_GRAY_MODES = ("1", "L", "LA", "La", "I", "F")
# What transparent images are put on: the first from which the visible pixels of each differ by this
# much on average.
BACKGROUNDS = {255: "white", 0: "black", 128: "gray"}
_VISIBLE = 32
# Largest values of common bit depths: masks and floating-point images, 8 bits, cameras and
# scanners of 10 to 14 bits, 16 bits.
_LARGEST_VALUES = (1, 255, 1023, 4095, 16383, 65535)

ImageShape = tuple[int, int, int]
ValueRange = tuple[float, float]


class ImageMeasure(NamedTuple):
    """Size and kind of an image before conversion.

    Attributes:
        height: in pixels.
        width: in pixels.
        gray: whether it has no colors.
        contrasts: mean difference of its visible pixels from each of `BACKGROUNDS`; None if nothing
            in it is transparent.
        value_range: its smallest and largest value if they may exceed 8 bits, else None.
    """

    height: int
    width: int
    gray: bool
    contrasts: tuple[float, ...] | None = None
    value_range: ValueRange | None = None


def open_image(encoded: bytes) -> Image.Image:
    """Returns the decoded Pillow image, rotated by its EXIF orientation.

    Raises:
        OSError: it cannot be decoded, or is none of `PILLOW_FORMATS`.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=PILLOW_FORMATS)
        image.load()
        if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
            raise OSError("it holds values that are not finite")
        return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise OSError(f"it is none of {', '.join(PILLOW_FORMATS)}") from error
    except (SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from error


def common_image_shape(
    measures: Iterable[ImageMeasure],
    fits: Callable[[int, int], bool],
    image_size=DEFAULT_IMAGE_SIZE,
) -> ImageShape:
    """Returns (height, width, channels) for all: their own size if equal, small and `fits`.

    Args:
        measures: of every image.
        fits: whether (height, width) can be cut into patches.
        image_size: largest side in pixels.

    Returns:
        Their own size if they all have the same, no side above `image_size`, that fits, else a
        square of `image_size`; one channel if all are gray, else three.
    """
    distinct = {each[:3] for each in measures}
    channels = 1 if all(gray for _, _, gray in distinct) else 3
    shapes = {(height, width) for height, width, _ in distinct}
    if len(shapes) == 1 and max(max(shapes)) <= image_size and fits(*next(iter(shapes))):
        return (*next(iter(shapes)), channels)
    return image_size, image_size, channels


def common_background(measures: Iterable[ImageMeasure]) -> int:
    """Returns the first of `BACKGROUNDS` on which all transparent images can be seen.

    Where there is none, the one from which the least visible image differs most.
    """
    contrasts = [each.contrasts for each in measures if each.contrasts is not None]
    worst = np.min(contrasts or [(255.0,) * len(BACKGROUNDS)], axis=0)
    return list(BACKGROUNDS)[int(np.argmax(np.minimum(worst, _VISIBLE)))]


def common_value_range(measures: Iterable[ImageMeasure]) -> ValueRange | None:
    """Returns the values that become 0 and 255 in all images of more than 8 bits; None if none is.

    From 0 to the largest value of the smallest common bit depth that holds all values; if some are
    negative, from the smallest to the largest.
    """
    ranges = [each.value_range for each in measures if each.value_range is not None]
    if not ranges:
        return None
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    if low < 0:
        return low, max(high, low + 1)
    return 0.0, float(next((each for each in _LARGEST_VALUES if high <= each), high))


def measure_image(image: Image.Image) -> ImageMeasure:
    """Returns the size of an image, whether it is gray, its contrasts and its range of values."""
    wide = _is_wide(image)
    measure = ImageMeasure(image.height, image.width, wide or image.mode in _GRAY_MODES)
    if wide:
        values = np.asarray(image, np.float64)
        measure = measure._replace(value_range=(float(values.min()), float(values.max())))
    alpha = _alpha(image)
    if alpha is None or not alpha.getbbox():  # nothing to see looks the same on any background
        return measure
    gray = np.asarray(_to_8_bits(image, common_value_range([measure])).convert("L"), np.float64)
    weights = np.asarray(alpha, np.float64)
    contrasts = (np.average(np.abs(gray - level), weights=weights) for level in BACKGROUNDS)
    return measure._replace(contrasts=tuple(map(float, contrasts)))


def describe_image_changes(
    noun: str, measures: Sequence[ImageMeasure], spec: MediaSpec
) -> list[str]:
    """Returns a line for each way in which images or frames are changed to fit the spec."""
    height, width = spec.shape[-3:-1]
    low, high = spec.value_range or (0, 0)
    smaller = ""
    if shrunk := shrunk_images(measures, spec):
        rows, columns = shrunk["from"]
        smaller = f", {shrunk['count']} of them shrunk, typically from {columns}x{rows}"
        if max(height, width) < MAX_IMAGE_SIZE:
            smaller += f" (--image_size takes up to {MAX_IMAGE_SIZE})"
    changes = (
        (
            sum(each[:2] != (height, width) for each in measures),
            f"are resized to {width}x{height} pixels (width x height){smaller}",
        ),
        (
            sum(each.contrasts is not None for each in measures),
            f"are transparent in places and put on {BACKGROUNDS.get(spec.background or 0)}",
        ),
        (
            sum(each.value_range is not None for each in measures),
            f"are converted to 8 bits: {low:g} becomes 0 and {high:g} becomes 255",
        ),
    )
    return [f"{count} of {len(measures)} {noun}s {what}" for count, what in changes if count]


def shrunk_images(measures: Iterable[ImageMeasure], spec: MediaSpec) -> dict[str, Any] | None:
    """Returns how images or frames lose pixels by the spec; see `ModalityCodec.shrunk`."""
    height, width = spec.shape[-3:-1]
    sizes = sorted(
        (each[:2] for each in measures if each.height > height or each.width > width),
        key=lambda size: (size[0] * size[1], size),
    )
    if not sizes:
        return None
    return {"from": list(sizes[len(sizes) // 2]), "to": [height, width], "count": len(sizes)}


def image_to_array(
    image: Image.Image,
    shape: ImageShape,
    background: int | None = None,
    value_range: ValueRange | None = None,
) -> np.ndarray:
    """Returns a Pillow image as uint8 array (0..255), converted and resized to `shape`.

    Args:
        image: of any mode.
        shape: height, width, channels.
        background: gray level that a transparent image is put on; by default the best for it.
        value_range: values that become 0 and 255, of an image of more than 8 bits; by default as if
            it were the only one.
    """
    height, width, channels = shape
    alpha = _alpha(image)
    if alpha is not None or _is_wide(image):
        measure = measure_image(image)
        image = _to_8_bits(image, value_range or common_value_range([measure]))
        if alpha is not None:
            level = common_background([measure]) if background is None else background
            behind = Image.new("RGB", image.size, (level, level, level))
            image = Image.composite(image.convert("RGB"), behind, alpha)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(shape)


def _is_wide(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _alpha(image: Image.Image) -> Image.Image | None:
    """Returns the opacity of an image, mode L; None if it is opaque everywhere."""
    if not image.has_transparency_data:
        return None
    if _is_wide(image):
        opaque = np.asarray(image) != image.info["transparency"]
        alpha = Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8))
    else:
        alpha = _straight(image).convert("RGBA").getchannel("A")
    return None if alpha.getextrema()[0] == 255 else alpha


def _straight(image: Image.Image) -> Image.Image:
    """Returns the image with colors that are not multiplied by its opacity."""
    return image.convert(image.mode[:-1] + "A") if image.mode in ("La", "RGBa") else image


def _to_8_bits(image: Image.Image, value_range: ValueRange | None) -> Image.Image:
    """Returns an image in 8 bits a channel, of gray levels if it had more."""
    if not _is_wide(image):
        return _straight(image)
    low, high = value_range or (0.0, 255.0)
    # Pillow's own conversion would clip.
    values = (np.asarray(image, np.float64) - low) * (255 / (high - low))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


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
    image_size = DEFAULT_IMAGE_SIZE

    def open(self, path: pathlib.Path) -> Image.Image:
        """Returns the decoded Pillow image of a file, rotated by its EXIF orientation."""
        return open_image(path.read_bytes())

    def measure(self, opened: Image.Image) -> ImageMeasure:
        """Returns the size, and what else decides on the conversion."""
        return measure_image(opened)

    def common_spec(self, measures: Sequence[ImageMeasure]) -> MediaSpec:
        """Returns the shape, background and range of values to which all images are converted."""
        return MediaSpec(
            common_image_shape(measures, fits_patches, self.image_size),
            background=common_background(measures),
            value_range=common_value_range(measures),
        )

    def describe_changes(self, measures: Sequence[ImageMeasure], spec: MediaSpec) -> list[str]:
        """Counts the images that are resized, put on a background, or converted to 8 bits."""
        return describe_image_changes("image", measures, spec)

    def shrunk(self, measures: Sequence[ImageMeasure], spec: MediaSpec) -> dict[str, Any] | None:
        """Returns how many images lose pixels, from which size to which; None if none does."""
        return shrunk_images(measures, spec)

    def to_array(self, opened: Image.Image, spec: MediaSpec) -> np.ndarray:
        """Returns uint8 [height, width, channels], converted and resized as needed."""
        height, width, channels = spec.shape
        shape = height, width, channels
        return image_to_array(opened, shape, spec.background, spec.value_range)

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
        """Returns the shape if it is known, small, gray or RGB of 8 bits, and fits patches."""
        shape = feature.shape
        if None in shape or max(shape[:2]) > self.image_size or shape[2] not in (1, 3):
            return None
        if feature.np_dtype != np.uint8 or not fits_patches(*shape[:2]):
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
        """Returns `size`, or the smallest side that gives 4 to 64 patches (large: up to 256)."""
        if size is not None:
            return (size,)
        height, width, _ = shape
        side = default_patch_side(height, width)
        if side is None:
            raise UserError(
                f"images of {height}x{width} cannot be cut into {min_patches(height, width)} to "
                f"{max_patches(height, width)} patches"
            )
        return (side,)

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


def fits_patches(height: int, width: int) -> bool:
    """Returns whether an image of this size can be cut into patches by default."""
    return default_patch_side(height, width) is not None


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
    baseline=(
        BaselineFeatureSpec("pixels", image_features.pixel_features),
        BaselineFeatureSpec("HOG", image_features.hog_features),
        BaselineFeatureSpec(
            "patch codes", image_features.unit_pixels, learn=image_features.learn_patch_codes
        ),
    ),
)
