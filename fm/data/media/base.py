"""`Modality`: codec, patching, duplicate rule and baseline of a modality; their registry.

A `PatchLayout` says how examples of a data set are cut into patches by their modality's `Patching`.
It is saved with a model, which predicts patches and does not know what they show.

A new modality is one `Modality` object passed to `register_modality`; `fm/data/media/audio.py` is
an example.
"""

from __future__ import annotations

import abc
import copy
import dataclasses
import pathlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ClassVar

import numpy as np

from fm.config_io import parse, to_plain
from fm.errors import UserError


@dataclasses.dataclass(frozen=True)
class MediaSpec:
    """Array shape, rate and conversion of values, common to all examples of a data set.

    Attributes:
        shape: of one example's array.
        rate: Hz of sounds, frames/s of clips, None for images.
        background: gray level that transparent images and frames are put on; None chooses one for
            each example.
        value_range: values of a file that become the ends of the array's range, of images of more
            than 8 bits and floating-point sounds; None takes each example's own.
    """

    shape: tuple[int, ...]
    rate: float | None = None
    background: int | None = None
    value_range: tuple[float, float] | None = None


class ModalityCodec(abc.ABC):
    """Base class of codecs: decode a modality's stored examples to arrays and encode them back.

    An example is first *opened*, at its own size. From the measures of all opened examples follows
    the common spec, and each example becomes an array of that spec.

    Attributes:
        dtype: of the arrays.
        extensions: of the files it reads, lower case, with the dot.
        stores_bytes: whether the TFDS feature is read as encoded bytes (which `decode` takes).
        preview_extension: of the files that `encode_preview` makes.
        image_size: largest side of an image or frame in pixels; 0 for other examples.
    """

    dtype: ClassVar[type[np.generic]]
    extensions: ClassVar[tuple[str, ...]]
    stores_bytes: ClassVar[bool] = False
    preview_extension: ClassVar[str]
    image_size: int = 0

    def matches(self, path: pathlib.Path) -> bool:
        """Returns whether a file, or a folder as a whole, is one example."""
        return path.is_file() and path.suffix.lower() in self.extensions

    @abc.abstractmethod
    def open(self, path: pathlib.Path) -> Any:
        """Reads and decodes an example from a file or folder.

        Raises:
            OSError: it cannot be read or decoded; the message gives the reason in a few words.
        """

    @abc.abstractmethod
    def measure(self, opened: Any) -> Hashable:
        """Returns the measures of an opened example that `common_spec` needs."""

    @abc.abstractmethod
    def common_spec(self, measures: Sequence[Any]) -> MediaSpec:
        """Returns the spec for a data set with these measures (at least one)."""

    def with_image_size(self, image_size: int) -> ModalityCodec:
        """Returns the codec for images or frames with sides of at most `image_size` pixels.

        Codecs of other examples return themselves.
        """
        if not self.image_size:
            return self
        codec = copy.copy(self)
        codec.image_size = image_size
        return codec

    def describe_changes(self, measures: Sequence[Any], spec: MediaSpec) -> list[str]:
        """Returns a line for each way in which examples are changed to fit the spec."""
        return []

    def shrunk(self, measures: Sequence[Any], spec: MediaSpec) -> dict[str, Any] | None:
        """Returns how images or frames are made smaller to fit the spec, None if none is.

        As JSON: "from", the [height, width] of the middle one of them by number of pixels; "to",
        that of the spec; "count", how many.
        """
        return None

    @abc.abstractmethod
    def to_array(self, opened: Any, spec: MediaSpec) -> np.ndarray:
        """Converts an opened example to an array of the spec."""

    @abc.abstractmethod
    def tfds_feature(self, spec: MediaSpec) -> Any:
        """Returns the TFDS feature for such arrays; it must not need TensorFlow."""

    @abc.abstractmethod
    def encode(self, array: np.ndarray) -> Any:
        """Returns what a TFDS builder yields for that feature."""

    @abc.abstractmethod
    def accepts_feature(self, feature: Any) -> bool:
        """Returns whether a TFDS feature of any data set holds this modality."""

    @abc.abstractmethod
    def declared_spec(self, feature: Any, rate: float | None) -> MediaSpec | None:
        """Returns the spec that an accepted feature declares for all examples, if it does.

        Args:
            feature: a TFDS feature.
            rate: "rate" in the metadata of the data set, or None.

        Raises:
            UserError: the modality needs a rate, and the metadata has none.
        """

    @abc.abstractmethod
    def decode(self, stored: Any, rate: float | None) -> Any:
        """Decodes an example as stored in the TFDS feature.

        Raises:
            OSError: it cannot be decoded.
        """

    @abc.abstractmethod
    def encode_preview(self, array: np.ndarray, rate: float) -> bytes:
        """Returns an example as a file for people (`preview_extension`)."""


