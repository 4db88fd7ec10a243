"""Files of packed rows of tokens: written once, read at random.

A file is an ArrayRecord. A record holds the rows of one block (about 8 KB of tokens), so that its
index, which is kept in memory, has one entry for many rows:

    int32    number of rows, R
    int32    [R] segments in each row
    int32    lengths of all segments, row by row
    uint16   (int32 for vocabularies beyond 65,536) tokens of all rows, without padding

Segments, positions and padding follow from the lengths.
"""

from __future__ import annotations

import bisect
import collections
import pathlib
from collections.abc import Sequence

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from fm.data.packing import Row, pack
from fm.errors import UserError

_BLOCK_TOKENS = 4096
# Each record is compressed by itself at most; tokens hardly shrink, and rows are read at random.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_READER_BUFFER = 2**14
# A process may open 1,024 files on many systems.
_MAX_OPEN = 128
_KEYS = ("tokens", "segments", "positions")
_ADVICE = "delete its folder and run again"


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the type that tokens are stored as."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<i4")


def rows_per_block(capacity: int) -> int:
    """Returns the number of rows of `capacity` tokens in a record."""
    return max(1, _BLOCK_TOKENS // capacity)


class RowWriter:
    """Writes a file of rows; its last block may hold fewer.

    Attributes:
        num_rows: written so far.
        single: whether each of them holds one chunk.
    """

    def __init__(self, path: pathlib.Path, capacity: int, dtype: np.dtype):
        """Creates the file, for rows of `capacity` tokens."""
        self.num_rows, self.single = 0, True
        self._capacity, self._dtype = capacity, dtype
        self._block: list[list[np.ndarray]] = []
        self._writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)

    def write(self, chunks: Sequence[np.ndarray], *, share_rows: bool) -> None:
        """Packs chunks of 1 to `capacity` tokens into rows by best fit, or one a row."""
        rows = (
            pack([len(chunk) for chunk in chunks], self._capacity)
            if share_rows
            else [[index] for index in range(len(chunks))]
        )
        for row in rows:
            self._block.append([chunks[index] for index in row])
            if len(self._block) == rows_per_block(self._capacity):
                self._flush()

    def close(self) -> None:
        """Writes what is left."""
        if self._block:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        block, self._block = self._block, []
        lengths = [len(chunk) for row in block for chunk in row]
        header = np.array([len(block), *map(len, block), *lengths], "<i4")
        tokens = np.concatenate([chunk for row in block for chunk in row]).astype(self._dtype)
        self._writer.write(header.tobytes() + tokens.tobytes())
        self.num_rows += len(block)
        self.single &= all(len(row) == 1 for row in block)


class StoredRowSource:
    """Random-access Grain source of the rows of several files, as those of `PackedRowSource`.

    Only the index of blocks is in memory. Rows are numbered through all files in order.
    """

    def __init__(
        self,
        paths: Sequence[pathlib.Path],
        num_rows: Sequence[int],
        capacity: int,
        dtype: np.dtype,
        *,
        with_length: bool = False,
    ):
        """Opens nothing yet.

        Args:
            paths: of the files.
            num_rows: of each file.
            capacity: tokens in a row.
            dtype: of the stored tokens.
            with_length: whether rows have `length`, see `PackedRowSource`.
        """
        self._with_length = with_length
        self._paths, self._capacity, self._dtype = list(paths), capacity, dtype
        self._ends = np.cumsum(num_rows).tolist()
        self._readers: collections.OrderedDict[int, array_record_module.ArrayRecordReader] = (
            collections.OrderedDict()
        )

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __repr__(self) -> str:
        return f"StoredRowSource({len(self)} rows in {len(self._paths)} files)"

    def __getitem__(self, index: int) -> Row:
        file = bisect.bisect_right(self._ends, index)
        within = index - (self._ends[file - 1] if file else 0)
        block, row = divmod(int(within), rows_per_block(self._capacity))
        return self._row(self._read(file, block), row, self._paths[file])

    def _read(self, file: int, block: int) -> bytes:
        reader = self._readers.get(file)
        path = self._paths[file]
        try:
            if reader is None:
                if not path.exists():
                    raise FileNotFoundError(2, "No such file or directory", str(path))
                if len(self._readers) >= _MAX_OPEN:
                    self._readers.popitem(last=False)[1].close()
                reader = self._readers[file] = array_record_module.ArrayRecordReader(
                    str(path), _READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER
                )
            self._readers.move_to_end(file)
            return reader.read([block])[0]
        except (ValueError, IndexError, RuntimeError) as error:
            raise UserError(
                f"{path} is damaged ({error}); delete its folder and run again"
            ) from error

    def _row(self, record: bytes, row: int, path: pathlib.Path) -> Row:
        header = np.frombuffer(record, "<i4", len(record) // 4)
        count = int(header[0])
        segments = header[1 : 1 + count]
        total = int(segments.sum())
        lengths = header[1 + count : 1 + count + total]
        tokens = np.frombuffer(record, self._dtype, offset=4 * (1 + count + total))
        if row >= count or len(tokens) != int(lengths.sum()):
            raise UserError(f"{path} is damaged (a block of rows); {_ADVICE}")
        first = int(segments[:row].sum())
        own = lengths[first : first + segments[row]]
        start, end = int(lengths[:first].sum()), int(own.sum())
        found = {key: np.zeros(self._capacity, np.int32) for key in _KEYS}
        found["tokens"][:end] = tokens[start : start + end]
        found["segments"][:end] = np.repeat(np.arange(1, len(own) + 1), own)
        found["positions"][:end] = np.arange(end) - np.repeat(np.cumsum(own) - own, own)
        if self._with_length:
            found["length"] = np.asarray(end, np.int32)
        return found
