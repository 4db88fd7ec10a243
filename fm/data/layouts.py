"""How the examples of a continuous format become pieces and come back, as one value to keep.

A model predicts pieces; what picture, sound or clip they make up only the layout knows, so it is
saved with the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from fm.config_io import parse
from fm.data.log_mel import (
    FRAMES_PER_PATCH,
    NUM_BINS,
    LogMelConfig,
    log_mel_patches,
    log_mel_positions,
    patches_to_spectrograms,
    patches_to_waveforms,
)
from fm.data.patches import (
    TUBELET_SHAPE,
    clips_to_tubelets,
    patch_positions,
    patchify,
    tubelet_positions,
    tubelets_to_clips,
    unpatchify,
)
from fm.errors import UserError

NUM_AXES = {"image": 2, "audio": 1, "video": 3}
_MOST_PATCHES, _SMALLEST_PATCH, _LARGEST_PATCH = 64, 2, 32


@dataclasses.dataclass(frozen=True)
class Layout:
    """Of one format.

    Attributes:
      modality: "image", "audio" or "video"; the stream is called the same.
      shape: of an example: (height, width, channels), (samples,) or (frames, height, width,
        channels).
      patch_shape: what a piece is: (side,) of a patch in pixels, (mel bins, frames), or (frames, rows,
        columns) of a tubelet.
      rate: Hz of sounds, frames/s of clips, 0 of images.
    """

    modality: str
    shape: tuple[int, ...]
    patch_shape: tuple[int, ...]
    rate: float = 0.0

    @property
    def patch_dim(self) -> int:
        """Numbers in a piece (P)."""
        if self.modality == "audio":
            return self.log_mel_config.patch_dim
        area = (
            self.patch_shape[0] ** 2 if self.modality == "image" else int(np.prod(self.patch_shape))
        )
        return area * self.shape[-1]

    @property
    def log_mel_config(self) -> LogMelConfig:
        """Of sounds, as `fm.data.log_mel` takes them."""
        return LogMelConfig(round(self.rate), self.shape[0], *self.patch_shape)

    def positions(self) -> np.ndarray:
        """Where the pieces lie, int32 [L, A]."""
        if self.modality == "audio":
            return log_mel_positions(self.log_mel_config)
        if self.modality == "image":
            return patch_positions(*self.shape[:2], *self.patch_shape)
        return tubelet_positions(self.shape, self.patch_shape)  # pyright: ignore[reportArgumentType]

    def to_patches(self, examples: np.ndarray) -> np.ndarray:
        """Examples [N, *shape] as pieces [N, L, P]: uint8, of sounds float32 in 0..1.

        Raises:
          UserError: they are of another shape.
        """
        if examples.shape[1:] != self.shape:
            given = _times(examples.shape[1:])
            raise UserError(f"{self.modality} of {given}, where {_times(self.shape)} is read")
        if self.modality == "audio":
            return log_mel_patches(examples, self.log_mel_config)
        if self.modality == "image":
            return patchify(examples, *self.patch_shape)
        return clips_to_tubelets(examples, self.patch_shape)  # pyright: ignore[reportArgumentType]

    def from_patches(self, pieces: np.ndarray) -> np.ndarray:
        """Pieces [N, L, P] in 0..1 as examples [N, *shape]: uint8, of sounds int16."""
        if self.modality == "audio":
            return patches_to_waveforms(pieces, self.log_mel_config)
        values = np.clip(pieces * 256.0, 0.0, 255.0).astype(np.uint8)
        if self.modality == "image":
            return unpatchify(values, *self.patch_shape, *self.shape[:2])
        return tubelets_to_clips(values, self.patch_shape, self.shape)  # pyright: ignore[reportArgumentType]

    def to_picture(self, example: np.ndarray) -> np.ndarray:
        """An example to look at, uint8 [height, width, channels].

        Of a sound its log-mel spectrogram, low pitches at the bottom; of a clip its frames from
        left to right.
        """
        if self.modality == "image":
            return example
        if self.modality == "audio":
            (mel,) = patches_to_spectrograms(
                log_mel_patches(example[None], self.log_mel_config), self.log_mel_config
            )
            return np.rint(255 * mel[::-1, :, None]).astype(np.uint8)
        return np.concatenate(list(example), axis=1)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Layout:
        """What `plain` made JSON of; raises UserError where a value is of the wrong kind."""
        return parse(cls, saved, "a layout")


def layout_of(modality: str, shape: Sequence[int], rate: float | None) -> Layout:
    """The layout of a data set by its `info`.

    Args:
      modality: of the data.
      shape: of one example.
      rate: of sounds and clips.

    Returns:
      Of images, with the smallest patches from 2x2 that leave at most 64 of them.

    Raises:
      UserError: images that no patch fits; clips that no tubelet of 2x4x4 does.
    """
    whole = tuple(shape)
    if modality == "audio":
        return Layout("audio", whole, (NUM_BINS, FRAMES_PER_PATCH), float(rate or 0))
    if modality == "video":
        layout = Layout("video", whole, TUBELET_SHAPE, float(rate or 0))
        layout.positions()
        return layout
    height, width, _ = whole
    for side in range(_SMALLEST_PATCH, _LARGEST_PATCH + 1):
        fits = height % side == 0 and width % side == 0
        if fits and height * width // side**2 <= _MOST_PATCHES:
            return Layout("image", whole, (side,))
    raise UserError(
        f"pictures of {height}x{width} cannot be cut into at most {_MOST_PATCHES} patches"
    )


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
