"""`load`: a built-in name, a TFDS name, a prepared folder or plain files become a `Dataset`."""

import contextlib
import hashlib
import importlib
import importlib.util
import pathlib
import re
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fm.data import builders, tfds_safety
from fm.data.datasets import Dataset, Split, subset, without
from fm.data.index import FeatureColumns, array_spec, indexed_split
from fm.data.media import CODECS
from fm.data.prepare import is_prepared, open_checked, prepare
from fm.data.readers import conll, plain_files
from fm.data.readers.folders import FileNameFields
from fm.data.splitting import split_by_hash
from fm.errors import UserError
from fm.files import cache_dir, expand_path

__all__ = ["Dataset", "Split", "load", "subset", "without"]

TEST_SHARE = 0.2
_ENDINGS = (*plain_files.EXTENSIONS, *conll.CONLL_EXTENSIONS)
# name, name/config, with :version. Not namespace:name, which would ask a data hub for a list.
_STOCK_NAME = re.compile(r"[A-Za-z]\w*(/[\w.+-]+)?(:\d+\.\d+\.\d+)?")


def load(
    name: str,
    *,
    data_dir: str | None = None,
    text_column: str = "text",
    label_column: str = "label",
    target_column: str = "",
    label_field: int | None = None,
    speaker_field: int | None = None,
) -> Dataset:
    """Loads a data set, preparing and indexing it on first use.

    Args:
        name: a built-in name (`fm.data.builders.NAMES`), a path of a file, folder or archive
            (plain data or a prepared TFDS data set), or a TFDS name (`name/config:version` works
            too).
        data_dir: where prepared TFDS data sets lie; the user's cache unless given.
        text_column: the column, JSON key or TFDS feature with the text.
        label_column: the one with the label; "" for none.
        target_column: the one with a text to write, which stands in the label's stead; unless
            given, a TFDS feature `target` is one.
        label_field: of plain files, which field of their names, parted by "_", is the label.
        speaker_field: which one is the speaker; no speaker is in both splits then.

    Returns:
        The data set. The official test split where there is one (a validation split stands in for
        a missing test split), else 20% by hash of the content.

    Raises:
        UserError: no such data set, or something about its files is wrong.
    """
    if not name.strip():  # the empty path is the folder one is in
        raise UserError(f"no data set is called {name!r}; takes a name, or the path of data")
    folder = expand_path(data_dir) if data_dir else cache_dir() / "tfds"
    path = expand_path(name)
    # Of what was made here an error is a bug; what others prepared may be damaged.
    reading: Any = contextlib.nullcontext()
    if name in builders.NAMES:
        builder = prepare(lambda where: builders.make(name, where), folder)
    elif path.exists():
        if is_prepared(path):
            builder, reading = open_checked(path.resolve()), tfds_safety.damage_as_user_error(path)
        elif tagged_files := conll.conll_files(path):
            builder = conll.prepare_conll(path, tagged_files)
        else:
            builder = plain_files.prepare_files(
                path,
                text_column=text_column,
                label_column=label_column,
                target_column=target_column,
                fields=FileNameFields(label_field, speaker_field),
            )
            text_column, label_column, target_column = "text", "label", ""
    elif name.startswith(("/", "./", "../", "~", "\\")) or name.endswith(_ENDINGS):
        raise UserError(f"{name}: no such file or folder")
    else:
        builder, reading = _stock_builder(name, folder), tfds_safety.damage_as_user_error(name)
    with reading:
        columns = _find_columns(
            name, builder.info.features, text_column, label_column, target_column
        )
        return _dataset(name, builder, columns)


def _stock_builder(name: str, folder: pathlib.Path) -> Any:
    """Returns a stock TFDS builder, prepared in `folder` already or, with TensorFlow, now."""
    unknown = UserError(
        f"unknown data set {name!r}: neither built in ({', '.join(builders.NAMES)}), nor a path, "
        f"nor a TFDS name, nor prepared in {folder}"
    )
    if not _STOCK_NAME.fullmatch(name):
        raise unknown
    found = sorted(folder.glob(f"{name.replace(':', '/')}/**/dataset_info.json"))
    for described in found:
        tfds_safety.check_features(described.parent)
    try:
        _import_legacy(name)
        # Data prepared as TFRecord cannot be read in any order, so nor is it looked for.
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        ready = (pathlib.Path(builder.data_path) / "dataset_info.json").exists()
    except tfds.core.DatasetNotFoundError:
        builder, ready = None, False
    except (ImportError, ValueError, RuntimeError, AssertionError) as error:
        if not found:
            _require_tensorflow(name, folder)
            raise UserError(f"TFDS cannot set up {name!r}: {_first_line(error)}") from error
        builder, ready = None, False
    if ready:
        return builder
    if found:
        return open_checked(found[-1].parent)
    if builder is None:
        raise unknown
    _require_tensorflow(name, folder)
    try:
        builder.download_and_prepare()
    except Exception as error:  # Anything: network, checksum, disk, a bug in the stock builder.
        raise UserError(f"TFDS cannot prepare {name!r}: {_first_line(error)}") from error
    return builder


