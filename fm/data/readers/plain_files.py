"""Prepares any plain files or folders as a TFDS data set, once per content and options."""

import dataclasses
import functools
import hashlib
import math
import pathlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fm.data.media import MediaSpec, Modality, modality_for_path
from fm.data.patches import DEFAULT_IMAGE_SIZE
from fm.data.prepare import UserFilesBuilder, is_prepared, open_checked, prepare, tell_once
from fm.data.readers import archives
from fm.data.readers.examples import Example, Label, ReadLog, TextFormat, to_nfc
from fm.data.readers.folders import FileNameFieldPositions
from fm.data.readers.label_splits import LoadedExample, classes_of, split_examples
from fm.data.readers.sources import (
    content_digest,
    named_file_digests,
    read_sources,
    source_digest,
)
from fm.data.readers.text import GZIP_EXTENSION, TEXT_EXTENSIONS, text_extension
from fm.data.splitting import array_digest, text_digest
from fm.errors import UserError
from fm.files import cache_dir

BUILDER_NAME = "plain_files"
GROUP_FEATURE = "group"
EXTENSIONS = (*TEXT_EXTENSIONS, GZIP_EXTENSION, *archives.ARCHIVE_EXTENSIONS)

# To be increased when the same files would be read differently.
_VERSION = "1.4.2"
# Of decoded images, sounds and clips.
_MAX_DECODED_BYTES = 2**28
_NO_FIELDS = FileNameFieldPositions()
# Targets by their name in a data set's info; "class" and "label_set" have classes.
TARGETS = ("class", "label_set", "value", "text")
# Flags of files that lie beside the data file, by the split that they are.
BESIDE = ("unlabeled", "validation", "test")


def prepare_files(
    path: pathlib.Path,
    form: TextFormat,
    fields: FileNameFieldPositions = _NO_FIELDS,
    image_size: int = DEFAULT_IMAGE_SIZE,
    beside: Mapping[str, Sequence[pathlib.Path]] | None = None,
) -> Any:
    """Prepares plain files, folders or archives as a TFDS data set and returns its builder.

    Its features are `text` or the name of another modality; `label`, `label_set`, `value` or
    `target` unless unlabeled; `group` where a column or the speaker in the file names groups the
    examples; `second_text` of pairs; `row_id`, `file` (index into the `files` of the metadata) and
    `position` (place in the order of the files). Unlabeled examples have the label -1, the label
    set [-1], the value NaN or the target "".

    The split is that of the folder (see `read_folder`) or of the files beside it. Else 20% of the
    labeled examples are the test split: by group if a column or the file names give one, or by hash
    of the content; without any label all are training examples. A validation split joins the
    training examples if there is a test split, and takes its place if there is none.

    How the files were understood, where they left it open, is in the metadata as `notices`; how
    images or frames were made smaller is there as `shrunk`; and how many rows of each file are
    training examples, test items or ignored, as `files`.

    Args:
        path: an existing file or folder.
        form: encoding and columns of text files and tables.
        fields: the meaning of file names.
        image_size: largest side of images and frames in pixels.
        beside: further files or folders by split: "unlabeled", "validation" or "test".

    Raises:
        UserError: the files are not as expected; the message names the file.
    """
    sources = [("all", path)]
    sources += [(split, each) for split, paths in (beside or {}).items() for each in paths]
    # A fixed spelling: class names must not enter the key.
    fields_key = f"Fields(label={fields.label!r}, speaker={fields.speaker!r})"
    sizes = () if image_size == DEFAULT_IMAGE_SIZE else (f"image_size={image_size}",)
    digest = content_digest(path, _VERSION, *vars(form).values(), fields_key, *sizes)
    if len(sources) > 1 or form.file_column:
        parts = [digest, *(f"{split} {content_digest(each)}" for split, each in sources[1:])]
        if form.file_column:
            parts += named_file_digests(sources, form, fields)
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    data_dir = cache_dir() / "files" / digest
    prepared = data_dir / BUILDER_NAME / _VERSION
    if is_prepared(prepared):
        return open_checked(prepared)
    notices: list[str] = []
    try:
        return _prepare(sources, form, fields, image_size, notices, data_dir)
    except UserError:
        for line in notices:
            tell_once(str(path), line)
        raise


def _prepare(
    sources: Sequence[tuple[str, pathlib.Path]],
    form: TextFormat,
    fields: FileNameFieldPositions,
    image_size: int,
    notices: list[str],
    data_dir: pathlib.Path,
) -> Any:
    path = sources[0][1]
    with read_sources(sources, form, fields, notices) as (by_split, log):
        return _prepare_examples(path, by_split, log, form, image_size, notices, data_dir)


