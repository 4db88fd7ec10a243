"""`load` returns a `Dataset` for a built-in name, a TFDS name, a prepared folder or plain files."""

import contextlib
import hashlib
import importlib
import importlib.util
import pathlib
import re
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fm.data import tfds_safety
from fm.data.builders import BUILDERS
from fm.data.datasets import Dataset, Split, subset
from fm.data.index import FeatureColumns, indexed_split, media_spec
from fm.data.media import MODALITIES
from fm.data.prepare import is_prepared, open_checked, prepare
from fm.data.readers import conll, plain_files
from fm.data.readers.folders import FileNameFieldPositions
from fm.data.splitting import split_by_hash
from fm.errors import UserError
from fm.files import cache_dir, expand_path

TEST_SHARE = 0.2
_EXTENSIONS = (*plain_files.EXTENSIONS, *conll.CONLL_EXTENSIONS)
# name, name/config, with :version. Not namespace:name, for which TFDS would query a data hub.
_TFDS_NAME = re.compile(r"[A-Za-z]\w*(/[\w.+-]+)?(:\d+\.\d+\.\d+)?")


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
    """Returns a data set by built-in name, path or TFDS name; prepared and indexed on first use.

    Args:
        name: a built-in name (`fm.data.builders.BUILDERS`), the path of a file, folder or archive
            (plain data or a prepared TFDS data set), or a TFDS name (also `name/config:version`).
        data_dir: the folder of prepared TFDS data sets; by default in the user's cache.
        text_column: the column, JSON key or TFDS feature of the text.
        label_column: that of the label; "" for none.
        target_column: that of a target text, instead of a label; by default a TFDS feature `target`
            is one.
        label_field: of plain files, which "_"-separated field of their names is the label.
        speaker_field: which one is the speaker; no speaker is then in both splits.

    Returns:
        The data set, with the official test split (or validation split) if there is one, else with
        20% test by hash of the content.

    Raises:
        UserError: no such data set, or its files are not as expected.
    """
    if not name.strip():  # as a path it would be the working folder
        raise UserError(f"no data set is called {name!r}; takes a name, or the path of data")
    tfds_dir = expand_path(data_dir) if data_dir else cache_dir() / "tfds"
    path = expand_path(name)
    # Errors in data prepared by others are the user's to see; in our own they would be bugs.
    reading: Any = contextlib.nullcontext()
    if name in BUILDERS:
        make = BUILDERS[name]
        builder = prepare(lambda where: make(data_dir=where, file_format="array_record"), tfds_dir)
    elif path.exists():
        if is_prepared(path):
            builder = open_checked(path.resolve())
            reading = tfds_safety.damage_as_user_error(path)
        elif files := conll.conll_files(path):
            builder = conll.prepare_conll(path, files)
        else:
            builder = plain_files.prepare_files(
                path,
                text_column=text_column,
                label_column=label_column,
                target_column=target_column,
                fields=FileNameFieldPositions(label_field, speaker_field),
            )
            text_column, label_column, target_column = "text", "label", ""
    elif name.startswith(("/", "./", "../", "~", "\\")) or name.endswith(_EXTENSIONS):
        raise UserError(f"{name}: no such file or folder")
    else:
        builder = _tfds_builder(name, tfds_dir)
        reading = tfds_safety.damage_as_user_error(name)
    with reading:
        features = builder.info.features
        columns = _find_columns(name, features, text_column, label_column, target_column)
        return _dataset(name, builder, columns)


