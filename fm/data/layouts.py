"""How the examples of a continuous format become pieces and come back, as one value to keep.

A model predicts pieces; what picture, sound or clip they make up only the layout knows, so it is
saved with the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from fm.data.clips import TUBELET, tubelet_positions, tubelets, untubelets
from fm.data.pieces import patch_positions, patchify, unpatchify
from fm.data.sounds import (
    BINS,
    FRAMES,
    Frames,
    sound_pieces,
    sound_positions,
    spectrograms,
    waveforms,
)
from fm.errors import UserError
from fm.model.plain import read

AXES = {"image": 2, "audio": 1, "video": 3}
_MOST_PATCHES, _SMALLEST_PATCH, _LARGEST_PATCH = 64, 2, 32


@dataclasses.dataclass(frozen=True)
class Layout:
    """Of one format.

    Attributes:
      modality: "image", "audio" or "video"; the stream is called the same.
      shape: of an example: (height, width, channels), (samples,) or (frames, height, width,
        channels).
      piece: what a piece is: (side,) of a patch in pixels, (mel bins, frames), or (frames, rows,
        columns) of a tubelet.
      rate: Hz of sounds, frames/s of clips, 0 of images.
    """

    modality: str
    shape: tuple[int, ...]
    piece: tuple[int, ...]
    rate: float = 0.0

    @property
    def size(self) -> int:
        """Numbers in a piece (P)."""
        if self.modality == "audio":
            return self.frames.size
        area = self.piece[0] ** 2 if self.modality == "image" else int(np.prod(self.piece))
        return area * self.shape[-1]

    @property
    def frames(self) -> Frames:
        """Of sounds, as `fm.data.sounds` takes them."""
        return Frames(round(self.rate), self.shape[0], *self.piece)

    def positions(self) -> np.ndarray:
        """Where the pieces lie, int32 [L, A]."""
        if self.modality == "audio":
            return sound_positions(self.frames)
        if self.modality == "image":
            return patch_positions(*self.shape[:2], *self.piece)
        return tubelet_positions(self.shape, self.piece)  # pyright: ignore[reportArgumentType]

    def cut(self, examples: np.ndarray) -> np.ndarray:
        """Examples [N, *shape] as pieces [N, L, P]: uint8, of sounds float32 in 0..1.

        Raises:
          UserError: they are of another shape.
        """
        if examples.shape[1:] != self.shape:
            given = _times(examples.shape[1:])
            raise UserError(f"{self.modality} of {given}, where {_times(self.shape)} is read")
        if self.modality == "audio":
            return sound_pieces(examples, self.frames)
        if self.modality == "image":
            return patchify(examples, *self.piece)
        return tubelets(examples, self.piece)  # pyright: ignore[reportArgumentType]

    def joined(self, pieces: np.ndarray) -> np.ndarray:
        """Pieces [N, L, P] in 0..1 as examples [N, *shape]: uint8, of sounds int16."""
        if self.modality == "audio":
            return waveforms(pieces, self.frames)
        values = np.clip(pieces * 256.0, 0.0, 255.0).astype(np.uint8)
        if self.modality == "image":
            return unpatchify(values, *self.piece, *self.shape[:2])
        return untubelets(values, self.piece, self.shape)  # pyright: ignore[reportArgumentType]

    def picture(self, example: np.ndarray) -> np.ndarray:
        """An example to look at, uint8 [height, width, channels].

        Of a sound its log-mel spectrogram, low pitches at the bottom; of a clip its frames from
        left to right.
        """
        if self.modality == "image":
            return example
        if self.modality == "audio":
            (mel,) = spectrograms(sound_pieces(example[None], self.frames), self.frames)
            return np.rint(255 * mel[::-1, :, None]).astype(np.uint8)
        return np.concatenate(list(example), axis=1)

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(cls, saved: dict[str, Any]) -> Layout:
        """What `plain` made JSON of; raises UserError where a value is of the wrong kind."""
        return read(cls, saved, "a layout")


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
        return Layout("audio", whole, (BINS, FRAMES), float(rate or 0))
    if modality == "video":
        layout = Layout("video", whole, TUBELET, float(rate or 0))
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