def _prepare_examples(
    path: pathlib.Path,
    by_split: dict[str, list[Example]],
    log: ReadLog,
    form: TextFormat,
    image_size: int,
    notices: list[str],
    data_dir: pathlib.Path,
) -> Any:
    """Prepares the examples of all files, which are still there, as archives are unpacked."""
    modality = _common_modality(path, by_split)
    _check_item_groups(path, by_split, form)
    spec, id_spec, shrunk = None, None, None
    if modality:
        measures = _measures(by_split, modality)
        modality = modality.with_image_size(image_size)
        spec, id_spec, shrunk = _common_specs(measures, modality, notices)
    keep = _fit_in_memory(by_split, modality, spec)
    loaded = {
        split: [_load(example, modality, spec, id_spec, keep=keep) for example in examples]
        for split, examples in by_split.items()
    }
    if modality:
        notices += _images_below_classes(by_split, modality)
        notices += _equal_once_converted(by_split, loaded, modality)
    target = _target(path, loaded, form)
    for flag in ("target_column", "value_column"):
        if getattr(form, flag) and target is None:
            name = getattr(form, flag)
            raise UserError(f"--{flag}={name}: {path} has no example with anything in that column")
    if target in ("class", "label_set"):
        loaded = _with_normalized_labels(path, loaded, notices)
    splits, how = split_examples(path, loaded, form, target, log)
    classes = _class_names(path, splits) if target in ("class", "label_set") else []
    _tell_repeated_ids(splits, form, notices)
    files = _count_files(splits, log)
    positions = {
        id(each): place
        for place, each in enumerate(each for own in loaded.values() for each in own)
    }
    metadata: dict[str, Any] = {"split": how, "notices": notices, "files": files}
    metadata |= {"target": target}
    if modality and modality.codec and spec:
        metadata |= {"rate": spec.rate} if spec.rate else {}
        # Of the conversion, which a saved model applies to new examples.
        metadata |= {"background": spec.background, "value_range": spec.value_range}
        metadata |= {"shrunk": shrunk} if shrunk else {}
    grouped = any(each.group is not None for own in splits.values() for each in own)
    paired = any(each.source.second_text for own in splits.values() for each in own)
    features = _features(modality, spec, target, classes, grouped=grouped, paired=paired)
    file_index = {name: index for index, name in enumerate(_file_names(splits, log))}

    def examples(split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for each in splits[split]:
            example: dict[str, Any] = {
                "row_id": each.source.row_id.encode("utf-8", "replace").decode(),
                "file": file_index[each.source.file],
                "position": positions[id(each)],
            }
            if modality is None or modality.codec is None:
                example["text"] = _first_text(each)
            else:
                content = each.content
                if content is None:
                    assert spec is not None
                    content = modality.codec.to_array(_open(each.source.content, modality), spec)
                example[modality.name] = modality.codec.encode(np.asarray(content))
            if target:
                example[_TARGET_FEATURES[target]] = _stored_label(each.label, target)
            if grouped:
                example[GROUP_FEATURE] = each.group or ""
            if paired:
                example["second_text"] = each.source.second_text or ""
            yield each.digest, example

    return prepare(
        lambda where: UserFilesBuilder(
            name=BUILDER_NAME,
            version=_VERSION,
            path=path,
            splits={split: functools.partial(examples, split) for split in splits},
            features=features,
            metadata=metadata,
            data_dir=where,
        ),
        data_dir,
    )


_TARGET_FEATURES = {
    "class": "label",
    "label_set": "label_set",
    "value": "value",
    "text": "target",
}


def _features(
    modality: Modality | None,
    spec: MediaSpec | None,
    target: str | None,
    classes: list[str],
    *,
    grouped: bool,
    paired: bool,
) -> dict[str, Any]:
    """Returns the TFDS features of prepared files."""
    features: dict[str, Any] = {"text": tfds.features.Text()}
    if modality and modality.codec and spec:
        features = {modality.name: modality.codec.tfds_feature(spec)}
    of_target = {
        "class": lambda: tfds.features.ClassLabel(names=classes),
        "label_set": lambda: tfds.features.Sequence(tfds.features.ClassLabel(names=classes)),
        "value": lambda: tfds.features.Scalar(np.float64),
        "text": tfds.features.Text,
    }
    if target:
        features[_TARGET_FEATURES[target]] = of_target[target]()
    if grouped:
        features[GROUP_FEATURE] = tfds.features.Text()
    if paired:
        features["second_text"] = tfds.features.Text()
    return features | {
        "row_id": tfds.features.Text(),
        "file": tfds.features.Scalar(np.int32),
        "position": tfds.features.Scalar(np.int64),
    }


def _first_text(example: LoadedExample) -> str:
    """Returns the text of an example, the first one of a pair."""
    text, second = str(example.content), example.source.second_text
    return text.removesuffix(f"\n\n{second}") if second else text


def _stored_label(label: Label | None, target: str) -> Any:
    if label is not None:
        return list(label) if isinstance(label, tuple) else label
    return {"class": -1, "label_set": [-1], "value": math.nan, "text": ""}[target]


def _target(
    path: pathlib.Path, loaded: dict[str, list[LoadedExample]], form: TextFormat
) -> str | None:
    """Returns which of `TARGETS` the labels are, None if no example has one.

    Raises:
        UserError: some are classes and some are label sets.
    """
    kinds = {
        type(each.label): each.source
        for own in loaded.values()
        for each in own
        if each.label is not None
    }
    if not kinds:
        return None
    if len(kinds) > 1:
        first, second = list(kinds.values())[:2]
        raise UserError(
            f"{path}: {first.row_id} has one class and {second.row_id} has a list of them, or the "
            "other way round; a data set has either"
        )
    if form.value_column:
        return "value"
    if form.target_column:
        return "text"
    return "label_set" if tuple in kinds else "class"


def _common_modality(path: pathlib.Path, by_split: dict[str, list[Example]]) -> Modality | None:
    """Returns the modality of all examples, None for text."""
    found: dict[Modality | None, str | pathlib.Path] = {}
    for content in (example.content for examples in by_split.values() for example in examples):
        modality = modality_for_path(content) if isinstance(content, pathlib.Path) else None
        found.setdefault(modality, content)
    if len(found) > 1:
        nouns = sorted(f"{modality.noun if modality else 'text'}s" for modality in found)
        named = [f"{one} is among the {m.noun}s" for m, one in found.items() if m]
        frames = "; a clip has two frames or more" if {"clips", "images"} <= set(nouns) else ""
        raise UserError(
            f"{path} mixes {' and '.join(nouns)}; one is needed ({', '.join(named)}{frames})"
        )
    return next(iter(found), None)


def _measures(by_split: dict[str, list[Example]], modality: Modality) -> list[Any]:
    assert modality.codec is not None
    return [
        modality.codec.measure(_open(example.content, modality))
        for examples in by_split.values()
        for example in examples
    ]


def _common_specs(
    measures: list[Any], modality: Modality, notices: list[str]
) -> tuple[MediaSpec, MediaSpec, dict[str, Any] | None]:
    """Returns the spec, that at the default image size, and how images shrink; notices tell."""
    codec = modality.codec
    assert codec is not None
    spec = codec.common_spec(measures)
    notices += codec.describe_changes(measures, spec)
    default = codec.with_image_size(DEFAULT_IMAGE_SIZE).common_spec(measures)
    return spec, default, codec.shrunk(measures, spec)


def _images_below_classes(by_split: dict[str, list[Example]], modality: Modality) -> list[str]:
    """Returns a line that tells of images in subfolders of class folders, which may be frames."""
    folders = Counter(
        example.content.parent
        for examples in by_split.values()
        for example in examples
        if isinstance(example.content, pathlib.Path)
        and example.label != example.content.parent.name
        and example.label in example.content.parts  # else a table or the file's name gave it
    )
    if modality.name != "image" or max(folders.values(), default=0) < 2:
        return []
    return [
        f"{folders.total()} images in {len(folders)} folders below the classes, such as "
        f"{min(folders).name}, are each an example of its own, not frames of clips (whose names "
        "differ in the number of the frame alone)"
    ]


def _equal_once_converted(
    by_split: dict[str, list[Example]], loaded: dict[str, list[LoadedExample]], modality: Modality
) -> list[str]:
    """Returns a line that tells how many different files became equal examples."""
    sources: dict[str, list[pathlib.Path]] = {}
    for split, examples in by_split.items():
        for example, each in zip(examples, loaded[split], strict=True):
            assert isinstance(example.content, pathlib.Path)
            sources.setdefault(each.stored_digest, []).append(example.content)
    shared = [paths for paths in sources.values() if len(paths) > 1]
    distinct = [len({source_digest(path) for path in paths}) for paths in shared]
    equal = sum(count for count in distinct if count > 1)
    total = len(sources) - len(shared) + sum(distinct)
    what = f"different {modality.noun}s are equal to another once converted"
    return [f"{equal} of {total} {what}"] if equal else []


def _open(content: str | pathlib.Path, modality: Modality) -> Any:
    assert isinstance(content, pathlib.Path) and modality.codec is not None
    try:
        return modality.codec.open(content)
    except OSError as error:
        raise UserError(f"{content} is a broken {modality.noun}: {error}") from error


def _fit_in_memory(
    by_split: dict[str, list[Example]], modality: Modality | None, spec: MediaSpec | None
) -> bool:
    """Returns whether the decoded examples are kept; more are decoded again when stored."""
    if modality is None or modality.codec is None or spec is None:
        return True
    count = sum(map(len, by_split.values()))
    size = math.prod(spec.shape) * np.dtype(modality.codec.dtype).itemsize
    return count * size <= _MAX_DECODED_BYTES


def _load(
    example: Example,
    modality: Modality | None,
    spec: MediaSpec | None,
    id_spec: MediaSpec | None,
    *,
    keep: bool,
) -> LoadedExample:
    group = example.item_group or example.group
    if modality is None or modality.codec is None or spec is None or id_spec is None:
        text = str(example.content)
        return LoadedExample(text_digest(text), text, example.label, group, example)
    opened = _open(example.content, modality)
    array = modality.codec.to_array(opened, spec)
    same = id_spec == spec
    identified = array if same else modality.codec.to_array(opened, id_spec)
    digest, stored = array_digest(identified), array_digest(array)
    kept = array if keep else None
    return LoadedExample(digest, kept, example.label, group, example, stored)


def _check_item_groups(
    path: pathlib.Path, by_split: dict[str, list[Example]], form: TextFormat
) -> None:
    """Raises UserError if a column of groups is asked for and some examples have no columns."""
    for flag, field in (("item_group", "item_group"), ("group_column", "group")):
        column = getattr(form, flag)
        ungrouped = any(
            getattr(each, field) is None
            for split, own in by_split.items()
            for each in own
            if split != "unlabeled"
        )
        if column and ungrouped:
            raise UserError(
                f"--{flag}={column}: {path} has examples without columns; it is for .csv, .tsv, "
                ".jsonl and .parquet files (--speaker_field reads groups from file names)"
            )


def _with_normalized_labels(
    path: pathlib.Path, loaded: dict[str, list[LoadedExample]], notices: list[str]
) -> dict[str, list[LoadedExample]]:
    """Puts labels on one line (TFDS stores class names one per line) and in Unicode's NFC."""
    spellings: dict[str, set[str]] = {}
    found = {each for own in loaded.values() for one in own for each in classes_of(one.label)}
    for label in found:
        if label != label.encode("utf-8", "replace").decode():
            raise UserError(f"{path}: the class {label!r} has a name that is not UTF-8")
        spellings.setdefault(to_nfc(" ".join(label.split())), set()).add(label)
    for name, several in sorted(spellings.items()):
        if len(several) > 1:
            notices.append(
                f"{len(several)} spellings of the label {name!r}, which differ in white space or "
                "Unicode form alone, are one class"
            )
    normalized = {label: name for name, several in spellings.items() for label in several}

    def normal(label: Label | None) -> Label | None:
        if isinstance(label, tuple):
            return tuple(sorted({normalized[each] for each in label}))
        return normalized[label] if isinstance(label, str) else label

    return {
        split: [dataclasses.replace(each, label=normal(each.label)) for each in own]
        for split, own in loaded.items()
    }


def _tell_repeated_ids(
    splits: dict[str, list[LoadedExample]], form: TextFormat, notices: list[str]
) -> None:
    if not form.id_column:
        return
    counts = Counter(each.source.row_id for own in splits.values() for each in own)
    repeated = sorted(row_id for row_id, count in counts.items() if count > 1)
    if repeated:
        notices.append(
            f"{len(repeated)} ids of the column {form.id_column!r} stand in several rows, such as "
            f"{repeated[0]!r}"
        )


def _count_files(splits: dict[str, list[LoadedExample]], log: ReadLog) -> list[dict[str, Any]]:
    """Returns the name of each file, its number of rows, and those ignored by reason."""
    read = Counter(each.source.file for own in splits.values() for each in own)
    return [
        {
            "name": name.encode("utf-8", "replace").decode(),
            "rows": read[name] + log.ignored.get(name, Counter()).total(),
            "ignored": dict(log.ignored.get(name, {})),
            "noun": "rows" if text_extension(pathlib.Path(name)) else "examples",
        }
        for name in _file_names(splits, log)
    ]


def _file_names(splits: dict[str, list[LoadedExample]], log: ReadLog) -> list[str]:
    read = (each.source.file for own in splits.values() for each in own)
    return list(dict.fromkeys([*read, *log.ignored]))


def _class_names(path: pathlib.Path, splits: dict[str, list[LoadedExample]]) -> list[str]:
    """Returns the label names in order (whole numbers by value)."""
    names, tested = (
        {name for each in splits.get(split, []) for name in classes_of(each.label)}
        for split in ("train", "test")
    )
    if unseen := sorted(tested - names):
        raise UserError(f"{path}: label {unseen[0]!r} occurs in the test split only")
    if len(names) == 1:
        raise UserError(f"{path}: label {names.pop()!r} is the only one; at least two are needed")
    if all(re.fullmatch(r"[+-]?\d{1,18}", name) for name in names):
        return sorted(names, key=int)
    return sorted(names)