class Patching(abc.ABC):
    """Base class for cutting a modality's arrays into patches and joining them, by `PatchLayout`.

    Attributes:
        num_axes: position axes of a patch (A).
    """

    num_axes: ClassVar[int]

    @abc.abstractmethod
    def patch_shape(self, shape: tuple[int, ...], size: int | None) -> tuple[int, ...]:
        """Returns the shape of a patch of examples of `shape`; `size` None chooses the default.

        Raises:
            UserError: no patch fits.
        """

    @abc.abstractmethod
    def patch_dim(self, layout: PatchLayout) -> int:
        """Returns the numbers in a patch (P)."""

    @abc.abstractmethod
    def positions(self, layout: PatchLayout) -> np.ndarray:
        """Returns the position of each patch, int32 [L, A]."""

    @abc.abstractmethod
    def to_patches(self, examples: np.ndarray, layout: PatchLayout) -> np.ndarray:
        """Cuts examples [N, ...] into patches [N, L, P], uint8 or float32 in 0..1."""

    @abc.abstractmethod
    def from_patches(self, patches: np.ndarray, layout: PatchLayout) -> np.ndarray:
        """Puts patches [N, L, P] in 0..1 together to examples of the codec's dtype."""

    @abc.abstractmethod
    def to_picture(self, example: np.ndarray, layout: PatchLayout) -> np.ndarray:
        """Returns an example as an image, uint8 [height, width, channels]."""


@dataclasses.dataclass(frozen=True)
class DuplicateRule:
    """A rule for near-duplicates: a description, and a function that finds matching pairs.

    Attributes:
        description: the rule, in words.
        find: maps the inputs of two splits to the pairs that match, int64 [pairs, 2].
    """

    description: str
    find: Callable[[Any, Any], np.ndarray]


@dataclasses.dataclass(frozen=True)
class BaselineFeatureSpec:
    """Features of a modality that classical models read, each of them with every classifier.

    Attributes:
        name: in hyper-parameters and results.
        extract: maps examples [N, ...] and their rate to rows [N, F] (to rows of any shape, if
            `learn` makes features of them); a row depends on its own example alone.
        standardize: whether every feature is standardized on the labeled examples; else all are
            divided by one number.
        learn: maps rows of unlabeled examples to a function from rows to features [N, F]; None if
            nothing is learned.
    """

    name: str
    extract: Callable[[np.ndarray, float | None], np.ndarray]
    standardize: bool = False
    learn: Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Modality:
    """A modality: its codec, patching, duplicate rule, baseline features, metric unit and recipe.

    Attributes:
        name: of the modality, of its arrays in a batch, and of its TFDS feature.
        noun: one example, in messages.
        metric_unit: name of the unit of its loss.
        duplicates: the rule for near-duplicates.
        codec: reads examples; None for text.
        patching: cuts examples into patches; None for text.
        baseline: features of classical models; empty for text, which uses TF-IDF.
        recipe: maps a profile ("quick", "default", "full") to a training recipe of `fm.study`;
            None for the built-in modalities, whose recipes `fm.study` has.
    """

    name: str
    noun: str
    metric_unit: str
    duplicates: DuplicateRule
    codec: ModalityCodec | None = None
    patching: Patching | None = None
    baseline: tuple[BaselineFeatureSpec, ...] = ()
    recipe: Callable[[str], Any] | None = None

    def with_image_size(self, image_size: int) -> Modality:
        """Returns the modality with images or frames of at most `image_size` pixels a side."""
        if self.codec is None:
            return self
        return dataclasses.replace(self, codec=self.codec.with_image_size(image_size))


# By name. The first whose codec matches a path owns it: an animated image is a clip.
MODALITIES: dict[str, Modality] = {}


def register_modality(modality: Modality) -> None:
    """Adds a modality to `MODALITIES`, replacing one of the same name."""
    MODALITIES[modality.name] = modality


