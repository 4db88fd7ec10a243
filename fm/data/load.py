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
from fm.data.datasets import Dataset, Split, subset, without
from fm.data.feature_columns import find_all_columns, group_feature, own_columns
from fm.data.index import FeatureColumns, indexed_split, media_spec
from fm.data.media import MediaSpec
from fm.data.patches import DEFAULT_IMAGE_SIZE, check_image_size
from fm.data.prepare import is_prepared, open_checked, prepare, tell_once
from fm.data.readers import arrow, conll, hf_datasets, plain_files
from fm.data.readers.examples import TextFormat
from fm.data.readers.folders import FileNameFieldPositions
from fm.data.readers.text import check_encoding
from fm.data.splitting import split_by_group, split_by_hash
from fm.errors import UserError
from fm.files import cache_dir, expand_path

TEST_SHARE = 0.2
# Columns that say where an example comes from, not what it is.
_NOT_CONTENT = ("row_ids", "files", "positions")
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
    unlabeled: str = "",
    validation: str = "",
    test: str = "",
    group_column: str = "",
    id_column: str = "",
    value_column: str = "",
    label_separator: str = "",
    second_text_column: str = "",
    file_column: str = "",
) -> Dataset:
    """Returns a data set by built-in name, path or TFDS name; prepared and indexed on first use.

    Args:
        name: a built-in name (`fm.data.builders.BUILDERS`), the path of a file, folder or archive
            (plain data or a prepared TFDS data set), a TFDS name (also `name/config:version`), or
            `hf:NAME` of the Hugging Face hub.
        data_dir: the folder of prepared TFDS data sets; by default in the user's cache.
        text_column: the column, JSON key or TFDS feature of the text (or other input); built-in
            data sets have their own.
        label_column: that of the label; several, separated by commas, are 0/1 columns of a label
            set; "" for none.
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
        unlabeled: a file or folder of further examples, which are training examples without label;
            or several, separated by commas.
        validation: one whose examples join the training examples; or are the test split, if there
            is no other.
        test: one that is the test split.
        group_column: the column, key or TFDS feature of a group that no two splits share and that
            statistics take together.
        id_column: that of the id of an example, see `Split.row_ids`.
        value_column: that of a number to predict, instead of a label.
        label_separator: separates the classes of a label set in `label_column`.
        second_text_column: the column of the second text of a pair.
        file_column: the column of the image, sound, clip or .txt file that is the input.

    Returns:
        The data set, with the official test split (or validation split) if there is one, else with
        20% test by hash of the content; without any label all are training examples. Examples
        without a label are unlabeled: -1 in the train split, and left out of the test split.

    Raises:
        UserError: no such data set, or its files are not as expected.
    """
    if not name.strip():  # as a path it would be the working folder
        raise UserError(f"no data set is called {name!r}; takes a name, or the path of data")
    tfds_dir = expand_path(data_dir) if data_dir else cache_dir() / "tfds"
    path = expand_path(name)
    if name.startswith(hf_datasets.PREFIX):
        path = hf_datasets.fetch_dataset(name)
    check_encoding(encoding)
    check_image_size(image_size)
    form = TextFormat(
        text_column=text_column,
        label_column=label_column,
        target_column=target_column,
        encoding=encoding,
        item_group=item_group,
        group_column=group_column,
        id_column=id_column,
        value_column=value_column,
        label_separator=label_separator,
        second_text_column=second_text_column,
        file_column=file_column,
    )
    _check_flags(form, speaker_field)
    beside = _files_beside(unlabeled=unlabeled, validation=validation, test=test)
    # Errors in data prepared by others are the user's to see; in our own they would be bugs.
    reading: Any = contextlib.nullcontext()
    group, own_files = item_group or group_column, False
    if name in BUILDERS:
        make = BUILDERS[name]
        group = group or make.ITEM_GROUP
        builder = prepare(lambda where: make(data_dir=where, file_format="array_record"), tfds_dir)
        text_column = _own_column(name, builder, "text_column", text_column)
        label_column = label_column and _own_column(name, builder, "label_column", label_column)
        if path.exists():
            tell_once(name, f"the built-in data set is read; ./{name} is the file or folder here")
    elif path.exists():
        if _TFDS_NAME.fullmatch(name) and (tfds_dir / name.replace(":", "/")).is_dir():
            tell_once(name, f"the file or folder here is read, not the TFDS data set in {tfds_dir}")
        if is_prepared(path) and not arrow.saved_splits(path):
            builder = open_checked(path.resolve())
            reading = tfds_safety.damage_as_user_error(path)
        elif files := conll.conll_files(path):
            _check_tagged(path, form)
            builder = conll.prepare_conll(path, files, encoding, beside, text_column)
            own_files, beside = True, {}
        else:
            builder = plain_files.prepare_files(
                path,
                form,
                FileNameFieldPositions(label_field, speaker_field),
                image_size,
                beside,
            )
            own_files, beside = True, {}
            group = plain_files.GROUP_FEATURE
            group = group if group in builder.info.features else ""
    elif name.startswith(("/", "./", "../", "~", "\\")) or name.endswith(_EXTENSIONS):
        raise UserError(f"{name}: no such file or folder")
    else:
        builder = _tfds_builder(name, tfds_dir)
        reading = tfds_safety.damage_as_user_error(name)
    for line in (builder.info.metadata or {}).get("notices", ()):
        tell_once(name, line)
    for flag, paths in beside.items():
        listed = ",".join(map(str, paths))
        raise UserError(f"--{flag}={listed}: is for data in files and folders, not for {name}")
    with reading:
        features = builder.info.features
        if own_files:
            columns = own_columns(features)
        else:
            form = dataclasses.replace(form, text_column=text_column, label_column=label_column)
            columns = find_all_columns(name, features, form)
        columns = dataclasses.replace(columns, group=group_feature(name, features, group, form))
        asked = bool(item_group or group_column)
        data = _dataset(name, builder, columns, image_size, form, in_fingerprint=asked)
    if image_size != DEFAULT_IMAGE_SIZE and data.modality in ("text", "audio"):
        what = "is for images and clips"
        tell_once(name, f"--image_size={image_size} {what}, and changes no {data.modality}")
    by_speaker = group == plain_files.GROUP_FEATURE
    called = item_group or group_column or ("speaker" if by_speaker else group)
    return dataclasses.replace(data, info=data.info | {"item_group": called or None})


