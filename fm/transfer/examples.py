"""Labelled inputs as rows the model reads: one row an example, however long."""

from __future__ import annotations

import numpy as np

from fm.data.layouts import Layout
from fm.data.pieces import chunks, patch_positions, patchify
from fm.data.tokenizer import Tokenizer

Rows = dict[str, np.ndarray]


def text_rows(tokenizer: Tokenizer, texts: list[str], length: int, windows: int) -> Rows:
    """The first `windows` chunks of each text side by side, as separate segments.

    Args:
      tokenizer: of the model.
      texts: N documents.
      length: tokens in a chunk, as in pretraining.
      windows: chunks kept; what comes after is not read.

    Returns:
      `tokens`, `segments` (0 is padding) and `positions`, int32 [N, windows * length]; shorter,
      by multiples of 16, where no text reaches the end.
    """
    shape = (len(texts), windows, length)
    rows = {key: np.zeros(shape, np.int32) for key in ("tokens", "segments", "positions")}
    rows["positions"][:] = np.arange(length)
    for n, ids in enumerate(tokenizer.encode(texts)):
        for w, chunk in enumerate(chunks(ids[: windows * length], length, tokenizer)[:windows]):
            rows["tokens"][n, w, : len(chunk)] = chunk
            rows["segments"][n, w, : len(chunk)] = w + 1
    whole = {key: value.reshape(len(texts), -1) for key, value in rows.items()}
    reached = np.max(np.nonzero(whole["segments"])[1], initial=0) + 1
    return {key: value[:, : -(-reached // 16) * 16] for key, value in whole.items()}


def image_rows(images: np.ndarray, patch: int) -> Rows:
    """Images uint8 [N, height, width, channels] as `image` uint8 [N, L, P] and where they lie."""
    positions = patch_positions(images.shape[1], images.shape[2], patch)
    return _rows("image", patchify(images, patch), positions)


def continuous_rows(examples: np.ndarray, layout: Layout) -> Rows:
    """Images, sounds or clips [N, *shape] as pieces [N, L, P] under their stream's name."""
    return _rows(layout.modality, layout.cut(examples), layout.positions())


def _rows(stream: str, pieces: np.ndarray, positions: np.ndarray) -> Rows:
    """Pieces [N, L, P] at positions [L, A] under a stream's name, one segment a row."""
    N, L = pieces.shape[:2]
    return {
        stream: pieces,
        "positions": np.broadcast_to(positions, (N, *positions.shape)),
        "segments": np.ones((N, L), np.int32),
    }


def take(rows: Rows, indices: np.ndarray) -> Rows:
    """The rows at `indices`."""
    return {key: value[indices] for key, value in rows.items()}
