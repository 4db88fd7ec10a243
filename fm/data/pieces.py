"""Examples to pieces: texts to chunks of token ids, images to patches, and back."""

from collections.abc import Sequence

import numpy as np

from fm.data.tokenizer import Tokenizer
from fm.errors import UserError


def text_pieces(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> list[np.ndarray]:
    """Returns every text's chunks, one after the other; see `chunks`."""
    pieces: list[np.ndarray] = []
    for ids in tokenizer.encode(texts):
        pieces += chunks(ids, length, tokenizer)
    return pieces


def chunks(ids: np.ndarray, length: int, tokenizer: Tokenizer) -> list[np.ndarray]:
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
    rows, columns = _grid(height, width, patch)
    tiles = images.reshape(number, rows, patch, columns, patch, channels).swapaxes(2, 3)
    return tiles.reshape(number, rows * columns, patch * patch * channels)


def unpatchify(patches: np.ndarray, patch: int, height: int, width: int) -> np.ndarray:
    """Puts patches [N, L, P] back into images [N, height, width, channels], dtype kept.

    Raises:
        UserError: the patches are not those of such an image.
    """
    number, length, size = patches.shape
    rows, columns = _grid(height, width, patch)
    if length != rows * columns or size % (patch * patch):
        raise UserError(
            f"{length} patches of {size} values are not an image of {height}x{width} in patches "
            f"of {patch}x{patch}"
        )
    tiles = patches.reshape(number, rows, columns, patch, patch, size // (patch * patch))
    return tiles.swapaxes(2, 3).reshape(number, height, width, -1)


def patch_positions(height: int, width: int, patch: int) -> np.ndarray:
    """Returns the row and column of each patch, int32 [L, 2], in the order of `patchify`."""
    rows, columns = _grid(height, width, patch)
    grid = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 2).astype(np.int32)


def _grid(height: int, width: int, patch: int) -> tuple[int, int]:
    if patch < 1 or height % patch or width % patch:
        raise UserError(
            f"patch size {patch} does not divide an image of {height}x{width} (height x width)"
        )
    return height // patch, width // patch