def _check_flags(form: TextFormat, speaker_field: int | None) -> None:
    """Raises UserError if two flags exclude each other."""
    targets = {
        "label_column": form.label_column if form.label_column != "label" else "",
        "target_column": form.target_column,
        "value_column": form.value_column,
    }
    _check_one_of({flag: value for flag, value in targets.items() if value}, "what to learn")
    groups = {"item_group": form.item_group, "group_column": form.group_column}
    groups |= {"speaker_field": "" if speaker_field is None else str(speaker_field)}
    if form.group_column:
        _check_one_of({flag: value for flag, value in groups.items() if value}, "the groups")
    sets = {"label_separator": form.label_separator, "value_column": form.value_column}
    _check_one_of({flag: value for flag, value in sets.items() if value}, "what to learn")
    inputs = {"file_column": form.file_column, "second_text_column": form.second_text_column}
    _check_one_of({flag: value for flag, value in inputs.items() if value}, "the input")


def _check_one_of(given: dict[str, str], what: str) -> None:
    if len(given) > 1:
        said = " and ".join(f"--{flag}={value}" for flag, value in given.items())
        raise UserError(f"{said}: each says {what}; give one")


def _files_beside(*, unlabeled: str, validation: str, test: str) -> dict[str, list[pathlib.Path]]:
    """Returns the paths of files beside the data file, by the flag that names them.

    Raises:
        UserError: there is no such file or folder.
    """
    several = [unlabeled] if expand_path(unlabeled).exists() else unlabeled.split(",")
    given = {"test": [test], "validation": [validation], "unlabeled": several}
    beside = {
        flag: [expand_path(each) for each in names if each.strip()] for flag, names in given.items()
    }
    for flag, paths in beside.items():
        for path in paths:
            if not path.exists():
                raise UserError(f"--{flag}={path}: no such file or folder")
    return {flag: paths for flag, paths in beside.items() if paths}


