"""`load` returns a `Dataset` for a built-in name, a TFDS name, a prepared folder or plain files."""

import contextlib
import dataclasses
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
from fm.data.media import MODALITIES, MediaSpec
from fm.data.patches import DEFAULT_IMAGE_SIZE, check_image_size
from fm.data.prepare import is_prepared, open_checked, prepare, tell_once
from fm.data.readers import conll, plain_files
from fm.data.readers.folders import FileNameFieldPositions
from fm.data.readers.text import TextFormat, check_encoding
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
    item_group: str = "",
    encoding: str = "utf-8",
    image_size: int = DEFAULT_IMAGE_SIZE,
) -> Dataset:
    """Returns a data set by built-in name, path or TFDS name; prepared and indexed on first use.

    Args:
        name: a built-in name (`fm.data.builders.BUILDERS`), the path of a file, folder or archive
            (plain data or a prepared TFDS data set), or a TFDS name (also `name/config:version`).
        data_dir: the folder of prepared TFDS data sets; by default in the user's cache.
        text_column: the column, JSON key or TFDS feature of the text (or other input); built-in
            data sets have their own.
        label_column: that of the label; "" for none.
        target_column: that of a target text, instead of a label; by default a TFDS feature `target`
            is one.
        label_field: of plain files, which "_"-separated field of their names is the label.
        speaker_field: which one is the speaker; no speaker is then in both splits.
        item_group: the column, key or TFDS feature of the group that an example belongs to, for
            statistics by group; by default the speaker of `speaker_field`, or what a built-in data
            set is grouped by.
        encoding: of text files.
        image_size: largest side of images and frames in pixels, see
            `fm.data.media.image.common_image_shape`; a multiple of 8 from 8 to 256.

    Returns:
        The data set, with the official test split (or validation split) if there is one, else with
        20% test by hash of the content. Examples whose labels are withheld are unlabeled: -1 in
        the train split, and left out of the test split.

    Raises:
        UserError: no such data set, or its files are not as expected.
    """
    if not name.strip():  # as a path it would be the working folder
        raise UserError(f"no data set is called {name!r}; takes a name, or the path of data")
    tfds_dir = expand_path(data_dir) if data_dir else cache_dir() / "tfds"
    path = expand_path(name)
    check_encoding(encoding)
    check_image_size(image_size)
    # Errors in data prepared by others are the user's to see; in our own they would be bugs.
    reading: Any = contextlib.nullcontext()
    group = item_group
    if name in BUILDERS:
        make = BUILDERS[name]
        group = item_group or make.ITEM_GROUP
        builder = prepare(lambda where: make(data_dir=where, file_format="array_record"), tfds_dir)
        text_column = _own_column(name, builder, "text_column", text_column)
        label_column = label_column and _own_column(name, builder, "label_column", label_column)
        if path.exists():
            tell_once(name, f"the built-in data set is read; ./{name} is the file or folder here")
    elif path.exists():
        if _TFDS_NAME.fullmatch(name) and (tfds_dir / name.replace(":", "/")).is_dir():
            tell_once(name, f"the file or folder here is read, not the TFDS data set in {tfds_dir}")
        if is_prepared(path):
            builder = open_checked(path.resolve())
            reading = tfds_safety.damage_as_user_error(path)
        elif files := conll.conll_files(path):
            if item_group:
                raise UserError(
                    f"--item_group={item_group}: {path} holds words with tags, which have no such "
                    "column; it is for .csv, .tsv and .jsonl files and for TFDS features"
                )
            builder = conll.prepare_conll(path, files, encoding)
            text_column, label_column = "text", label_column and "label"
        else:
            builder = plain_files.prepare_files(
                path,
                TextFormat(text_column, label_column, target_column, encoding, item_group),
                FileNameFieldPositions(label_field, speaker_field),
                image_size,
            )
            text_column, label_column, target_column = "text", "label", ""
            group = plain_files.GROUP_FEATURE
            group = group if group in builder.info.features else ""
    elif name.startswith(("/", "./", "../", "~", "\\")) or name.endswith(_EXTENSIONS):
        raise UserError(f"{name}: no such file or folder")
    else:
        builder = _tfds_builder(name, tfds_dir)
        reading = tfds_safety.damage_as_user_error(name)
    for line in (builder.info.metadata or {}).get("notices", ()):
        tell_once(name, line)
    with reading:
        features = builder.info.features
        columns = find_columns(name, features, text_column, label_column, target_column)
        columns = dataclasses.replace(columns, group=_group_feature(name, features, group))
        data = _dataset(name, builder, columns, image_size, in_fingerprint=bool(item_group))
    if image_size != DEFAULT_IMAGE_SIZE and data.modality in ("text", "audio"):
        what = "is for images and clips"
        tell_once(name, f"--image_size={image_size} {what}, and changes no {data.modality}")
    called = item_group or ("speaker" if group == plain_files.GROUP_FEATURE else group)
    return dataclasses.replace(data, info=data.info | {"item_group": called or None})


