"""The GGUF container: a file's metadata and tensors; no length in it is trusted unchecked.

Layout (the `ggml` repository, docs/gguf.md): magic, version, counts, key-value pairs, tensor
descriptions, then the tensors' bytes at aligned offsets. The `gguf` package has a reader too; on a
malformed file it runs past the end or loops over a made-up count, and on a good one it makes an
object per token. Only its table of types and its dequantization are used here.
"""

import dataclasses
import math
import pathlib
import struct
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
# Fewest bytes of a pair and of a tensor description; they bound a count read from the file.
_MIN_PAIR_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8
_MAX_AXES = 4
# llama.cpp numbers the parts of a split file with five digits.
_MAX_PARTS = 99_999


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a GGUF tensor is: file, shape (outermost axis first), quantization, offset, bytes."""

    path: pathlib.Path
    shape: tuple[int, ...]
    quant_type: gguf.GGMLQuantizationType
    start: int
    size: int


class GgufFile:
    """An opened GGUF file: its metadata and tensor locations; tensors are read on demand.

    Of a model split into parts any one is opened: the others are found beside it by their names,
    NAME-00001-of-00003.gguf and so on, and the first has the metadata.

    Attributes:
      path: the file.
      metadata: key to int, float, bool, str, list of str, or a numpy array of numbers.
      tensor_infos: places of the tensors, by name.
    """

    def __init__(self, path: str | pathlib.Path):
        """Reads everything but the tensors.

        Raises:
            UserError: the file cannot be read, is no GGUF of version 2 or 3, is cut short, claims
                sizes that it does not have, or is a part of a model of which another is missing.
        """
        self.path = pathlib.Path(path)
        self.metadata, self.tensor_infos = _read_header(self.path)
        if self.metadata.get("split.count", 1) != 1:
            self._read_parts()

    def read_tensor(self, name: str) -> np.ndarray:
        """Returns one tensor, dequantized to float32, outermost axis first.

        Raises:
            UserError: it is not in the file, or of a type that cannot be dequantized.
        """
        if name not in self.tensor_infos:
            raise UserError(f"{self.path} has no tensor {name!r}")
        info = self.tensor_infos[name]
        try:
            with info.path.open("rb") as file:
                file.seek(info.start)
                stored = np.fromfile(file, np.uint8, info.size)
        except OSError as error:
            raise UserError(f"cannot read {info.path}: {error.strerror}") from error
        if stored.size != info.size:
            raise UserError(f"{info.path} was cut short while it was read, at tensor {name!r}")
        # The library takes 16 rows at a time: with 64 blocks a row it needs half the time.
        width = gguf.GGML_QUANT_SIZES[info.quant_type][1]
        wide = math.gcd(info.size // width, 64) * width
        try:
            # Scales that are not finite are told by whoever checks the values.
            with np.errstate(all="ignore"):
                values = gguf.dequantize(stored.reshape(-1, wide), info.quant_type)
        except NotImplementedError as error:
            raise UserError(
                f"{info.path}: tensor {name!r} is stored as {info.quant_type.name}, "
                "which cannot be turned into float32"
            ) from error
        return np.asarray(values, np.float32).reshape(info.shape)

    def _read_parts(self) -> None:
        """Replaces metadata and tensor locations by those of all parts together."""
        number, count = (self.metadata.get(f"split.{key}") for key in ("no", "count"))
        if type(count) is not int or type(number) is not int or not 0 <= number < count:
            raise UserError(f"{self.path}: split.no={number!r} of split.count={count!r} is no part")
        part = f"{self.path} is part {number + 1} of {count} of a model"
        ending = f"-{number + 1:05d}-of-{count:05d}.gguf"
        if not self.path.name.endswith(ending) or count > _MAX_PARTS:
            raise UserError(
                f"{part}; the others are looked for by name, and its own must end in {ending}"
            )
        stem = self.path.name.removesuffix(ending)
        paths = [
            self.path.with_name(f"{stem}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)
        ]
        if missing := [path.name for path in paths if not path.is_file()]:
            more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
            raise UserError(f"{part}; missing beside it: {', '.join(missing[:4])}{more}")
        headers = [_read_header(path) for path in paths]
        infos: dict[str, TensorInfo] = {}
        for n, (path, (metadata, own)) in enumerate(zip(paths, headers, strict=True)):
            if (metadata.get("split.no"), metadata.get("split.count")) != (n, count):
                raise UserError(f"{path} is not what its name says, part {n + 1} of {count}")
            if twice := own.keys() & infos.keys():
                raise UserError(f"{path}: tensor {min(twice)!r} is in another part too")
            infos |= own
        self.metadata, self.tensor_infos = headers[0][0], infos
        total = self.metadata.get("split.tensors.count", len(infos))
        if total != len(infos):
            raise UserError(f"{part}; all parts hold {len(infos)} tensors together, not {total}")


def _read_header(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """Returns the metadata and the tensor locations of one file."""
    try:
        with path.open("rb") as file:
            return _parse_header(path, _Cursor(file, path.stat().st_size))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except _Malformed as error:
        raise UserError(f"{path} is not a readable GGUF file: {error}") from error


def _parse_header(
    path: pathlib.Path, cursor: "_Cursor"
) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    if cursor.bytes(4) != b"GGUF":
        raise _Malformed("it does not begin with GGUF")
    version = cursor.number("<u4")
    if version not in (2, 3):
        swapped = int.from_bytes(struct.pack("<I", version), "big") in (2, 3)
        order = "big-endian numbers" if swapped else f"version {version}"
        raise _Malformed(f"it has {order}; little-endian versions 2 and 3 are read")
    tensors = cursor.count(_MIN_TENSOR_BYTES)
    pairs = cursor.count(_MIN_PAIR_BYTES)
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.string()
        if key in metadata:
            raise _Malformed(f"key {key!r} occurs twice")
        metadata[key] = cursor.value()
    found = [cursor.tensor() for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise _Malformed(f"general.alignment is {alignment!r}, not a power of two")
    data = -(-cursor.place // alignment) * alignment
    infos: dict[str, TensorInfo] = {}
    for name, shape, kind, offset in found:
        if name in infos:
            raise _Malformed(f"tensor {name!r} occurs twice")
        block, width = gguf.GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            raise _Malformed(f"tensor {name!r} has rows of {shape[-1]}, no whole {kind.name}")
        size = math.prod(shape) // block * width
        if data + offset + size > cursor.size:
            raise _Malformed(f"it ends before tensor {name!r} does")
        infos[name] = TensorInfo(path, shape, kind, data + offset, size)
    # Overlapping tensors would let a small file ask for any amount of memory.
    if sum(info.size for info in infos.values()) > cursor.size:
        raise _Malformed("its tensors overlap")
    return metadata, infos


class _Malformed(Exception):
    """A malformed file; the message completes a sentence."""


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

    def count(self, min_bytes: int) -> int:
        """A count of items of at least `min_bytes` bytes each."""
        count = self.number("<u8")
        if count * min_bytes > self.size - self.place:
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
        if not 1 <= axes <= _MAX_AXES:
            raise _Malformed(f"tensor {name!r} has {axes} axes, not 1 to {_MAX_AXES}")
        shape = tuple(int(length) for length in reversed(self.numbers("<u8", axes)))
        if 0 in shape:
            raise _Malformed(f"tensor {name!r} is empty")
        kind = self.number("<u4")
        offset = self.number("<u8")
        try:
            return name, shape, gguf.GGMLQuantizationType(kind), offset
        except ValueError as error:
            raise _Malformed(f"tensor {name!r} has the unknown type {kind}") from error
