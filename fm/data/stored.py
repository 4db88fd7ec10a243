"""Reading one split of a prepared TFDS data set: ids, labels and pixels are computed once.

Texts stay in ArrayRecord and are read on demand (20,000 a second). Images are decoded on the
first visit (about 7,000 a second for 28x28 PNGs) and kept as one memory-mapped array, so that
later reads cost nothing.
"""

import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fm.data import pixels
from fm.data.cache import cache_folder, new_folder
from fm.data.hashing import image_digest, text_digest
from fm.data.splits import Split
from fm.errors import UserError

_CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which TFDS features are the input and the label (None when unlabelled)."""

    modality: str
    content: str
    label: str | None


def stored_split(builder: Any, name: str, columns: Columns, shape: pixels.Shape | None) -> Split:
    """Returns split `name` of a prepared builder.

    Args:
        builder: a prepared `tfds.core.DatasetBuilder`.
        name: the split's TFDS name.
        columns: which features to read.
        shape: for images, the (height, width, channels) all get.

    Raises:
        UserError: an image is broken.
    """
    source = _data_source(builder, name, columns)
    folder = cache_folder() / "index" / _key(builder, name, columns, shape)
    if not folder.exists():
        with new_folder(folder) as scratch:
            _write_index(source, columns, shape, scratch)
    ids = tuple(np.load(folder / "ids.npy", allow_pickle=False).astype(str).tolist())
    labels = None
    if columns.label is not None:
        labels = np.load(folder / "labels.npy", allow_pickle=False)
    if columns.modality == "text":
        return Split(labels, ids, np.arange(len(ids)), lambda rows: _texts(source, columns, rows))
    array = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
    return Split(labels, ids, np.arange(len(ids)), lambda rows: np.asarray(array[rows]))


def image_shape(builder: Any, names: list[str], columns: Columns) -> pixels.Shape:
    """Returns the shape all images of the splits get: the declared one, or `common_shape`."""
    declared = builder.info.features[columns.content].shape
    if None not in declared and max(declared[:2]) <= pixels.SMALL and declared[2] in (1, 3):
        return declared
    sizes = set()
    for name in names:
        source = _data_source(builder, name, columns)
        for rows in _chunks(len(source)):
            sizes |= {pixels.measure(_image(row[columns.content])) for row in _read(source, rows)}
    return pixels.common_shape(sizes)


def _data_source(builder: Any, name: str, columns: Columns) -> Any:
    decoders = {columns.content: tfds.decode.SkipDecoding()}
    return builder.as_data_source(name, decoders=decoders if columns.modality == "image" else None)


def _key(builder: Any, name: str, columns: Columns, shape: pixels.Shape | None) -> str:
    """Names the index after everything it depends on; the files by name, size and time."""
    folder = pathlib.Path(os.fspath(builder.data_path)).resolve()
    parts = [str(folder), name, repr(columns), repr(shape)]
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        status = file.stat()
        parts.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _write_index(
    source: Any, columns: Columns, shape: pixels.Shape | None, folder: pathlib.Path
) -> None:
    ids: list[str] = []
    labels: list[int] = []
    images: list[np.ndarray] = []
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for rows in _chunks(len(source)):
            examples = _read(source, rows)
            contents = [example[columns.content] for example in examples]
            if columns.modality == "text":
                ids += [text_digest(content.decode("utf-8", "replace")) for content in contents]
            else:
                assert shape is not None
                decoded = list(pool.map(lambda png: pixels.to_array(_image(png), shape), contents))
                images += decoded
                ids += map(image_digest, decoded)
            if columns.label is not None:
                labels += [int(example[columns.label]) for example in examples]
    np.save(folder / "ids.npy", np.array(ids, "S32"), allow_pickle=False)
    if columns.label is not None:
        np.save(folder / "labels.npy", np.array(labels, np.int32), allow_pickle=False)
    if columns.modality == "image":
        assert shape is not None
        stacked = np.stack(images) if images else np.zeros((0, *shape), np.uint8)
        np.save(folder / "pixels.npy", stacked, allow_pickle=False)


def _image(encoded: bytes) -> Any:
    try:
        return pixels.open_image(encoded)
    except OSError as error:
        raise UserError(f"the data set holds an image that cannot be decoded: {error}") from error


def _texts(source: Any, columns: Columns, rows: np.ndarray) -> list[str]:
    examples = _read(source, rows)
    return [example[columns.content].decode("utf-8", "replace") for example in examples]


def _read(source: Any, rows: np.ndarray | range) -> list[Any]:
    # An empty request is an error to ArrayRecord.
    return source.__getitems__([int(row) for row in rows]) if len(rows) else []


def _chunks(length: int) -> list[range]:
    return [range(start, min(start + _CHUNK, length)) for start in range(0, length, _CHUNK)]
