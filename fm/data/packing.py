"""Packs variable-length sequences into rows of fixed length.

Nothing is truncated, and little is padding. Multimodal examples are sequences of typed segments. A
text token at position p has the coordinates (p, p, p). A continuous segment that starts at p has
(p + time, p + row, p + column), and what follows it starts at one past the largest coordinate used
(M-RoPE: Wang et al. 2024, sec. 2.1).
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from fm.errors import UserError

NUM_POSITION_AXES = 3
Row = dict[str, np.ndarray]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Returns the indices of the sequences in each row, packed by best fit (Ding et al. 2024).

    Sequences are taken from the longest to the shortest; each goes into the row with the least
    room that still holds it, or into a new row. Deterministic; O(n log n) comparisons.

    Args:
        lengths: tokens in each sequence, 1 to `capacity`.
        capacity: tokens in a row.

    Returns:
        The indices of the sequences in each row; every sequence is in exactly one row.
    """
    rows: list[list[int]] = []
    # (room left, row), ascending, without full rows.
    with_room: list[tuple[int, int]] = []
    for sequence in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[sequence]
        if not 1 <= length <= capacity:
            raise ValueError(
                f"sequence {sequence} has {length} tokens; a row holds 1 to {capacity}"
            )
        best = bisect.bisect_left(with_room, (length, 0))
        if best < len(with_room):
            room, row = with_room.pop(best)
            rows[row].append(sequence)
        else:
            room, row = capacity, len(rows)
            rows.append([sequence])
        if room > length:
            bisect.insort(with_room, (room - length, row))
    return rows


class PackedRowSource:
    """Random-access Grain source of packed text rows: tokens, segments and positions.

    Each row is {"tokens", "segments", "positions"}, int32 [capacity]: segments count from 1 within
    the row, positions restart at 0 in each segment, padding is 0 in all three.

    Attributes:
        single: whether every row holds one sequence. With `with_length` set, rows then have
            `length` too, int32, the number of its tokens.
        with_length: False by default.
    """

    def __init__(self, chunks: Sequence[np.ndarray], capacity: int, *, share_rows: bool = True):
        """Packs int32 [tokens] arrays; with `share_rows=False` each gets a row of its own."""
        self._chunks, self._capacity = chunks, capacity
        self._rows = (
            pack([len(chunk) for chunk in chunks], capacity)
            if share_rows
            else [[index] for index in range(len(chunks))]
        )
        self.single = all(len(row) == 1 for row in self._rows)
        self.with_length = False

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        keys = ("tokens", "segments", "positions")
        row: Row = {key: np.zeros(self._capacity, np.int32) for key in keys}
        start = 0
        for segment, chunk in enumerate(self._rows[index], start=1):
            tokens = self._chunks[chunk]
            end = start + len(tokens)
            row["tokens"][start:end] = tokens
            row["segments"][start:end] = segment
            row["positions"][start:end] = np.arange(len(tokens))
            start = end
        if self.with_length:
            row["length"] = np.array(start, np.int32)
        return row


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """Tokens or patches of one modality, as one part of a multimodal example.

    Attributes:
        modality: "tokens", "image", "audio" or "video".
        tokens: token ids int [n], or patches [n, P], bytes or floats in 0..1.
        positions: int [n, A] of patches, on their modality's own axes.
        answer: whether the model learns to predict them.
        with_start: whether a start patch precedes the patches, as in single-modality pretraining;
            the model predicts the first patch from it. For patches only.
    """

    modality: str
    tokens: np.ndarray
    positions: np.ndarray | None = None
    answer: bool = True
    with_start: bool = False


def build_row(example: Sequence[Segment], modalities: Sequence[str]) -> Row:
    """Returns the arrays of one multimodal example, with its segments concatenated.

    Args:
        example: its segments, in order.
        modalities: of the model, `ModelConfig.modalities`.

    Returns:
        For every modality of the example its tokens or patches, zero where another modality's are;
        bytes become floats at the middle of their bin, so the start patch can be the zero vector.
        `modality` int32 [L], index into `modalities`; `positions` int32 [L, 3]; `answer` bool [L].

    Raises:
        UserError: no segment, or one of a modality that the model lacks.
    """
    if not example:
        raise UserError("an example takes at least one segment")
    placed, position, length = [], 0, 0
    for segment in example:
        if segment.modality not in modalities:
            raise UserError(f"modality {segment.modality!r} is not one of {', '.join(modalities)}")
        tokens, positions = _place(segment, position)
        placed.append((segment, slice(length, length + len(tokens)), tokens, positions))
        position, length = int(positions.max(initial=position - 1)) + 1, length + len(tokens)
    row = {
        "modality": np.zeros(length, np.int32),
        "positions": np.zeros((length, NUM_POSITION_AXES), np.int32),
        "answer": np.zeros(length, bool),
    }
    for segment, where, tokens, positions in placed:
        row["modality"][where] = modalities.index(segment.modality)
        row["positions"][where] = positions
        row["answer"][where] = segment.answer
        row["answer"][where][: segment.with_start] = False
        empty = np.zeros((length, *tokens.shape[1:]), tokens.dtype)
        row.setdefault(segment.modality, empty)[where] = tokens
    return row


def _place(segment: Segment, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a segment's tokens or patches, and their positions int32 [n, 3] from `start` on."""
    if segment.modality == "tokens":
        tokens = np.asarray(segment.tokens, np.int32)
        positions = start + np.arange(len(tokens), dtype=np.int32)
        return tokens, np.tile(positions[:, None], NUM_POSITION_AXES)
    patches, positions = segment.tokens, segment.positions
    assert positions is not None, "patches have positions"
    if patches.dtype == np.uint8:
        patches = (patches.astype(np.float32) + 0.5) / 256.0
    if segment.with_start:
        patches = np.concatenate([np.full_like(patches[:1], 0.5), patches])
        positions = np.concatenate([np.full_like(positions[:1], -1), positions])
    num_axes = positions.shape[1]
    before = NUM_POSITION_AXES - num_axes if num_axes == 2 else 0
    padding = ((0, 0), (before, NUM_POSITION_AXES - num_axes - before))
    positions = np.pad(positions, padding)
    # The start patch is at -1 on the modality's own axes, which is `start` in the sequence.
    return patches.astype(np.float32), (positions + start + segment.with_start).astype(np.int32)


class PackedMultimodalRowSource:
    """Random-access Grain source of rows into which multimodal examples are packed.

    Each row has the keys of `build_row`, of length `capacity`, with all modalities of
    `patch_dims` whether the row contains them or not, and `segments` int32: 0 for padding, 1.. for
    the examples of the row.
    """

    def __init__(
        self,
        examples: Sequence[Row],
        capacity: int,
        patch_dims: Sequence[tuple[str, int]],
        *,
        share_rows: bool = True,
    ):
        """Packs examples.

        Args:
            examples: results of `build_row`, of 1 to `capacity` tokens.
            capacity: tokens in a row.
            patch_dims: (modality, numbers in a patch); 0 for "tokens".
            share_rows: pack several examples into a row, or give each its own.
        """
        self._examples, self._capacity, self._patch_dims = examples, capacity, patch_dims
        lengths = [len(example["modality"]) for example in examples]
        longest = max(lengths, default=0)
        if longest > capacity:
            raise UserError(f"an example of {longest} tokens is longer than a row of {capacity}")
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
        for name, size in self._patch_dims:
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
