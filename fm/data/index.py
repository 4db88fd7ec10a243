"""An index (ids, labels, array positions) of each split of a TFDS data set, computed once.

Texts stay in ArrayRecord and are read on demand (20,000/s). Images, sounds and clips are decoded
once (about 7,000/s for 28x28 PNGs), brought to one `MediaSpec`, and stored as a memory-mapped
array.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fm.data.datasets import Split
from fm.data.media import MediaSpec, Modality, ModalityCodec, get_modality
from fm.data.splitting import array_digest, text_digest
from fm.errors import UserError
from fm.files import atomic_dir, cache_dir, check_cached_digests, write_digests
from fm.progress_lines import say

_CHUNK = 4096
# To be increased when the content of an index changes.
_VERSION = "2"


@dataclasses.dataclass(frozen=True)
class FeatureColumns:
    """Names of the TFDS features to read: content, label, tags and target; and the modality.

    Attributes:
        modality: of the content.
        content: the input; a sequence of words if there are tags.
        label: the class; None if unlabeled.
        tags: BIO tags of the words.
        target: a text to generate.
        group: what the example belongs to, e.g. a speaker; read on demand, not indexed.
        value: the number to predict.
        file: index of the file that the example was read from.
        position: its place in the order of the files.
        label_set: the classes of a label set; read on demand.
        second_text: the second text of a pair, to which the content is the first.
        row_id: the id by which the user knows it; read on demand.
    """

    modality: str
    content: str
    label: str | None
    tags: str | None = None
    target: str | None = None
    group: str | None = None
    value: str | None = None
    file: str | None = None
    position: str | None = None
    label_set: str | None = None
    second_text: str | None = None
    row_id: str | None = None


# Numbers that the index holds, by field of `FeatureColumns`: their name in `Split.columns`.
_NUMBERS = {
    "value": ("values", np.float64),
    "file": ("files", np.int32),
    "position": ("positions", np.int64),
}
# Fields that the key of an index has only where they are given.
_OPTIONAL = (*_NUMBERS, "second_text")
# Fields that are read on demand; the key of an index does not depend on them.
_ON_DEMAND = ("group", "label_set", "row_id")


def indexed_split(
    builder: Any, name: str, columns: FeatureColumns, spec: MediaSpec | None
) -> Split:
    """Returns a TFDS split with random access; caches its ids, labels and arrays on first use.

    Args:
        builder: a prepared `tfds.core.DatasetBuilder`.
        name: the split's TFDS name.
        columns: which features to read.
        spec: of all examples; None for text.

    Raises:
        UserError: an example or the index is damaged.
    """
    source = _data_source(builder, name, columns)
    folder = cache_dir() / "index" / _index_key(builder, name, columns, spec)
    if not folder.exists():
        with atomic_dir(folder) as scratch:
            _write_index(source, columns, spec, metadata_rate(builder), scratch)
            write_digests(scratch)
    else:
        check_cached_digests(folder)
    ids = tuple(np.load(folder / "ids.npy", allow_pickle=False).astype(str).tolist())
    labels = None
    if columns.label is not None:
        labels = np.load(folder / "labels.npy", allow_pickle=False)
    text_columns = _text_columns(builder.info.features, source, columns)
    for field, (name, _) in _NUMBERS.items():
        if getattr(columns, field) is not None:
            numbers = np.load(folder / f"column-{name}.npy", allow_pickle=False)
            text_columns[name] = functools.partial(_numbers, numbers)
    if spec is None:
        read = functools.partial(_read_texts, source, columns)
        return Split(labels, ids, np.arange(len(ids)), read, text_columns)
    array = np.load(folder / "values.npy", mmap_mode="r", allow_pickle=False)
    return Split(labels, ids, np.arange(len(ids)), lambda idx: np.asarray(array[idx]), text_columns)


def _numbers(numbers: np.ndarray, idx: np.ndarray) -> list:
    return numbers[idx].tolist()


def metadata_rate(builder: Any) -> float | None:
    """Returns the sampling rate (Hz) or frame rate (frames/s) in a builder's metadata, or None.

    Raises:
        UserError: it is not a number above 0.
    """
    rate = (builder.info.metadata or {}).get("rate")
    if rate is not None and not (type(rate) in (int, float) and 0 < rate < float("inf")):
        raise UserError(f"{builder.info.name}: its rate is {rate!r:.60}, not a number above 0")
    return rate


def media_spec(
    builder: Any,
    names: list[str],
    columns: FeatureColumns,
    image_size: int,
    *,
    tell: bool = True,
) -> tuple[MediaSpec | None, dict[str, Any] | None]:
    """Returns the common array shape and rate of examples (None for text), and how they shrink.

    Args:
        builder: a prepared `tfds.core.DatasetBuilder`.
        names: of the splits.
        columns: which features to read.
        image_size: largest side of images and frames in pixels.
        tell: whether to print to stderr how a measured shape or rate changes the examples.

    Returns:
        The spec, and `ModalityCodec.shrunk` of the examples.

    Raises:
        UserError: an example is damaged, or the data set lacks a rate.
    """
    modality = get_modality(columns.modality).with_image_size(image_size)
    codec = modality.codec
    if codec is None:
        return None, None
    rate = metadata_rate(builder)
    spec, shrunk = codec.declared_spec(builder.info.features[columns.content], rate), None
    if spec is None:
        measures = [
            codec.measure(_decode(modality, codec, stored, rate))
            for name in names
            for stored in _contents(_data_source(builder, name, columns), columns)
        ]
        spec = codec.common_spec(measures)
        for line in codec.describe_changes(measures, spec) if tell else ():
            say(f"{builder.info.name}: {line}")
        shrunk = codec.shrunk(measures, spec)
    return spec, shrunk


def _data_source(builder: Any, name: str, columns: FeatureColumns) -> Any:
    codec = get_modality(columns.modality).codec
    skip = codec is not None and codec.stores_bytes
    decoders = {columns.content: tfds.decode.SkipDecoding()} if skip else None
    return builder.as_data_source(name, decoders=decoders)


def _index_key(builder: Any, name: str, columns: FeatureColumns, spec: MediaSpec | None) -> str:
    """Returns a digest of everything the index depends on; of files, name, size and time."""
    folder = pathlib.Path(os.fspath(builder.data_path)).resolve()
    parts = [_VERSION, str(folder), name, _spelled("Columns", columns), _spelled("Form", spec)]
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        status = file.stat()
        link = f" {file.resolve()}" if file.is_symlink() else ""
        parts.append(f"{file.name} {status.st_size} {status.st_mtime_ns}{link}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _spelled(name: str, value: Any) -> str:
    """Returns a dataclass as text for the index key, without the class name.

    Fields read on demand are left out, and so are further fields that are None.
    """
    if value is None:
        return "None"
    fields = {
        key: field
        for key, field in vars(value).items()
        if key not in _ON_DEMAND and not (key in _OPTIONAL and field is None)
    }
    return f"{name}({', '.join(f'{key}={field!r}' for key, field in fields.items())})"


def _as_written(number: Any) -> float:
    """Returns the shortest decimal number that TFDS, which stores float32, keeps as this one.

    2.7 comes back as 2.7, not as 2.700000047683716; beyond seven digits numbers are rounded.
    """
    return float(str(np.float32(number)))


def _write_index(
    source: Any,
    columns: FeatureColumns,
    spec: MediaSpec | None,
    rate: float | None,
    folder: pathlib.Path,
) -> None:
    ids: list[str] = []
    labels: list[int] = []
    numbers = {field: [] for field in _NUMBERS if getattr(columns, field) is not None}
    arrays = to_array = None
    modality = get_modality(columns.modality)
    if spec is not None:
        assert modality.codec is not None
        dtype, shape = modality.codec.dtype, (len(source), *spec.shape)
        arrays = np.lib.format.open_memmap(folder / "values.npy", "w+", dtype, shape)
        to_array = functools.partial(_to_array, modality, modality.codec, spec, rate)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for idx in _chunks(len(source)):
            examples = _read(source, idx)
            contents = [example[columns.content] for example in examples]
            if arrays is None or to_array is None:
                ids += [text_digest(_whole_text(example, columns)) for example in examples]
            else:
                for index, array in zip(idx, pool.map(to_array, contents), strict=True):
                    arrays[index] = array
                    ids.append(array_digest(array))
            if columns.label is not None:
                labels += [int(example[columns.label]) for example in examples]
            for field, own in numbers.items():
                read = _as_written if field == "value" else int
                own += [read(example[getattr(columns, field)]) for example in examples]
    np.save(folder / "ids.npy", np.array(ids, "S32"), allow_pickle=False)
    if columns.label is not None:
        np.save(folder / "labels.npy", np.array(labels, np.int32), allow_pickle=False)
    for field, own in numbers.items():
        name, dtype = _NUMBERS[field]
        np.save(folder / f"column-{name}.npy", np.array(own, dtype), allow_pickle=False)
    if arrays is not None:
        arrays.flush()


def _to_array(
    modality: Modality, codec: ModalityCodec, spec: MediaSpec, rate: float | None, stored: Any
) -> np.ndarray:
    return codec.to_array(_decode(modality, codec, stored, rate), spec)


def _decode(modality: Modality, codec: ModalityCodec, stored: Any, rate: float | None) -> Any:
    try:
        return codec.decode(stored, rate)
    except OSError as error:
        raise UserError(
            f"the data set holds a broken {modality.noun} (not decodable: {error})"
        ) from error


def _contents(source: Any, columns: FeatureColumns) -> Iterator[Any]:
    for idx in _chunks(len(source)):
        yield from (example[columns.content] for example in _read(source, idx))


def _read_texts(source: Any, columns: FeatureColumns, idx: np.ndarray) -> list[str]:
    return [_whole_text(example, columns) for example in _read(source, idx)]


def _whole_text(example: Any, columns: FeatureColumns) -> str:
    """Returns the text of an example; of a pair both, joined by a blank line."""
    text = _to_text(example[columns.content])
    second = columns.second_text and _to_text(example[columns.second_text])
    return f"{text}\n\n{second}" if second else text


def _to_text(stored: Any) -> str:
    if isinstance(stored, bytes):
        return stored.decode("utf-8", "replace")
    return " ".join(_to_words(stored))


def _to_words(stored: Any) -> list[str]:
    return [word.decode("utf-8", "replace") for word in stored]


def _text_columns(features: Any, source: Any, columns: FeatureColumns) -> dict[str, Callable]:
    """Returns functions that read a split's further columns (see `Split`), by column name."""
    convert: dict[str, tuple[str, Callable[[Any], Any]]] = {}
    if columns.tags:
        names = features[columns.tags].feature.names
        convert["words"] = columns.content, _to_words
        convert["tags"] = columns.tags, lambda stored: [names[tag] for tag in stored]
    if columns.target:
        convert["targets"] = columns.target, _to_text
    if columns.group:
        convert["groups"] = columns.group, functools.partial(_to_group, features[columns.group])
    if columns.row_id:
        convert["row_ids"] = columns.row_id, functools.partial(_to_group, features[columns.row_id])
    if columns.second_text:
        convert["second_texts"] = columns.second_text, _to_text
    if columns.label_set:
        convert["label_sets"] = columns.label_set, _to_label_set
    return {
        name: functools.partial(_read_column, source, feature, function)
        for name, (feature, function) in convert.items()
    }


def _to_label_set(stored: Any) -> tuple[int, ...] | None:
    """Returns the sorted classes of a label set; None if unlabeled, which is stored as -1."""
    classes = tuple(sorted({int(each) for each in stored}))
    return None if any(each < 0 for each in classes) else classes


def _to_group(feature: Any, stored: Any) -> str:
    if isinstance(feature, tfds.features.ClassLabel):
        return feature.names[int(stored)] if int(stored) >= 0 else "none"
    return _to_text(stored) if isinstance(stored, bytes) else str(stored)


def _read_column(
    source: Any, feature: str, convert: Callable[[Any], Any], idx: np.ndarray
) -> list[Any]:
    return [convert(example[feature]) for example in _read(source, idx)]


def _read(source: Any, idx: np.ndarray | range) -> list[Any]:
    # ArrayRecord fails on an empty request.
    return source.__getitems__([int(index) for index in idx]) if len(idx) else []


def _chunks(length: int) -> list[range]:
    return [range(start, min(start + _CHUNK, length)) for start in range(0, length, _CHUNK)]
