"""`PatchLayout`: how examples of a continuous modality are cut into patches and rejoined.

It is saved with a model, which predicts patches and does not know what they show.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from fm.config_io import parse, to_plain
from fm.data.media import Patching, get_modality
from fm.errors import UserError


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
