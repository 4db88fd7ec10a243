"""Pieces to batches: seeded, mixed, endless, and resumable to the bit, through Grain.

Grain's own packer costs 4.7 ms for 32 rows of 128 tokens, because every piece passes its Python
layers. So rows are packed once, up front (`fm.data.packing`), and Grain shuffles, repeats, mixes
and batches whole rows: the state is one number, resuming is immediate, and no row ever holds
pieces of two epochs. Which pieces share a row does not change from epoch to epoch; segments keep
them from seeing each other anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from fm.data.packing import PackedMultimodalRows, PackedRows
from fm.errors import UserError

Batch = dict[str, np.ndarray]


class Batches(Iterator[Batch]):
    """An iterator over batches whose place can be saved and set.

    The first use of a seed and the same sources gives the same batches, on any machine.
    """

    def __init__(self, rows: grain.MapDataset, batch_size: int, *, rest: bool):
        """Batches of rows; with `rest` the last of them may hold fewer."""
        self._rows, self._batch_size, self._rest = rows, batch_size, rest
        # An endless stream has no remainder; rounding its length up overflows at batch size 1.
        batched = rows.batch(batch_size, drop_remainder=not rest)
        # Without reading threads: rows are in memory, threads only cost.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        self._iterator = iter(batched.to_iter_dataset(options))

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """Returns the place after the batches taken so far, JSON-able."""
        return self._iterator.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a place that `get_state` returned, of batches over the same sources."""
        self._iterator.set_state(state)

    def shard(self, index: int, count: int) -> "Batches":
        """The same batches, of each the `index`-th of `count` equal blocks of rows.

        Only these are read. A place counts batches, so it is the same whatever the part.

        Raises:
            UserError: `count` does not divide the rows, or batches are not all of one size.
        """
        if count == 1:
            return self
        if self._rest or self._batch_size % count:
            raise UserError(
                f"{count} processes take equal parts of a batch, not of batch_size="
                f"{self._batch_size}{' with a shorter last one' if self._rest else ''}"
            )
        own = self._batch_size // count
        return Batches(_Block(self._rows, self._batch_size, index * own, own), own, rest=False)


class _Block(grain.MapDataset):
    """Of every `batch_size` rows those from `start`, `own` of them."""

    def __init__(self, rows: grain.MapDataset, batch_size: int, start: int, own: int):
        super().__init__(rows)
        self._batch_size, self._start, self._own = batch_size, start, own

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * self._own

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._own)
        return self._parent[batch * self._batch_size + self._start + row]


def text_batches(
    sources: Sequence[Sequence[np.ndarray]],
    *,
    batch_size: int,
    length: int,
    seed: int,
    weights: Sequence[float] | None = None,
    epochs: int | None = None,
    share_rows: bool = True,
) -> Batches:
    """Packs and batches text.

    Args:
        sources: for each source its pieces, int32 arrays of 1 to `length` tokens.
        batch_size: rows per batch, B.
        length: tokens per row, L.
        seed: of shuffling; a source's order differs from epoch to epoch.
        weights: share of rows from each source, in any unit; equal unless given.
        epochs: passes over each source; endless unless given, with one source only. The last
            batch may then hold fewer rows.
        share_rows: several pieces to a row where they fit, or one piece a row (the bag objective).

    Returns:
        Batches of int32 [B, L]: "tokens"; "segments", 0 for padding, 1.. for the pieces of a row;
        "positions", from 0 within each segment.

    Raises:
        UserError: a source is empty, or weights do not fit the sources.
    """
    rows = [PackedRows(pieces, length, share_rows=share_rows) for pieces in sources]
    return _batches(rows, batch_size, seed, weights, epochs)


def patch_batches(
    sources: Sequence[np.ndarray],
    positions: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    weights: Sequence[float] | None = None,
    epochs: int | None = None,
    modality: str,
) -> Batches:
    """Batches pieces of images, sounds or clips.

    Args:
        sources: for each source uint8 or float32 [N, L, P], same L and P, of
            `fm.data.patches.patchify` or its like for another format.
        positions: int32 [L, A] of `fm.data.patches.patch_positions` or its like.
        batch_size: examples per batch, B.
        seed: see `text_batches`.
        weights: see `text_batches`.
        epochs: see `text_batches`.
        modality: of the model, for these pieces.

    Returns:
        Batches of the pieces [B, L, P] under the stream's name, "segments" int32 [B, L] of ones,
        "positions" int32 [B, L, A].

    Raises:
        UserError: a source is empty, sizes differ, or weights do not fit the sources.
    """
    sizes = sorted({source.shape[1:] for source in sources})
    if len(sizes) > 1 or any(size[0] != len(positions) for size in sizes):
        raise UserError(
            f"sources hold (pieces, values) {', '.join(map(str, sizes))} per example beside "
            f"{len(positions)} positions; all must agree"
        )
    return _batches(
        [_PatchRows(modality, each, positions) for each in sources],
        batch_size,
        seed,
        weights,
        epochs,
    )