def _import_legacy(name: str) -> None:
    """Imports the TFDS module named like the data set: older builders register only then."""
    base = re.split("[/:]", name)[0]
    package = pathlib.Path(tfds.__file__).parent
    for path in sorted(package.glob(f"*/**/{base}.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[0] not in ("core", "scripts", "testing", "datasets"):
            importlib.import_module(".".join((tfds.__name__, *parts)))


def _require_tensorflow(name: str, folder: pathlib.Path) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"TFDS needs TensorFlow to prepare {name!r}, which is not in {folder}: "
            'pip install "fm[tfds]"'
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _dataset(name: str, builder: Any, columns: FeatureColumns) -> Dataset:
    available = list(builder.info.splits)
    if "train" not in available:
        raise UserError(f"{name} has no train split; it has: {', '.join(available) or 'none'}")
    held_out = next((split for split in ("test", "validation") if split in available), None)
    names = ["train", held_out] if held_out else ["train"]
    try:
        form = array_spec(builder, names, columns)
        train, *rest = (indexed_split(builder, split, columns, form) for split in names)
    except NotImplementedError as error:
        raise UserError(
            f"{name} is prepared as TFRecord, which cannot be read in any order; "
            'prepare it with file_format="array_record"'
        ) from error
    metadata = dict(builder.info.metadata or {})
    if rest:
        test = rest[0]
        own = "by hash" if builder.info.name in builders.NAMES else "official"
        how = metadata.get("split", own)
    else:
        how = "by hash"
        labels = None if train.labels is None else train.labels.tolist()
        kept, moved = split_by_hash(train.ids, labels, TEST_SHARE)
        train, test = subset(train, kept), subset(train, moved)
    features = builder.info.features
    classes = tuple(features[columns.label].names) if columns.label else ()
    info = {
        "description": builder.info.description,
        "licence": builder.info.redistribution_info.license or "unknown",
        "citation": builder.info.citation,
        "version": str(builder.info.version),
        "split": how,
        "fingerprint": _fingerprint(train, test),
        "counts": _counts(train, test, classes),
        "shape": None if form is None else list(form.shape),
        "rate": None if form is None else form.rate,
        "tags": features[columns.tags].feature.names if columns.tags else None,
    }
    return Dataset(name, columns.modality, classes, train, test, metadata | info)


def _find_columns(
    name: str, features: Any, text_column: str, label_column: str, target_column: str
) -> FeatureColumns:
    """Finds the features to read: by name, else the first of a fitting kind."""
    kinds: dict[type, list[str]] = {}
    for key, feature in features.items():
        kinds.setdefault(type(feature), []).append(key)
    texts, labels = kinds.get(tfds.features.Text, []), kinds.get(tfds.features.ClassLabel, [])
    if target_column and target_column not in texts:
        listed = ", ".join(texts) or "none"
        raise UserError(f"{name} has no text feature {target_column!r}; it has: {listed}")
    target = target_column or "target"
    if target in texts and len(texts) > 1 and text_column != target:
        rest = [text for text in texts if text != target]
        return FeatureColumns(
            "text", text_column if text_column in rest else rest[0], None, target=target
        )
    if tagged_words := _tagged(features, label_column):
        return FeatureColumns("text", tagged_words[0], None, tags=tagged_words[1])
    label = None
    if label_column:
        label = label_column if label_column in labels else next(iter(labels), None)
    if text_column in texts:
        return FeatureColumns("text", text_column, label)
    for medium in CODECS.values():
        fitting = [key for key, feature in features.items() if medium.accepts_feature(feature)]
        if fitting:
            return FeatureColumns(medium.name, fitting[0], label)
    if texts:
        return FeatureColumns("text", texts[0], label)
    raise UserError(
        f"{name} has no feature of {', '.join(('text', *CODECS))}; it has: "
        f"{', '.join(sorted(features))}"
    )


def _tagged(features: Any, label_column: str) -> tuple[str, str] | None:
    """Names the features of words and of their BIO tags; where several are, the label column's."""
    words, tags = [], []
    for key, feature in features.items():
        inner = feature.feature if isinstance(feature, tfds.features.Sequence) else None
        if isinstance(inner, tfds.features.Text):
            words.append(key)
        elif isinstance(inner, tfds.features.ClassLabel) and all(map(conll.is_tag, inner.names)):
            tags.append(key)
    if not words or not tags:
        return None
    return words[0], label_column if label_column in tags else tags[0]


def _fingerprint(train: Split, test: Split) -> str:
    digest = hashlib.sha256()
    for split in (train, test):
        digest.update("".join(split.ids).encode())
        digest.update(b"-" if split.labels is None else split.labels.astype("<i4").tobytes())
        for _, read in sorted(split.columns.items()):
            digest.update(repr(read(split.source_idx)).encode())
    return digest.hexdigest()


def _counts(train: Split, test: Split, classes: tuple[str, ...]) -> dict[str, Any]:
    counts: dict[str, Any] = {"train": len(train), "test": len(test)}
    for key, split in (("train_by_class", train), ("test_by_class", test)):
        if split.labels is not None:
            # TFDS marks a withheld label by -1.
            known = split.labels[split.labels >= 0]
            number = np.bincount(known, minlength=len(classes)).tolist()
            counts[key] = dict(zip(classes, number, strict=True))
    return counts