def _group_feature(name: str, features: Any, group: str) -> str | None:
    """Returns the feature of the group, None for none; raises UserError if it cannot be one."""
    if not group:
        return None
    fitting = [
        key
        for key, feature in sorted(features.items())
        if isinstance(feature, tfds.features.Text | tfds.features.ClassLabel)
        or (type(feature) in (tfds.features.Scalar, tfds.features.Tensor) and feature.shape == ())
    ]
    if group not in fitting:
        listed = ", ".join(fitting) or "none"
        raise UserError(
            f"--item_group={group}: {name} has no such column of groups; it has: {listed}"
        )
    return group


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


def _dataset(
    name: str, builder: Any, columns: FeatureColumns, image_size: int, *, in_fingerprint: bool
) -> Dataset:
    """Returns the data set of a builder; groups enter its fingerprint if `in_fingerprint`."""
    available = list(builder.info.splits)
    if "train" not in available:
        raise UserError(f"{name} has no train split; it has: {', '.join(available) or 'none'}")
    features = builder.info.features
    classes = tuple(features[columns.label].names) if columns.label else ()
    held_out = [split for split in ("test", "validation") if split in available]
    try:
        spec, shrunk = media_spec(builder, ["train", *held_out[:1]], columns, image_size)
        train, *rest = (
            _checked_labels(indexed_split(builder, split, columns, spec), len(classes))
            for split in ["train", *held_out[:1]]
        )
        withheld = bool(rest and len(rest[0]) and not len(_labeled_idx(rest[0])))
        if withheld:
            said = f"the labels of its {held_out[0]} split are withheld"
            if len(held_out) == 1:
                raise UserError(
                    f"{name}: {said}, and no other split is held out; --label_column= reads it "
                    "without labels"
                )
            tell_once(name, f"{said}; its {held_out[1]} split is used as the test split")
            other = indexed_split(builder, held_out[1], columns, spec)
            rest = [_checked_labels(other, len(classes))]
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
        if withheld:
            how = "official validation split, as the labels of the test split are withheld"
    else:
        how = "by hash"
        labels = None if train.labels is None else train.labels.tolist()
        ids = _default_ids(builder, columns, train, spec, image_size)
        train_idx, test_idx = split_by_hash(ids, labels, TEST_SHARE)
        train, test = subset(train, train_idx), subset(train, test_idx)
    test = _without_unlabeled(name, train, test)
    info = {
        "description": builder.info.description,
        "licence": builder.info.redistribution_info.license or "unknown",
        "citation": builder.info.citation,
        "version": str(builder.info.version),
        "split": how,
        "fingerprint": _fingerprint(train, test, groups=in_fingerprint),
        "counts": _counts(train, test, classes),
        "shape": None if spec is None else list(spec.shape),
        "shrunk": shrunk or metadata.get("shrunk"),
        "rate": None if spec is None else spec.rate,
        "tags": features[columns.tags].feature.names if columns.tags else None,
    }
    return Dataset(name, columns.modality, classes, train, test, metadata | info)


def _default_ids(
    builder: Any, columns: FeatureColumns, train: Split, spec: MediaSpec | None, image_size: int
) -> tuple[str, ...]:
    """Returns the ids that examples have at the default image size, so that one split fits all."""
    if image_size == DEFAULT_IMAGE_SIZE:
        return train.ids
    default, _ = media_spec(builder, ["train"], columns, DEFAULT_IMAGE_SIZE, tell=False)
    return train.ids if default == spec else indexed_split(builder, "train", columns, default).ids


def _checked_labels(split: Split, num_classes: int) -> Split:
    """Returns the split with -1 for every label that is no class (TFDS marks withheld ones so)."""
    if split.labels is None:
        return split
    known = (split.labels >= 0) & (split.labels < num_classes)
    return (
        split
        if known.all()
        else dataclasses.replace(
            split, labels=np.where(known, split.labels, -1).astype(split.labels.dtype)
        )
    )


def _labeled_idx(split: Split) -> np.ndarray:
    """Returns the indices of a split's labeled examples; of all if it has no labels at all."""
    if split.labels is None:
        return np.arange(len(split))
    return np.flatnonzero(split.labels >= 0)


def _without_unlabeled(name: str, train: Split, test: Split) -> Split:
    """Returns the test split without unlabeled examples; tells how many either split has."""
    train_idx, test_idx = _labeled_idx(train), _labeled_idx(test)
    if len(train_idx) < len(train):
        tell_once(
            name,
            f"{len(train) - len(train_idx):,} of {len(train):,} training examples have no label "
            "that is a class; they are unlabeled data, never drawn as labels",
        )
    if len(test_idx) < len(test):
        tell_once(
            name,
            f"{len(test) - len(test_idx):,} of {len(test):,} test examples have no label that is a "
            "class and are left out",
        )
    if not len(train_idx) or not len(test_idx):
        side = "test" if len(train_idx) else "train"
        what = "labels" if len(train if side == "train" else test) else "examples"
        advice = "; --label_column= reads it without labels" if what == "labels" else ""
        raise UserError(f"{name} has no {what} in its {side} split{advice}")
    return test if len(test_idx) == len(test) else subset(test, test_idx)


