"""Images as a published encoder wants them: resized and cropped by its preprocessor_config.json.

What is left of the file, rescaling and normalization, `fm.model.stems` does. The reference are the
image processors of `transformers` on Pillow, to the value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from fm.errors import UserError
from fm.hf.encoders.reader import PreprocessorReader

Size = tuple[int, int]

# Defaults of the processors of `transformers` that the families' folders name; those of CLIP and
# ImageNet are theirs (`transformers.image_utils`).
_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class _Defaults:
    """What a processor does where its file does not say."""

    size: dict[str, int]
    square: bool
    center_crop: bool
    resample: Image.Resampling
    mean: tuple[float, ...]
    std: tuple[float, ...]


_VIT = _Defaults(
    {"height": 224, "width": 224}, True, False, Image.Resampling.BILINEAR, _HALF, _HALF
)
_BIT = _Defaults(
    {"shortest_edge": 224}, False, True, Image.Resampling.BICUBIC, _CLIP_MEAN, _CLIP_STD
)
_PROCESSORS = {
    f"{name}{end}": defaults
    for name, defaults in (("ViT", _VIT), ("Bit", _BIT))
    for end in ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
}


@dataclasses.dataclass(frozen=True)
class ImagePreprocessing:
    """Resizes and crops images, and says how their values are normalized.

    Attributes:
      channels: 3 for RGB, 1 for gray.
      size: (height, width) that images are resized to, or the one number that their shorter side
        becomes; None leaves them as they are.
      resample: filter of Pillow.
      crop: (height, width) cut from the middle, with black around smaller ones; None for none.
      rescale: see `fm.model.stems.StemConfig`, as the others.
      mean: of each channel.
      std: of each channel.
    """

    channels: int
    size: Size | int | None
    resample: Image.Resampling
    crop: Size | None
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_config(
        cls, values: Mapping[str, Any], channels: int, processor: str = ""
    ) -> ImagePreprocessing:
        """Returns the preprocessing that a preprocessor_config.json asks for.

        Args:
          values: of the file.
          channels: of the model's images.
          processor: that of the family, for files that name none.

        Raises:
          UserError: it asks for something else, or a value is no such value.
        """
        config = PreprocessorReader(values)
        kind = config.raw("image_processor_type", config.raw("feature_extractor_type", processor))
        if kind not in _PROCESSORS:
            key = "image_processor_type"
            raise UserError(
                f"preprocessor_config.json: {key}={kind!r} is not supported; accepted are "
                f"{', '.join(_PROCESSORS)}"
            )
        defaults = _PROCESSORS[kind]
        square = config.flag("default_to_square", defaults.square)
        size = _size(config, "size", defaults.size, square=square)
        crop = _size(config, "crop_size", {"height": 224, "width": 224}, square=True)
        if isinstance(crop, int):
            raise config.error("crop_size", "must have a height and a width")
        if config.raw("do_pad", False) is not False:
            raise config.error("do_pad", "is not supported, only false is")
        config.ignore("pad_size", "do_convert_rgb")  # gray images always become RGB
        resample = config.raw("resample", int(defaults.resample))
        if type(resample) is not int or resample not in list(map(int, Image.Resampling)):
            raise config.error("resample", "must be a filter of Pillow, 0 to 5")
        rescale = config.number("rescale_factor", 1 / 255)
        mean = config.numbers("image_mean", defaults.mean[:channels], channels)
        std = config.numbers("image_std", defaults.std[:channels], channels)
        if not all(std):
            raise config.error("image_std", "must not be 0")
        does_normalize = config.flag("do_normalize", True)
        preprocessing = cls(
            channels=channels,
            size=size if config.flag("do_resize", True) else None,
            resample=Image.Resampling(resample),
            crop=crop if config.flag("do_center_crop", defaults.center_crop) else None,
            rescale=rescale if config.flag("do_rescale", True) else 1.0,
            mean=mean if does_normalize else (0.0,) * channels,
            std=std if does_normalize else (1.0,) * channels,
        )
        config.finish()
        return preprocessing

    def output_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Returns the shape of an image of this size when it is preprocessed."""
        return (*(self.crop or self._resized_to(height, width)), self.channels)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Returns images uint8 [N, height, width, 1 or 3] as uint8 [N, *output_shape]."""
        return np.stack([self._preprocess(image) for image in images])

    def describe(self) -> str:
        """Returns what is done, in a few words."""
        parts = []
        if self.size is not None:
            if isinstance(self.size, int):
                what = f"the shorter side resized to {self.size}"
            else:
                what = f"resized to {self.size[0]}x{self.size[1]}"
            parts.append(f"{what} ({self.resample.name.lower()})")
        if self.crop:
            parts.append(f"cropped to {self.crop[0]}x{self.crop[1]}")
        return ", ".join(parts) or "as they are"

    def _resized_to(self, height: int, width: int) -> Size:
        if self.size is None:
            return height, width
        if not isinstance(self.size, int):
            return self.size
        # As `transformers` rounds: the longer side is cut to a whole number.
        longer = int(self.size * max(height, width) / min(height, width))
        return (longer, self.size) if width <= height else (self.size, longer)

    def _preprocess(self, image: np.ndarray) -> np.ndarray:
        opened = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        converted = opened.convert("RGB" if self.channels == 3 else "L")
        height, width = self._resized_to(*image.shape[:2])
        if (height, width) != image.shape[:2]:
            converted = converted.resize((width, height), self.resample)
        pixels = np.asarray(converted).reshape(height, width, self.channels)
        return pixels if self.crop is None else _center_crop(pixels, self.crop)


def _center_crop(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Returns the middle of an image, in black where the image is smaller."""
    for axis, wanted in enumerate(size):
        missing = wanted - pixels.shape[axis]
        if missing > 0:
            # `transformers` pads to the larger of both sides first, the odd pixel in front.
            before = -(-missing // 2)
            padding = [(0, 0)] * 3
            padding[axis] = (before, missing - before)
            pixels = np.pad(pixels, padding)
        start = (pixels.shape[axis] - wanted) // 2
        pixels = pixels.take(range(start, start + wanted), axis)
    return pixels


def _size(
    config: PreprocessorReader, key: str, default: dict[str, int], *, square: bool
) -> Size | int:
    """Returns a size as (height, width), or as the shorter side alone."""
    value = config.raw(key, default)
    if type(value) is int:
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    if not isinstance(value, dict) or any(type(n) is not int or n < 1 for n in value.values()):
        raise config.error(key, "must be whole numbers of at least 1")
    if value.keys() == {"height", "width"}:
        return value["height"], value["width"]
    if value.keys() == {"shortest_edge"}:
        return value["shortest_edge"]
    raise config.error(key, "is not supported; accepted are height and width, or shortest_edge")
