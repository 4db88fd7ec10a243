"""Examples of several formats as rows: typed segments one after another, each piece in its place.

Text p lies at (p, p, p). A continuous segment that begins at p is counted from there on its own
axes, as (p + time, p + row, p + column), and what follows begins at one past the largest
coordinate used (M-RoPE: Wang et al. 2024, sec. 2.1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from fm.data.packing import pack
from fm.errors import UserError

AXES = 3
Row = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """Pieces of one stream, as a part of an example.

    Attributes:
      stream: "tokens", "image", "audio" or "video".
      pieces: tokens int [n], or [n, P] bytes or floats in 0..1.
      positions: int [n, A] of continuous pieces, on their format's own axes.
      answer: whether they are to be predicted.
      start: whether a start piece leads them, as in pretraining on one format: a model goes on
        from it to the first of them. Of continuous pieces only.
    """

    stream: str
    pieces: np.ndarray
    positions: np.ndarray | None = None
    answer: bool = True
    start: bool = False


def lay(example: Sequence[Segment], streams: Sequence[str]) -> Row:
    """One example as one run of pieces.

    Args:
      example: its segments, in order.
      streams: of the model, `ModelConfig.streams`.

    Returns:
      For every stream in the example its name: the pieces, zero where another stream's are; bytes
      become floats in the middle of their bin, so that a start piece can be the zero vector.
      `modality` int32 [L], index into `streams`; `positions` int32 [L, 3]; `answer` bool [L].

    Raises:
      UserError: a stream the model lacks, or no segment.
    """
    if not example:
        raise UserError("an example takes at least one segment")
    laid, at, length = [], 0, 0
    for each in example:
        if each.stream not in streams:
            raise UserError(f"stream {each.stream!r} is not one of {', '.join(streams)}")
        pieces, places = _placed(each, at)
        laid.append((each, slice(length, length + len(pieces)), pieces, places))
        at, length = int(places.max(initial=at - 1)) + 1, length + len(pieces)
    row = {
        "modality": np.zeros(length, np.int32),
        "positions": np.zeros((length, AXES), np.int32),
        "answer": np.zeros(length, bool),
    }
    for each, here, pieces, places in laid:
        row["modality"][here] = streams.index(each.stream)
        row["positions"][here] = places
        row["answer"][here] = each.answer
        row["answer"][here][: each.start] = False
        whole = np.zeros((length, *pieces.shape[1:]), pieces.dtype)
        row.setdefault(each.stream, whole)[here] = pieces
    return row


def _placed(segment: Segment, at: int) -> tuple[np.ndarray, np.ndarray]:
    """A segment's pieces and their positions int32 [n, 3] where it begins at `at`."""
    if segment.stream == "tokens":
        pieces = np.asarray(segment.pieces, np.int32)
        return pieces, np.tile(at + np.arange(len(pieces), dtype=np.int32)[:, None], AXES)
    pieces, places = segment.pieces, segment.positions
    assert places is not None, "continuous pieces have positions"
    if pieces.dtype == np.uint8:
        pieces = (pieces.astype(np.float32) + 0.5) / 256.0
    if segment.start:
        pieces = np.concatenate([np.full_like(pieces[:1], 0.5), pieces])
        places = np.concatenate([np.full_like(places[:1], -1), places])
    own = places.shape[1]
    before = AXES - own if own == 2 else 0
    places = np.pad(places, ((0, 0), (before, AXES - own - before)))
    # The start piece is one before the first on the format's own axes, and not before the segment.
    return pieces.astype(np.float32), (places + at + segment.start).astype(np.int32)


class MixedRows:
    """Random access to packed rows of examples, as a Grain source of dicts.

    Each is what `lay` makes, of `capacity` pieces, with every stream asked for whether the row has
    any of it or not, and `segments` int32: 0 for padding, 1.. for the examples of the row.
    """

    def __init__(
        self,
        examples: Sequence[Row],
        capacity: int,
        widths: Sequence[tuple[str, int]],
        *,
        share_rows: bool = True,
    ):
        """Packs.

        Args:
          examples: of `lay`, of 1 to `capacity` pieces.
          capacity: pieces in a row.
          widths: streams of the rows, with the numbers in a piece; 0 for tokens.
          share_rows: several examples to a row where they fit, or one.
        """
        self._examples, self._capacity, self._widths = examples, capacity, widths
        lengths = [len(each["modality"]) for each in examples]
        longest = max(lengths, default=0)
        if longest > capacity:
            raise UserError(f"an example of {longest} pieces is longer than a row of {capacity}")
        self._rows = pack(lengths, capacity) if share_rows else [[n] for n in range(len(examples))]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        L = self._capacity
        row = {
            "modality": np.zeros(L, np.int32),
            "positions": np.zeros((L, AXES), np.int32),
            "answer": np.zeros(L, bool),
            "segments": np.zeros(L, np.int32),
        }
        for name, size in self._widths:
            row[name] = np.zeros((L, size), np.float32) if size else np.zeros(L, np.int32)
        start = 0
        for segment, n in enumerate(self._rows[index], start=1):
            example = self._examples[n]
            end = start + len(example["modality"])
            for key, value in example.items():
                row[key][start:end] = value
            row["segments"][start:end] = segment
            start = end
        return row
