"""The GGUF container: a file's metadata and tensors, every length checked before it is believed.

Layout (the `ggml` repository, docs/gguf.md): magic, version, counts, key-value pairs, tensor
descriptions, then the tensors' bytes at aligned offsets. The `gguf` package has a reader too; on a
malformed file it runs past the end or loops over a made-up count, and on a good one it makes an
object per token. Only its table of types and its dequantisation are used here.
"""

import dataclasses
import math
import pathlib
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import gguf
import numpy as np

from fm.errors import UserError

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
# The fewest bytes a thing can take: what bounds a count read from the file.
_LEAST_PAIR = 8 + 4 + 1
_LEAST_TENSOR = 8 + 4 + 8 + 4 + 8
_MOST_AXES = 4


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: its shape, outermost axis first, its type, and its bytes."""

    shape: tuple[int, ...]
    quant_type: gguf.GGMLQuantizationType
    start: int
    size: int


class GgufFile:
    """An opened description of a GGUF file; tensors are read one at a time, when asked for.

    Attributes:
      path: the file.
      metadata: key to int, float, bool, str, list of str, or a numpy array of numbers.
      tensor_infos: tensor name to where it lies.
    """

    def __init__(self, path: str | pathlib.Path):
        """Reads all but the tensors.

        Raises:
            UserError: the file cannot be read, is no GGUF of version 2 or 3, is cut short, or
                states sizes that it does not hold.
        """
        self.path = pathlib.Path(path)
        self.metadata: dict[str, Any] = {}
        self.tensor_infos: dict[str, TensorInfo] = {}
        try:
            with self.path.open("rb") as file:
                self._describe(_Cursor(file, self.path.stat().st_size))
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error
        except _Malformed as error:
            raise UserError(f"{self.path} is not a readable GGUF file: {error}") from error

    def read_tensor(self, name: str) -> np.ndarray:
        """Returns one tensor, dequantised to float32, outermost axis first.

        Raises:
            UserError: it is not in the file, or of a type that cannot be dequantised.
        """
        if name not in self.tensor_infos:
            raise UserError(f"{self.path} has no tensor {name!r}")
        entry = self.tensor_infos[name]
        try:
            with self.path.open("rb") as file:
                file.seek(entry.start)
                stored = np.fromfile(file, np.uint8, entry.size)
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error
        if stored.size != entry.size:
            raise UserError(f"{self.path} was cut short while it was read, at tensor {name!r}")
        # The library takes 16 rows at a time: with 64 blocks a row it needs half the time.
        width = gguf.GGML_QUANT_SIZES[entry.quant_type][1]
        wide = math.gcd(entry.size // width, 64) * width
        try:
            values = gguf.dequantize(stored.reshape(-1, wide), entry.quant_type)
        except NotImplementedError as error:
            raise UserError(
                f"{self.path}: tensor {name!r} is stored as {entry.quant_type.name}, "
                "which cannot be turned into float32"
            ) from error
        return np.asarray(values, np.float32).reshape(entry.shape)

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields every tensor's name and float32 values, in the order of the file."""
        for name in self.tensor_infos:
            yield name, self.read_tensor(name)

    def _describe(self, cursor: "_Cursor") -> None:
        if cursor.bytes(4) != b"GGUF":
            raise _Malformed("it does not begin with GGUF")
        version = cursor.number("<u4")
        if version not in (2, 3):
            swapped = int.from_bytes(struct.pack("<I", version), "big") in (2, 3)
            order = "big-endian numbers" if swapped else f"version {version}"
            raise _Malformed(f"it has {order}; little-endian versions 2 and 3 are read")
        tensors = cursor.count(_LEAST_TENSOR)
        pairs = cursor.count(_LEAST_PAIR)
        for _ in range(pairs):
            key = cursor.string()
            if key in self.metadata:
                raise _Malformed(f"key {key!r} occurs twice")
            self.metadata[key] = cursor.value()
        found = [cursor.tensor() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise _Malformed(f"general.alignment is {alignment!r}, not a power of two")
        data = -(-cursor.place // alignment) * alignment
        for name, shape, kind, offset in found:
            if name in self.tensor_infos:
                raise _Malformed(f"tensor {name!r} occurs twice")
            block, width = gguf.GGML_QUANT_SIZES[kind]
            if shape[-1] % block:
                raise _Malformed(f"tensor {name!r} has rows of {shape[-1]}, no whole {kind.name}")
            size = math.prod(shape) // block * width
            if data + offset + size > cursor.size:
                raise _Malformed(f"it ends before tensor {name!r} does")
            self.tensor_infos[name] = TensorInfo(shape, kind, data + offset, size)
        # Overlapping tensors would let a small file ask for any amount of memory.
        if sum(entry.size for entry in self.tensor_infos.values()) > cursor.size:
            raise _Malformed("its tensors overlap")


class _Malformed(Exception):
    """What is wrong with the file, as the end of a sentence."""


class _Cursor:
    """Reads forward through a file of known size, never past its end."""

    def __init__(self, file: BinaryIO, size: int):
        self._file = file
        self.size = size
        self.place = 0

    def bytes(self, size: int) -> bytes:
        if size > self.size - self.place:
            raise _Malformed(f"{size} bytes are wanted at byte {self.place} of {self.size}")
        read = self._file.read(size)
        if len(read) != size:
            raise _Malformed("it became shorter while it was read")
        self.place += size
        return read

    def number(self, dtype: str) -> Any:
        """One scalar as a plain int, float or bool."""
        return self.numbers(dtype, 1)[0].item()

    def numbers(self, dtype: str, count: int) -> np.ndarray:
        return np.frombuffer(self.bytes(np.dtype(dtype).itemsize * count), dtype)

    def count(self, least: int) -> int:
        """A count of things of at least `least` bytes each."""
        count = self.number("<u8")
        if count * least > self.size - self.place:
            raise _Malformed(f"it claims {count} items at byte {self.place} of {self.size}")
        return count

    def string(self) -> str:
        (length,) = struct.unpack("<Q", self.bytes(8))
        try:
            return self.bytes(length).decode()
        except UnicodeDecodeError as error:
            raise _Malformed(f"the text before byte {self.place} is not UTF-8") from error

    def value(self) -> Any:
        kind = self.number("<u4")
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise _Malformed(f"a value at byte {self.place} has the unknown type {kind}")
        inner = self.number("<u4")
        if inner == _STRING:
            return [self.string() for _ in range(self.count(8))]
        if inner not in _SCALARS:
            raise _Malformed(f"an array at byte {self.place} holds the unknown type {inner}")
        dtype = _SCALARS[inner]
        return self.numbers(dtype, self.count(np.dtype(dtype).itemsize))

    def tensor(self) -> tuple[str, tuple[int, ...], gguf.GGMLQuantizationType, int]:
        """Name, shape with the outermost axis first (the file has it last), type, offset."""
        name = self.string()
        axes = self.number("<u4")
        if not 1 <= axes <= _MOST_AXES:
            raise _Malformed(f"tensor {name!r} has {axes} axes, not 1 to {_MOST_AXES}")
        shape = tuple(int(length) for length in reversed(self.numbers("<u8", axes)))
        if 0 in shape:
            raise _Malformed(f"tensor {name!r} is empty")
        kind = self.number("<u4")
        offset = self.number("<u8")
        try:
            return name, shape, gguf.GGMLQuantizationType(kind), offset
        except ValueError as error:
            raise _Malformed(f"tensor {name!r} has the unknown type {kind}") from error