def _own_column(name: str, builder: Any, flag: str, column: str) -> str:
    """Returns the column of a built-in data set, and tells if it is not the one asked for."""
    own = flag.removesuffix("_column")
    if column in builder.info.features or column == own:
        return column
    tell_once(name, f"built in, without a column {column!r}; --{flag} is for other data sets")
    return own


def find_columns(
    name: str, features: Any, text_column: str, label_column: str, target_column: str
) -> FeatureColumns:
    """Finds the features to read: those asked for, else the only one of a suitable type.

    Raises:
        UserError: one asked for is missing, or several are suitable and none has the usual name.
    """
    features = dict(sorted(features.items()))  # TFDS reads a prepared folder's in any order
    texts = [key for key, feature in features.items() if type(feature) is tfds.features.Text]
    labels = [key for key, each in features.items() if type(each) is tfds.features.ClassLabel]
    if target_column and target_column not in texts:
        listed = ", ".join(texts) or "none"
        raise UserError(f"{name} has no text feature {target_column!r}; it has: {listed}")
    target = target_column or "target"
    if target in texts and len(texts) > 1 and text_column != target:
        rest = [text for text in texts if text != target]
        content = _choose(name, "text_column", text_column, rest)
        return FeatureColumns("text", content, None, target=target)
    if columns := _words_and_tags(name, features, text_column, label_column):
        return columns
    accepted = [
        (modality.name, key)
        for modality in MODALITIES.values()
        for key, feature in features.items()
        if modality.codec is not None and modality.codec.accepts_feature(feature)
    ]
    if not texts and not accepted:
        listed = ", ".join(features)
        raise UserError(f"{name} has no feature of {', '.join(MODALITIES)}; it has: {listed}")
    label = None
    if label_column and (labels or label_column != "label" or label_column in features):
        label = _choose(name, "label_column", label_column, labels, "for none: --label_column=")
    media = list(dict.fromkeys(key for _, key in accepted))
    if text_column in texts or not media:
        return FeatureColumns("text", _choose(name, "text_column", text_column, texts), label)
    # Several modalities may accept a feature; one of its own name is what it was prepared as.
    own = [(modality, key) for modality, key in accepted if modality == key]
    if text_column in media or not own:
        asked = text_column if texts or text_column in media else "text"
        key = _choose(name, "text_column", asked, media)
        own = [(modality, each) for modality, each in accepted if each == key]
    elif texts and text_column != "text":
        _choose(name, "text_column", text_column, [*texts, *media])
    modality, key = own[0]
    return FeatureColumns(modality, key, label)


def _choose(name: str, flag: str, column: str, available: list[str], remark: str = "") -> str:
    """Returns the column asked for, or the only one there is if none was asked for by name."""
    is_default = column == flag.removesuffix("_column")
    if column in available:
        return column
    if is_default and len(available) == 1:
        return available[0]
    listed = ", ".join(available) or "none"
    remark = f" ({remark})" if remark else ""
    if is_default and available:
        raise UserError(f"{name} has several columns for --{flag}: {listed}; give one{remark}")
    raise UserError(f"{name} has no column {column!r} for --{flag}; it has: {listed}{remark}")


def _words_and_tags(
    name: str, features: Any, text_column: str, label_column: str
) -> FeatureColumns | None:
    """Returns the features of words and of their BIO tags; None if there are none."""
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
    content = _choose(name, "text_column", text_column, words)
    if not label_column:
        return FeatureColumns("text", content, None, tags=tags[0] if len(tags) == 1 else None)
    return FeatureColumns(
        "text", content, None, tags=_choose(name, "label_column", label_column, tags)
    )


def _fingerprint(train: Split, test: Split, *, groups: bool) -> str:
    digest = hashlib.sha256()
    for split in (train, test):
        digest.update("".join(split.ids).encode())
        digest.update(b"-" if split.labels is None else split.labels.astype("<i4").tobytes())
        for key, read in sorted(split.columns.items()):
            if key == "groups" and not groups:
                continue
            digest.update(repr(read(split.source_idx)).encode())
    return digest.hexdigest()


def _counts(train: Split, test: Split, classes: tuple[str, ...]) -> dict[str, Any]:
    counts: dict[str, Any] = {"train": len(train), "test": len(test)}
    for key, split in (("train_by_class", train), ("test_by_class", test)):
        if split.labels is not None:
            known = split.labels[split.labels >= 0]
            number = np.bincount(known, minlength=len(classes)).tolist()
            counts[key] = dict(zip(classes, number, strict=True))
    return counts