def multimodal_batches(
    sources: Sequence[PackedMultimodalRows],
    *,
    batch_size: int,
    seed: int,
    weights: Sequence[float] | None = None,
    epochs: int | None = None,
) -> Batches:
    """Batches rows of several formats, all sources of the same length and streams.

    Args:
        sources: for each source its rows.
        batch_size: rows per batch, B.
        seed: see `text_batches`.
        weights: see `text_batches`.
        epochs: see `text_batches`.

    Returns:
        Batches of what `MixedRows` holds, with a leading B.

    Raises:
        UserError: a source is empty, or weights do not fit the sources.
    """
    return _batches(sources, batch_size, seed, weights, epochs)


class _PatchRows:
    """Random access to examples as rows of one segment, as a Grain source of dicts."""

    def __init__(self, stream: str, pieces: np.ndarray, positions: np.ndarray):
        self._stream = stream
        self._pieces = pieces
        self._positions = positions.astype(np.int32)
        self._segments = np.ones(len(positions), np.int32)

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, index: int) -> Batch:
        return {
            self._stream: np.asarray(self._pieces[index]),
            "segments": self._segments,
            "positions": self._positions,
        }


def _batches(
    sources: Sequence[PackedRows | PackedMultimodalRows | _PatchRows],
    batch_size: int,
    seed: int,
    weights: Sequence[float] | None,
    epochs: int | None,
) -> Batches:
    if not sources or any(not len(source) for source in sources):
        raise UserError(f"a source of pretraining data is empty: {[len(each) for each in sources]}")
    if epochs is not None and len(sources) > 1:
        raise UserError("a number of epochs is for one source; a mixture is endless")
    shares = list(weights) if weights is not None else [1.0] * len(sources)
    if len(shares) != len(sources) or min(shares) <= 0:
        raise UserError(f"mixture weights {shares} do not fit {len(sources)} sources; all above 0")
    shuffled = [
        # Each source its own seed, or two of one length would be walked in step.
        grain.MapDataset.source(source).seed(seed + 7919 * index).shuffle().repeat(epochs)
        for index, source in enumerate(sources)
    ]
    mixed = grain.MapDataset.mix(shuffled, shares) if len(shuffled) > 1 else shuffled[0]
    return Batches(mixed, batch_size, rest=epochs is not None)


class GroupedBatches(Iterator[dict[str, Batch]]):
    """One batch of every group at a time; the place is that of all of them."""

    def __init__(self, groups: Mapping[str, Batches]):
        self._groups = dict(groups)

    def __next__(self) -> dict[str, Batch]:
        return {name: next(batches) for name, batches in self._groups.items()}

    def get_state(self) -> dict[str, Any]:
        """Returns the place after the batches taken so far, JSON-able."""
        return {name: batches.get_state() for name, batches in self._groups.items()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a place that `get_state` returned, of the same groups."""
        for name, batches in self._groups.items():
            batches.set_state(state[name])

    def shard(self, index: int, count: int) -> GroupedBatches:
        """The same batches, of each group the `index`-th of `count` equal blocks of rows."""
        return GroupedBatches(
            {name: each.shard(index, count) for name, each in self._groups.items()}
        )


def batch_size_per_group(weights: Mapping[str, float], batch_size: int) -> dict[str, int]:
    """Rows of a batch for each group, by weight, one at least; rounded so that they add up.

    Raises:
      UserError: a weight that is not above 0, or fewer rows than groups.
    """
    if not weights or min(weights.values()) <= 0:
        raise UserError(f"mixture weights {dict(weights)} must be above 0, one or more")
    if batch_size < len(weights):
        raise UserError(f"batch_size={batch_size} is less than a row for each of {len(weights)}")
    exact = {name: batch_size * each / sum(weights.values()) for name, each in weights.items()}
    rows = {name: max(1, int(each)) for name, each in exact.items()}
    # What rounding left over or took too much, where it is felt least.
    while (left := batch_size - sum(rows.values())) != 0:
        step = 1 if left > 0 else -1
        open_ = [name for name in rows if rows[name] + step >= 1]
        name = max(open_, key=lambda name: step * (exact[name] - rows[name]))
        rows[name] += step
    return rows