def get_modality(name: str) -> Modality:
    """Returns the registered modality of the given name.

    Raises:
        UserError: there is none of this name.
    """
    if name not in MODALITIES:
        raise UserError(f"unknown modality {name!r}; accepted: {', '.join(MODALITIES)}")
    return MODALITIES[name]


def modality_for_path(path: pathlib.Path) -> Modality | None:
    """Returns the modality that a file, or a folder read as one example, belongs to, or None."""
    for modality in MODALITIES.values():
        if modality.codec is not None and modality.codec.matches(path):
            return modality
    return None


def media_extensions() -> tuple[str, ...]:
    """Returns the file extensions of all registered modalities, sorted."""
    codecs = (modality.codec for modality in MODALITIES.values())
    return tuple(sorted({each for codec in codecs if codec for each in codec.extensions}))


@dataclasses.dataclass(frozen=True)
class PatchLayout:
    """Shapes of a data set's examples and patches; converts between arrays and patches.

    Attributes:
        modality: of `fm.data.media.MODALITIES`.
        shape: of an example: (height, width, channels), (samples,) or (frames, height, width,
            channels).
        patch_shape: (side,) of an image patch, (mel bins, frames) of a log-mel patch, or (frames,
            rows, columns) of a tubelet.
        rate: Hz of sounds, frames/s of clips, 0 for images.
        raster: whether patches have one position axis, their order, instead of their modality's.
    """

    ADDED_FIELDS: ClassVar[tuple[str, ...]] = ("raster",)

    modality: str
    shape: tuple[int, ...]
    patch_shape: tuple[int, ...]
    rate: float = 0.0
    raster: bool = False

    @property
    def patch_dim(self) -> int:
        """Numbers in a patch (P)."""
        return _patching(self.modality).patch_dim(self)

    @property
    def num_axes(self) -> int:
        """Position axes of a patch (A)."""
        return 1 if self.raster else _patching(self.modality).num_axes

    def positions(self) -> np.ndarray:
        """Returns the position of each patch, int32 [L, A]."""
        positions_LA = _patching(self.modality).positions(self)
        if self.raster:
            return np.arange(len(positions_LA), dtype=np.int32)[:, None]
        return positions_LA

    def to_patches(self, examples: np.ndarray) -> np.ndarray:
        """Cuts examples [N, *shape] into patches [N, L, P]: uint8, or float32 in 0..1 for audio.

        Raises:
            UserError: the examples have another shape.
        """
        if examples.shape[1:] != self.shape:
            raise UserError(
                f"{self.modality} of {_times(examples.shape[1:])}, but the model reads "
                f"{_times(self.shape)}"
            )
        return _patching(self.modality).to_patches(examples, self)

    def from_patches(self, patches: np.ndarray) -> np.ndarray:
        """Puts patches [N, L, P] in 0..1 together: examples [N, *shape], uint8, int16 for audio."""
        return _patching(self.modality).from_patches(patches, self)

    def to_picture(self, example: np.ndarray) -> np.ndarray:
        """Returns an example as an image to look at, uint8 [height, width, channels]."""
        return _patching(self.modality).to_picture(example, self)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> PatchLayout:
        """Inverse of `to_dict`; raises UserError where a value has the wrong type."""
        return parse(cls, saved, "a layout")


def layout_of(
    modality: str,
    shape: Sequence[int],
    rate: float | None,
    patch_size: int | None = None,
    *,
    raster: bool = False,
) -> PatchLayout:
    """Returns the `PatchLayout` (example shape, patch shape and rate) for arrays of a modality.

    Args:
        modality: of the data.
        shape: of one example.
        rate: of sounds and clips.
        patch_size: side of an image patch; by default the smallest from 2 on that gives at most 64
            patches, or up to 256 beyond 32x32 pixels. Other modalities ignore it.
        raster: see `PatchLayout`.

    Raises:
        UserError: no patch fits the examples.
    """
    patch_shape = _patching(modality).patch_shape(tuple(shape), patch_size)
    return PatchLayout(modality, tuple(shape), patch_shape, float(rate or 0), raster)


def _patching(modality: str) -> Patching:
    patching = get_modality(modality).patching
    if patching is None:
        raise UserError(f"{modality} has no patches")
    return patching


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
