"""Clips to tubelets, boxes of a few pixels in a few frames, and back; clips as animated images.

A tubelet (Arnab et al. 2021, ViViT) is to a clip what a patch is to an image.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from fm.errors import UserError

# Frames, rows and columns. At 16x16 pixels, eight frames are 64 pieces of 32 grey values.
TUBELET = (2, 4, 4)

Box = tuple[int, int, int]


def tubelets(clips: np.ndarray, size: Box = TUBELET) -> np.ndarray:
    """Cuts clips into tubelets: time first, then row by row.

    Args:
        clips: uint8 [N, frames, height, width, channels].
        size: frames, rows and columns of a tubelet; each must divide the clip's.

    Returns:
        uint8 [N, L, P]: L tubelets a clip, P values in each, in the same order, channels last.

    Raises:
        UserError: `size` does not divide the clip.
    """
    N, *shape = clips.shape
    (f, h, w), (a, b, c), channels = _grid(shape, size), size, shape[3]
    boxes = clips.reshape(N, f, a, h, b, w, c, channels).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return boxes.reshape(N, f * h * w, a * b * c * channels)


def untubelets(pieces: np.ndarray, size: Box, shape: Sequence[int]) -> np.ndarray:
    """Puts tubelets [N, L, P] back into clips [N, *shape], dtype kept.

    Args:
        pieces: of `tubelets`.
        size: frames, rows and columns of a tubelet.
        shape: frames, height, width and channels of a clip.

    Raises:
        UserError: the tubelets are not those of such a clip.
    """
    (f, h, w), (a, b, c), channels = _grid(shape, size), size, shape[3]
    if pieces.shape[1:] != (f * h * w, a * b * c * channels):
        raise UserError(
            f"{pieces.shape[1]} tubelets of {pieces.shape[2]} values are not a clip of "
            f"{_times(shape)} in tubelets of {_times(size)}"
        )
    boxes = pieces.reshape(-1, f, h, w, a, b, c, channels).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return boxes.reshape(-1, *shape)


def tubelet_positions(shape: Sequence[int], size: Box = TUBELET) -> np.ndarray:
    """Returns time, row and column of each tubelet, int32 [L, 3], in the order of `tubelets`.

    Counted in tubelets, not in frames and pixels.
    """
    grid = np.meshgrid(*map(np.arange, _grid(shape, size)), indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 3).astype(np.int32)


def animation(clip: np.ndarray, rate: float, *, scale: int = 8, form: str = "GIF") -> bytes:
    """Returns a clip as an animated image that plays for ever.

    Args:
        clip: uint8 [frames, height, width, 1 or 3].
        rate: frames/s. GIF counts hundredths of a second: 8 frames/s last 120 ms each there.
        scale: how many times larger it is shown, pixels repeated.
        form: "GIF" (256 colours: exact for grey), "PNG" or "WEBP" (exact).

    Raises:
        UserError: an animation of another form.
    """
    if form not in ("GIF", "PNG", "WEBP"):
        raise UserError(f"animated images are GIF, PNG or WEBP, not {form}")
    large = clip.repeat(scale, axis=1).repeat(scale, axis=2)
    images = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in large]
    buffer = io.BytesIO()
    options = {"lossless": True} if form == "WEBP" else {}
    images[0].save(
        buffer,
        format=form,
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / rate),
        loop=0,
        **options,
    )
    return buffer.getvalue()


def _grid(shape: Sequence[int], size: Box) -> Box:
    """How many tubelets fit, by time, row and column."""
    if min(size) < 1 or any(whole % part for whole, part in zip(shape, size, strict=False)):
        raise UserError(
            f"tubelets of {_times(size)} do not divide a clip of {_times(shape)} "
            "(frames x height x width)"
        )
    return shape[0] // size[0], shape[1] // size[1], shape[2] // size[2]


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[:3]))