def _tfds_builder(name: str, folder: pathlib.Path) -> Any:
    """Returns the builder of a TFDS data set, prepared in `folder` or, with TensorFlow, now."""
    unknown = UserError(
        f"unknown data set {name!r}: neither built in ({', '.join(BUILDERS)}), nor a path, "
        f"nor a TFDS name, nor prepared in {folder}"
    )
    if not _TFDS_NAME.fullmatch(name):
        raise unknown
    found = sorted(folder.glob(f"{name.replace(':', '/')}/**/dataset_info.json"))
    for dataset_info in found:
        tfds_safety.check_features(dataset_info.parent)
    try:
        _import_legacy(name)
        # TFRecord has no random access.
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
    except Exception as error:  # network, checksum, disk, a bug in the TFDS builder
        raise UserError(f"TFDS cannot prepare {name!r}: {_first_line(error)}") from error
    return builder


def _import_legacy(name: str) -> None:
    """Imports the TFDS modules named like the data set: older builders only register then."""
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
        spec = media_spec(builder, names, columns)
        train, *rest = (indexed_split(builder, split, columns, spec) for split in names)
    except NotImplementedError as error:
        raise UserError(
            f"{name} is prepared as TFRecord, which has no random access; "
            'prepare it with file_format="array_record"'
        ) from error
    metadata = dict(builder.info.metadata or {})
    if rest:
        test = rest[0]
        default = "by hash" if builder.info.name in BUILDERS else "official"
        how = metadata.get("split", default)
    else:
        how = "by hash"
        labels = None if train.labels is None else train.labels.tolist()
        train_idx, test_idx = split_by_hash(train.ids, labels, TEST_SHARE)
        train, test = subset(train, train_idx), subset(train, test_idx)
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
        "shape": None if spec is None else list(spec.shape),
        "rate": None if spec is None else spec.rate,
        "tags": features[columns.tags].feature.names if columns.tags else None,
    }
    return Dataset(name, columns.modality, classes, train, test, metadata | info)


def _find_columns(
    name: str, features: Any, text_column: str, label_column: str, target_column: str
) -> FeatureColumns:
    """Finds the features to read: by name, else the first of a suitable type."""
    by_type: dict[type, list[str]] = {}
    for key, feature in features.items():
        by_type.setdefault(type(feature), []).append(key)
    texts = by_type.get(tfds.features.Text, [])
    labels = by_type.get(tfds.features.ClassLabel, [])
    if target_column and target_column not in texts:
        listed = ", ".join(texts) or "none"
        raise UserError(f"{name} has no text feature {target_column!r}; it has: {listed}")
    target = target_column or "target"
    if target in texts and len(texts) > 1 and text_column != target:
        rest = [text for text in texts if text != target]
        return FeatureColumns(
            "text", text_column if text_column in rest else rest[0], None, target=target
        )
    if words_and_tags := _words_and_tags(features, label_column):
        words, tags = words_and_tags
        return FeatureColumns("text", words, None, tags=tags)
    label = None
    if label_column:
        label = label_column if label_column in labels else next(iter(labels), None)
    if text_column in texts:
        return FeatureColumns("text", text_column, label)
    accepted = [
        (modality.name, key)
        for modality in MODALITIES.values()
        for key, feature in features.items()
        if modality.codec is not None and modality.codec.accepts_feature(feature)
    ]
    if accepted:
        # Several modalities may accept a feature; one of its own name is what it was prepared as.
        own = [(name, key) for name, key in accepted if name == key]
        modality, key = (own or accepted)[0]
        return FeatureColumns(modality, key, label)
    if texts:
        return FeatureColumns("text", texts[0], label)
    raise UserError(
        f"{name} has no feature of {', '.join(MODALITIES)}; it has: {', '.join(sorted(features))}"
    )


def _words_and_tags(features: Any, label_column: str) -> tuple[str, str] | None:
    """Returns the features of words and of their BIO tags (of several, the label column)."""
    words, tags = [], []
    for key, feature in features.items():
        inner = feature.feature if isinstance(feature, tfds.features.Sequence) else None
        if isinstance(inner, tfds.features.Text):
            words.append(key)
        elif isinstance(inner, tfds.features.ClassLabel) and all(
            map(conll.is_bio_tag, inner.names)
        ):
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
