"""Reading one split of a prepared TFDS data set: ids, labels and arrays are computed once.

Texts stay in ArrayRecord and are read on demand (20,000 a second). Images, sounds and clips are
decoded on the first visit (about 7,000 a second for 28x28 PNGs), brought to one form, and kept as
one memory-mapped array, so that later reads cost nothing.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fm import files
from fm.data.datasets import Split
from fm.data.media import CODECS, ArraySpec, ModalityCodec
from fm.data.splitting import array_digest, text_digest
from fm.errors import UserError
from fm.files import cache_dir, check_cached, new_dir

_CHUNK = 4096
# Counted up whenever an index holds something else.
_VERSION = "2"


@dataclasses.dataclass(frozen=True)
class FeatureColumns:
    """Which TFDS features are the input, the label (None when unlabelled), and what is beside.

    Where there are tags, the content is a sequence of words; a target is a text to write.
    """

    modality: str
    content: str
    label: str | None
    tags: str | None = None
    target: str | None = None


def indexed_split(
    builder: Any, name: str, columns: FeatureColumns, form: ArraySpec | None
) -> Split:
    """Returns split `name` of a prepared builder.

    Args:
        builder: a prepared `tfds.core.DatasetBuilder`.
        name: the split's TFDS name.
        columns: which features to read.
        form: what all examples get; None for text.

    Raises:
        UserError: an example is broken, or the index is.
    """
    source = _data_source(builder, name, columns)
    folder = cache_dir() / "index" / _key(builder, name, columns, form)
    if not folder.exists():
        with new_dir(folder) as scratch:
            _write_index(source, columns, form, metadata_rate(builder), scratch)
            files.write_digests(scratch)
    else:
        check_cached(folder)
    ids = tuple(np.load(folder / "ids.npy", allow_pickle=False).astype(str).tolist())
    labels = None
    if columns.label is not None:
        labels = np.load(folder / "labels.npy", allow_pickle=False)
    if form is None:
        beside = _beside(builder.info.features, source, columns)
        read = functools.partial(_read_each, source, columns.content, _text)
        return Split(labels, ids, np.arange(len(ids)), read, beside)
    array = np.load(folder / "values.npy", mmap_mode="r", allow_pickle=False)
    return Split(labels, ids, np.arange(len(ids)), lambda rows: np.asarray(array[rows]))


def metadata_rate(builder: Any) -> float | None:
    """Returns the rate that a builder's metadata states: Hz of sounds, frames/s of clips.

    Raises:
        UserError: it is no number above 0.
    """
    found = (builder.info.metadata or {}).get("rate")
    if found is not None and not (type(found) in (int, float) and 0 < found < float("inf")):
        raise UserError(f"{builder.info.name}: its rate is {found!r:.60}, not a number above 0")
    return found


def array_spec(builder: Any, names: list[str], columns: FeatureColumns) -> ArraySpec | None:
    """Returns the form all examples of the splits get: the declared one, or the common one.

    What that changes about the examples is said on stderr.

    Raises:
        UserError: an example is broken, or the data set does not say its rate.
    """
    if columns.modality == "text":
        return None
    medium = CODECS[columns.modality]
    form = medium.declared_spec(builder.info.features[columns.content], metadata_rate(builder))
    if form is None:
        measures = [
            medium.measure(_opened(medium, stored, metadata_rate(builder)))
            for name in names
            for stored in _contents(_data_source(builder, name, columns), columns)
        ]
        form = medium.common_spec(measures)
        for line in medium.describe_changes(measures, form):
            print(f"{builder.info.name}: {line}", file=sys.stderr, flush=True)
    return form


def _data_source(builder: Any, name: str, columns: FeatureColumns) -> Any:
    encoded = columns.modality != "text" and CODECS[columns.modality].stores_bytes
    decoders = {columns.content: tfds.decode.SkipDecoding()} if encoded else None
    return builder.as_data_source(name, decoders=decoders)


def _key(builder: Any, name: str, columns: FeatureColumns, form: ArraySpec | None) -> str:
    """Names the index after everything it depends on; the files by name, size and time."""
    folder = pathlib.Path(os.fspath(builder.data_path)).resolve()
    parts = [_VERSION, str(folder), name, repr(columns), repr(form)]
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        status = file.stat()
        parts.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _write_index(
    source: Any,
    columns: FeatureColumns,
    form: ArraySpec | None,
    rate: float | None,
    folder: pathlib.Path,
) -> None:
    ids: list[str] = []
    labels: list[int] = []
    arrays = None
    if form is not None:
        dtype, shape = CODECS[columns.modality].dtype, (len(source), *form.shape)
        arrays = np.lib.format.open_memmap(folder / "values.npy", "w+", dtype, shape)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for rows in _chunks(len(source)):
            examples = _read(source, rows)
            contents = [example[columns.content] for example in examples]
            if form is None:
                ids += [text_digest(_text(content)) for content in contents]
            else:
                assert arrays is not None
                read = functools.partial(_array, CODECS[columns.modality], form, rate)
                for row, array in zip(rows, pool.map(read, contents), strict=True):
                    arrays[row] = array
                    ids.append(array_digest(array))
            if columns.label is not None:
                labels += [int(example[columns.label]) for example in examples]
    np.save(folder / "ids.npy", np.array(ids, "S32"), allow_pickle=False)
    if columns.label is not None:
        np.save(folder / "labels.npy", np.array(labels, np.int32), allow_pickle=False)
    if arrays is not None:
        arrays.flush()


def _array(medium: ModalityCodec, form: ArraySpec, rate: float | None, stored: Any) -> np.ndarray:
    return medium.to_array(_opened(medium, stored, rate), form)


def _opened(medium: ModalityCodec, stored: Any, rate: float | None) -> Any:
    try:
        return medium.decode(stored, rate)
    except OSError as error:
        noun = medium.noun
        raise UserError(f"the data set holds a broken {noun} (not decodable: {error})") from error


def _contents(source: Any, columns: FeatureColumns) -> Iterator[Any]:
    for rows in _chunks(len(source)):
        yield from (example[columns.content] for example in _read(source, rows))


def _text(stored: Any) -> str:
    return (
        stored.decode("utf-8", "replace") if isinstance(stored, bytes) else " ".join(_words(stored))
    )


def _words(stored: Any) -> list[str]:
    return [word.decode("utf-8", "replace") for word in stored]


def _beside(features: Any, source: Any, columns: FeatureColumns) -> dict[str, Callable]:
    """How to read the columns beside the text; see `Split.columns`."""
    reads: dict[str, tuple[str, Callable[[Any], Any]]] = {}
    if columns.tags:
        names = features[columns.tags].feature.names
        reads["words"] = columns.content, _words
        reads["tags"] = columns.tags, lambda stored: [names[tag] for tag in stored]
    if columns.target:
        reads["targets"] = columns.target, _text
    return {
        name: functools.partial(_read_each, source, key, form)
        for name, (key, form) in reads.items()
    }


def _read_each(source: Any, key: str, form: Callable[[Any], Any], rows: np.ndarray) -> list[Any]:
    """One column of some rows."""
    return [form(example[key]) for example in _read(source, rows)]


def _read(source: Any, rows: np.ndarray | range) -> list[Any]:
    # An empty request is an error to ArrayRecord.
    return source.__getitems__([int(row) for row in rows]) if len(rows) else []


def _chunks(length: int) -> list[range]:
    return [range(start, min(start + _CHUNK, length)) for start in range(0, length, _CHUNK)]