def _check_tagged(path: pathlib.Path, form: TextFormat) -> None:
    """Raises UserError if a flag is given that files of words with tags cannot have."""
    flags = ("item_group", "group_column", "id_column", "value_column", "label_separator")
    flags += ("second_text_column", "file_column")
    for flag in flags:
        if getattr(form, flag):
            raise UserError(
                f"--{flag}={getattr(form, flag)}: {path} holds words with tags, which have no such "
                "column; it is for .csv, .tsv, .jsonl and .parquet files and for TFDS features"
            )


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
    name: str,
    builder: Any,
    columns: FeatureColumns,
    image_size: int,
    form: TextFormat,
    *,
    in_fingerprint: bool,
) -> Dataset:
    """Returns the data set of a builder; groups enter its fingerprint if `in_fingerprint`."""
    available = list(builder.info.splits)
    if "train" not in available:
        raise UserError(f"{name} has no train split; it has: {', '.join(available) or 'none'}")
    features = builder.info.features
    classes = tuple(features[columns.label].names) if columns.label else ()
    if columns.label_set:
        classes = tuple(features[columns.label_set].feature.names)
    target = _target(columns)
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
        if len(held_out) == 2 and not withheld and "files" not in metadata:
            tell_once(
                name, "its validation split is not read: settings are chosen on training data"
            )
        default = "by hash" if builder.info.name in BUILDERS else "official"
        how = metadata.get("split", default)
        if withheld:
            how = "official validation split, as the labels of the test split are withheld"
        if form.group_column:
            _check_groups_apart(name, train, test, form.group_column)
    elif target is None:
        how = metadata.get("split", "none")
        test = subset(train, [])
    else:
        how = f"by {form.group_column}" if form.group_column else "by hash"
        ids = _default_ids(builder, columns, train, spec, image_size)
        train, test = _split_here(name, train, ids, form.group_column)
    if target is not None:
        test = _without_unlabeled(name, train, test, tell="files" not in metadata)
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
        "background": metadata.get("background", spec and spec.background),
        "value_range": metadata.get("value_range", spec and spec.value_range),
        "rate": None if spec is None else spec.rate,
        "tags": features[columns.tags].feature.names if columns.tags else None,
        "target": target,
    }
    return Dataset(name, columns.modality, classes, train, test, metadata | info)


def _target(columns: FeatureColumns) -> str | None:
    """Returns what is to be learned, None if the data is unlabeled."""
    named = {
        "tags": columns.tags,
        "text": columns.target,
        "value": columns.value,
        "label_set": columns.label_set,
        "class": columns.label,
    }
    return next((target for target, feature in named.items() if feature), None)


def _split_here(
    name: str, train: Split, ids: tuple[str, ...], group_column: str
) -> tuple[Split, Split]:
    """Splits data without a test split: by group if a column names groups, else by hash.

    Unlabeled examples are training examples.
    """
    labels = None if train.labels is None else train.labels.tolist()
    if not group_column:
        _, test_idx = split_by_hash(ids, labels, TEST_SHARE)
    else:
        groups = train.groups(range(len(train)))
        if len(set(groups)) < 2:
            raise UserError(
                f"--group_column={group_column}: {name} has only the group {groups[0]!r}; at least "
                "two are needed"
            )
        classes = [(label,) if label >= 0 else () for label in labels] if labels else None
        _, test_idx = split_by_group(groups, TEST_SHARE, classes)
    test_idx = np.intersect1d(test_idx, _labeled_idx(train))
    return without(train, test_idx), subset(train, test_idx)


def _check_groups_apart(name: str, train: Split, test: Split, column: str) -> None:
    """Raises UserError if a group is in both splits of data that comes split."""
    sides = [set(each.groups(range(len(each)))) for each in (train, test)]
    shared = sorted(set.intersection(*sides) - {""})
    if shared:
        raise UserError(
            f"--group_column={column}: {name} comes split, and {len(shared)} groups, such as "
            f"{shared[0]!r}, are in both the train and the test split; --item_group={column} "
            "groups statistics alone"
        )


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
    """Returns the indices of a split's labeled examples; of all if none can be unlabeled."""
    if split.labels is not None:
        return np.flatnonzero(split.labels >= 0)
    if "values" in split.columns:
        return np.flatnonzero(~np.isnan(split.values(range(len(split)))))
    return np.arange(len(split))


def _without_unlabeled(name: str, train: Split, test: Split, *, tell: bool) -> Split:
    """Returns the test split without unlabeled examples; tells how many either split has."""
    train_idx, test_idx = _labeled_idx(train), _labeled_idx(test)
    if len(train_idx) < len(train) and tell:
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


def _fingerprint(train: Split, test: Split, *, groups: bool) -> str:
    digest = hashlib.sha256()
    for split in (train, test):
        digest.update("".join(split.ids).encode())
        digest.update(b"-" if split.labels is None else split.labels.astype("<i4").tobytes())
        for key, read in sorted(split.columns.items()):
            if key in _NOT_CONTENT or (key == "groups" and not groups):
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
