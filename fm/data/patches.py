"""Examples to pieces: texts to chunks of token ids, images to patches, and back."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from fm.data.tokenizer import Tokenizer
from fm.errors import UserError


def tokenize_chunks(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> list[np.ndarray]:
    """Returns every text's chunks, one after the other; see `chunks`."""
    pieces: list[np.ndarray] = []
    for ids in tokenizer.encode(texts):
        pieces += token_chunks(ids, length, tokenizer)
    return pieces


def token_chunks(ids: np.ndarray, length: int, tokenizer: Tokenizer) -> list[np.ndarray]:
    """Cuts a document into consecutive chunks of at most `length` tokens.

    Args:
        ids: int32 [tokens] without specials.
        length: the most tokens a chunk may hold, specials included.
        tokenizer: for its special ids.

    Returns:
        int32 arrays: the first begins with BOS, the last ends with EOS.
    """
    document = np.concatenate([[tokenizer.bos], ids, [tokenizer.eos]]).astype(np.int32)
    return [document[start : start + length] for start in range(0, len(document), length)]


def patchify(images: np.ndarray, patch: int) -> np.ndarray:
    """Cuts images into square patches, row by row.

    Args:
        images: uint8 [N, height, width, channels].
        patch: side of a patch in pixels; it must divide height and width.

    Returns:
        uint8 [N, L, P]: L = (height / patch) * (width / patch), P = patch * patch * channels,
        a patch's own pixels row by row, channels last.

    Raises:
        UserError: `patch` does not divide the image.
    """
    number, height, width, channels = images.shape
    rows, columns = _patch_grid(height, width, patch)
    tiles = images.reshape(number, rows, patch, columns, patch, channels).swapaxes(2, 3)
    return tiles.reshape(number, rows * columns, patch * patch * channels)


def unpatchify(patches: np.ndarray, patch: int, height: int, width: int) -> np.ndarray:
    """Puts patches [N, L, P] back into images [N, height, width, channels], dtype kept.

    Raises:
        UserError: the patches are not those of such an image.
    """
    number, length, size = patches.shape
    rows, columns = _patch_grid(height, width, patch)
    if length != rows * columns or size % (patch * patch):
        raise UserError(
            f"{length} patches of {size} values are not an image of {height}x{width} in patches "
            f"of {patch}x{patch}"
        )
    tiles = patches.reshape(number, rows, columns, patch, patch, size // (patch * patch))
    return tiles.swapaxes(2, 3).reshape(number, height, width, -1)


def patch_positions(height: int, width: int, patch: int) -> np.ndarray:
    """Returns the row and column of each patch, int32 [L, 2], in the order of `patchify`."""
    rows, columns = _patch_grid(height, width, patch)
    grid = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 2).astype(np.int32)


def _patch_grid(height: int, width: int, patch: int) -> tuple[int, int]:
    if patch < 1 or height % patch or width % patch:
        raise UserError(
            f"patch size {patch} does not divide an image of {height}x{width} (height x width)"
        )
    return height // patch, width // patch


# Frames, rows and columns. At 16x16 pixels, eight frames are 64 pieces of 32 grey values.
TUBELET_SHAPE = (2, 4, 4)

Box = tuple[int, int, int]


def clips_to_tubelets(clips: np.ndarray, size: Box = TUBELET_SHAPE) -> np.ndarray:
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
    (f, h, w), (a, b, c), channels = _tubelet_grid(shape, size), size, shape[3]
    boxes = clips.reshape(N, f, a, h, b, w, c, channels).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return boxes.reshape(N, f * h * w, a * b * c * channels)


def tubelets_to_clips(pieces: np.ndarray, size: Box, shape: Sequence[int]) -> np.ndarray:
    """Puts tubelets [N, L, P] back into clips [N, *shape], dtype kept.

    Args:
        pieces: of `tubelets`.
        size: frames, rows and columns of a tubelet.
        shape: frames, height, width and channels of a clip.

    Raises:
        UserError: the tubelets are not those of such a clip.
    """
    (f, h, w), (a, b, c), channels = _tubelet_grid(shape, size), size, shape[3]
    if pieces.shape[1:] != (f * h * w, a * b * c * channels):
        raise UserError(
            f"{pieces.shape[1]} tubelets of {pieces.shape[2]} values are not a clip of "
            f"{_times(shape)} in tubelets of {_times(size)}"
        )
    boxes = pieces.reshape(-1, f, h, w, a, b, c, channels).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return boxes.reshape(-1, *shape)


def tubelet_positions(shape: Sequence[int], size: Box = TUBELET_SHAPE) -> np.ndarray:
    """Returns time, row and column of each tubelet, int32 [L, 3], in the order of `tubelets`.

    Counted in tubelets, not in frames and pixels.
    """
    grid = np.meshgrid(*map(np.arange, _tubelet_grid(shape, size)), indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 3).astype(np.int32)


def encode_animation(
    clip: np.ndarray, rate: float, *, scale: int = 8, image_format: str = "GIF"
) -> bytes:
    """Returns a clip as an animated image that plays for ever.

    Args:
        clip: uint8 [frames, height, width, 1 or 3].
        rate: frames/s. GIF counts hundredths of a second: 8 frames/s last 120 ms each there.
        scale: how many times larger it is shown, pixels repeated.
        image_format: "GIF" (256 colours: exact for grey), "PNG" or "WEBP" (exact).

    Raises:
        UserError: an animation of another form.
    """
    if image_format not in ("GIF", "PNG", "WEBP"):
        raise UserError(f"animated images are GIF, PNG or WEBP, not {image_format}")
    large = clip.repeat(scale, axis=1).repeat(scale, axis=2)
    images = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in large]
    buffer = io.BytesIO()
    options = {"lossless": True} if image_format == "WEBP" else {}
    images[0].save(
        buffer,
        format=image_format,
        save_all=True,
        append_images=images[1:],
        duration=round(1000 / rate),
        loop=0,
        **options,
    )
    return buffer.getvalue()


def _tubelet_grid(shape: Sequence[int], size: Box) -> Box:
    """How many tubelets fit, by time, row and column."""
    if min(size) < 1 or any(whole % part for whole, part in zip(shape, size, strict=False)):
        raise UserError(
            f"tubelets of {_times(size)} do not divide a clip of {_times(shape)} "
            "(frames x height x width)"
        )
    return shape[0] // size[0], shape[1] // size[1], shape[2] // size[2]


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[:3]))
