"""Packing variable-length pieces into rows of one length, nothing cut, little padded."""

import bisect
from collections.abc import Sequence

import numpy as np


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
