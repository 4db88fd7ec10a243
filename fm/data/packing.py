"""Packing variable-length pieces into rows of one length, nothing cut, little padded."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from fm.errors import UserError


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Assigns pieces to rows by best-fit decreasing (Ding et al. 2024, Fewer Truncations).

    The longest piece goes first, each into the row with the least room that still holds it, or
    into a new row. Deterministic; O(n log n) comparisons.

    Args:
        lengths: tokens in each piece, 1 to `capacity`.
        capacity: tokens a row holds.

    Returns:
        For every row the indices of its pieces; every piece is in exactly one row.
    """
    rows: list[list[int]] = []
    # (room left, row), ascending; full rows are not in it.
    with_room: list[tuple[int, int]] = []
    for piece in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[piece]
        if not 1 <= length <= capacity:
            raise ValueError(f"piece {piece} has {length} tokens; a row holds 1 to {capacity}")
        best = bisect.bisect_left(with_room, (length, 0))
        if best < len(with_room):
            room, row = with_room.pop(best)
            rows[row].append(piece)
        else:
            room, row = capacity, len(rows)
            rows.append([piece])
        if room > length:
            bisect.insort(with_room, (room - length, row))
    return rows


class PackedRows:
    """Random access to packed rows, as a Grain source of dicts.

    Each is {"tokens", "segments", "positions"}, int32 [capacity]: segments count from 1 within
    the row, positions restart at 0 with each, padding is 0 in all three.
    """

    def __init__(self, pieces: Sequence[np.ndarray], capacity: int, *, share_rows: bool = True):
        self._pieces, self._capacity = pieces, capacity
        self._rows = (
            pack([len(piece) for piece in pieces], capacity)
            if share_rows
            else [[index] for index in range(len(pieces))]
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = {
            key: np.zeros(self._capacity, np.int32) for key in ("tokens", "segments", "positions")
        }
        start = 0
        for segment, piece in enumerate(self._rows[index], start=1):
            tokens = self._pieces[piece]
            end = start + len(tokens)
            row["tokens"][start:end] = tokens
            row["segments"][start:end] = segment
            row["positions"][start:end] = np.arange(len(tokens))
            start = end
        return row


NUM_POSITION_AXES = 3
Row = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """Pieces of one stream, as a part of an example.

    Attributes:
      modality: "tokens", "image", "audio" or "video".
      tokens: tokens int [n], or [n, P] bytes or floats in 0..1.
      positions: int [n, A] of continuous pieces, on their format's own axes.
      answer: whether they are to be predicted.
      with_start: whether a start piece leads them, as in pretraining on one format: a model goes on
        from it to the first of them. Of continuous pieces only.
    """

    modality: str
    tokens: np.ndarray
    positions: np.ndarray | None = None
    answer: bool = True
    with_start: bool = False


def build_row(example: Sequence[Segment], modalities: Sequence[str]) -> Row:
    """One example as one run of pieces.

    Args:
      example: its segments, in order.
      modalities: of the model, `ModelConfig.streams`.

    Returns:
      For every stream in the example its name: the pieces, zero where another stream's are; bytes
      become floats in the middle of their bin, so that a start piece can be the zero vector.
      `modality` int32 [L], index into `modalities`; `positions` int32 [L, 3]; `answer` bool [L].

    Raises:
      UserError: a stream the model lacks, or no segment.
    """
    if not example:
        raise UserError("an example takes at least one segment")
    laid, at, length = [], 0, 0
    for each in example:
        if each.modality not in modalities:
            raise UserError(f"stream {each.modality!r} is not one of {', '.join(modalities)}")
        pieces, places = _placed(each, at)
        laid.append((each, slice(length, length + len(pieces)), pieces, places))
        at, length = int(places.max(initial=at - 1)) + 1, length + len(pieces)
    row = {
        "modality": np.zeros(length, np.int32),
        "positions": np.zeros((length, NUM_POSITION_AXES), np.int32),
        "answer": np.zeros(length, bool),
    }
    for each, here, pieces, places in laid:
        row["modality"][here] = modalities.index(each.stream)
        row["positions"][here] = places
        row["answer"][here] = each.answer
        row["answer"][here][: each.start] = False
        whole = np.zeros((length, *pieces.shape[1:]), pieces.dtype)
        row.setdefault(each.stream, whole)[here] = pieces
    return row


def _placed(segment: Segment, at: int) -> tuple[np.ndarray, np.ndarray]:
    """A segment's pieces and their positions int32 [n, 3] where it begins at `at`."""
    if segment.modality == "tokens":
        pieces = np.asarray(segment.tokens, np.int32)
        return pieces, np.tile(
            at + np.arange(len(pieces), dtype=np.int32)[:, None], NUM_POSITION_AXES
        )
    pieces, places = segment.tokens, segment.positions
    assert places is not None, "continuous pieces have positions"
    if pieces.dtype == np.uint8:
        pieces = (pieces.astype(np.float32) + 0.5) / 256.0
    if segment.with_start:
        pieces = np.concatenate([np.full_like(pieces[:1], 0.5), pieces])
        places = np.concatenate([np.full_like(places[:1], -1), places])
    own = places.shape[1]
    before = NUM_POSITION_AXES - own if own == 2 else 0
    places = np.pad(places, ((0, 0), (before, NUM_POSITION_AXES - own - before)))
    # The start piece is one before the first on the format's own axes, and not before the segment.
    return pieces.astype(np.float32), (places + at + segment.with_start).astype(np.int32)


class PackedMultimodalRows:
    """Random access to packed rows of examples, as a Grain source of dicts.

    Each is what `lay` makes, of `capacity` pieces, with every stream asked for whether the row has
    any of it or not, and `segments` int32: 0 for padding, 1.. for the examples of the row.
    """

    def __init__(
        self,
        examples: Sequence[Row],
        capacity: int,
        patch_dims: Sequence[tuple[str, int]],
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
        self._examples, self._capacity, self._widths = examples, capacity, patch_dims
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
            "positions": np.zeros((L, NUM_POSITION_AXES), np.int32),
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
