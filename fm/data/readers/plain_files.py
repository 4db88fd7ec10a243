"""Prepares any plain file or folder as a TFDS data set, once per content and options."""

import contextlib
import functools
import hashlib
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fm.data.media import MediaSpec, Modality, modality_for_path
from fm.data.patches import DEFAULT_IMAGE_SIZE
from fm.data.prepare import UserFilesBuilder, is_prepared, open_checked, prepare, tell_once
from fm.data.readers import archives
from fm.data.readers.folders import (
    FileNameFieldPositions,
    read_folder,
    walk,
    with_file_name_fields,
)
from fm.data.readers.text import (
    GZIP_EXTENSION,
    TEXT_EXTENSIONS,
    Example,
    TextFormat,
    read_text_file,
    to_nfc,
)
from fm.data.splitting import (
    array_digest,
    split_by_group,
    split_by_hash,
    text_digest,
)
from fm.errors import UserError
from fm.files import cache_dir

BUILDER_NAME = "plain_files"
GROUP_FEATURE = "group"
TEST_SHARE = 0.2
EXTENSIONS = (*TEXT_EXTENSIONS, GZIP_EXTENSION, *archives.ARCHIVE_EXTENSIONS)

# To be increased when the same files would be read differently.
_VERSION = "1.3.0"
_NO_FIELDS = FileNameFieldPositions()

# Digest (of images and clips at the default size, whatever their own, so that the order and a split
# by hash are the same), text or array, label, group.
LoadedExample = tuple[str, str | np.ndarray, str | None, str | None]


def prepare_files(
    path: pathlib.Path,
    form: TextFormat,
    fields: FileNameFieldPositions = _NO_FIELDS,
    image_size: int = DEFAULT_IMAGE_SIZE,
) -> Any:
    """Prepares a plain file, folder or archive as a TFDS data set and returns its builder.

    Its features are `text` or the name of another modality, `label` unless unlabeled, and `group`
    where a column or the speaker in the file names groups the examples. The split is that of the
    folder (see `read_folder`); else 20% test, by speaker if the file names give one, or by hash of
    the content. How the files were understood, where they left it open, is in the
    metadata as `notices`; how images or frames were made smaller is there as `shrunk`.

    Args:
        path: an existing file or folder.
        form: encoding and columns of text files.
        fields: the meaning of file names.
        image_size: largest side of images and frames in pixels.

    Raises:
        UserError: the files are not as expected; the message names the file.
    """
    # A fixed spelling: class names must not enter the key.
    fields_key = f"Fields(label={fields.label!r}, speaker={fields.speaker!r})"
    sizes = () if image_size == DEFAULT_IMAGE_SIZE else (f"image_size={image_size}",)
    digest = content_digest(path, _VERSION, *vars(form).values(), fields_key, *sizes)
    data_dir = cache_dir() / "files" / digest
    prepared = data_dir / BUILDER_NAME / _VERSION
    if is_prepared(prepared):
        return open_checked(prepared)
    notices: list[str] = []
    try:
        return _prepare(path, form, fields, image_size, notices, data_dir)
    except UserError:
        for line in notices:
            tell_once(str(path), line)
        raise


def _prepare(
    path: pathlib.Path,
    form: TextFormat,
    fields: FileNameFieldPositions,
    image_size: int,
    notices: list[str],
    data_dir: pathlib.Path,
) -> Any:
    target_column = form.target_column
    is_archive = path.is_file() and archives.is_archive(path)
    unpacked = archives.unpacked_archive(path) if is_archive else contextlib.nullcontext(path)
    with unpacked as inside:
        if inside.is_dir():
            by_split = read_folder(inside, form, fields, notices)
        else:
            texts = read_text_file(path, form, notices)
            by_split = {"all": with_file_name_fields(texts, fields)}
        modality = _common_modality(inside, by_split)
        _check_item_groups(inside, by_split, form)
        spec, id_spec, shrunk = None, None, None
        if modality:
            measures = _measures(by_split, modality)
            modality = modality.with_image_size(image_size)
            spec, id_spec, shrunk = _common_specs(measures, modality, notices)
        loaded = {
            split: [_load(example, modality, spec, id_spec) for example in examples]
            for split, examples in by_split.items()
        }
        if modality:
            notices += _images_below_classes(by_split, modality)
            notices += _equal_once_converted(by_split, loaded, modality)
        if not target_column:
            loaded = _with_normalized_labels(inside, loaded, notices)
        if target_column and any(
            label is None for own in loaded.values() for _, _, label, _ in own
        ):
            raise UserError(f"{path}: no column {target_column!r} with the target text")
        how = "official"
        if "all" in loaded:
            groups = [example.group for example in by_split["all"]]
            loaded, how = _split(inside, loaded["all"], groups, by_label=not target_column)
        classes = [] if target_column else _class_names(inside, loaded)
    label_feature = "target" if target_column else "label"
    content_feature = modality.name if modality else "text"
    codec = modality.codec if modality else None
    features: dict[str, Any] = {"text": tfds.features.Text()}
    metadata: dict[str, Any] = {"split": how, "notices": notices}
    if modality and modality.codec and spec:
        features = {content_feature: modality.codec.tfds_feature(spec)}
        metadata |= {"rate": spec.rate} if spec.rate else {}
        metadata |= {"shrunk": shrunk} if shrunk else {}
    if classes:
        features["label"] = tfds.features.ClassLabel(names=classes)
    elif target_column:
        features["target"] = tfds.features.Text()
    grouped = all(group is not None for own in loaded.values() for *_, group in own)
    if grouped:
        features[GROUP_FEATURE] = tfds.features.Text()

    def examples(split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for digest, content, label, group in loaded[split]:
            stored = content if codec is None else codec.encode(np.asarray(content))
            example = {content_feature: stored}
            if label is not None:
                example[label_feature] = label
            yield digest, example | ({GROUP_FEATURE: group} if grouped else {})

    splits = {split: functools.partial(examples, split) for split in loaded}
    return prepare(
        lambda where: UserFilesBuilder(
            name=BUILDER_NAME,
            version=_VERSION,
            path=path,
            splits=splits,
            features=features,
            metadata=metadata,
            data_dir=where,
        ),
        data_dir,
    )


def content_digest(path: pathlib.Path, *options: Any) -> str:
    """Returns the cache key of prepared files: a digest of options, names and contents.

    It covers every file that a reader may read, also behind links.
    """
    digest = hashlib.sha256(repr((options, path.name)).encode())
    paths = walk(path, whole_examples=False) if path.is_dir() else [path]
    for file in paths:
        if not file.is_file():
            continue
        digest.update(repr(os.fspath(file.relative_to(path.parent))).encode())
        try:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error
    return digest.hexdigest()[:32]


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
        and example.label not in (None, example.content.parent.name)
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
        for example, (_, array, *_) in zip(examples, loaded[split], strict=True):
            assert isinstance(example.content, pathlib.Path) and not isinstance(array, str)
            sources.setdefault(array_digest(array), []).append(example.content)
    shared = [paths for paths in sources.values() if len(paths) > 1]
    distinct = [len({_source_digest(path) for path in paths}) for paths in shared]
    equal = sum(count for count in distinct if count > 1)
    total = len(sources) - len(shared) + sum(distinct)
    what = f"different {modality.noun}s are equal to another once converted"
    return [f"{equal} of {total} {what}"] if equal else []


def _source_digest(path: pathlib.Path) -> str:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    parts = [hashlib.sha256(file.read_bytes()).digest() for file in files if file.is_file()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _open(content: str | pathlib.Path, modality: Modality) -> Any:
    assert isinstance(content, pathlib.Path) and modality.codec is not None
    try:
        return modality.codec.open(content)
    except OSError as error:
        raise UserError(f"{content} is a broken {modality.noun}: {error}") from error


def _load(
    example: Example,
    modality: Modality | None,
    spec: MediaSpec | None,
    id_spec: MediaSpec | None,
) -> LoadedExample:
    group = example.item_group or example.group
    if modality is None or modality.codec is None or spec is None or id_spec is None:
        text = str(example.content)
        return text_digest(text), text, example.label, group
    opened = _open(example.content, modality)
    array = modality.codec.to_array(opened, spec)
    same = id_spec == spec
    identified = array if same else modality.codec.to_array(opened, id_spec)
    return array_digest(identified), array, example.label, group


def _check_item_groups(
    path: pathlib.Path, by_split: dict[str, list[Example]], form: TextFormat
) -> None:
    """Raises UserError if a column of groups is asked for and some examples have no columns."""
    ungrouped = (each.item_group is None for own in by_split.values() for each in own)
    if form.group_column and any(ungrouped):
        raise UserError(
            f"--item_group={form.group_column}: {path} has examples without columns; it is for "
            ".csv, .tsv and .jsonl files (--speaker_field reads groups from file names)"
        )


def _with_normalized_labels(
    path: pathlib.Path, loaded: dict[str, list[LoadedExample]], notices: list[str]
) -> dict[str, list[LoadedExample]]:
    """Puts labels on one line (TFDS stores class names one per line) and in Unicode's NFC."""
    spellings: dict[str, set[str]] = {}
    for label in {each[2] for own in loaded.values() for each in own if each[2] is not None}:
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
    return {
        split: [
            (digest, content, label and normalized[label], group)
            for digest, content, label, group in own
        ]
        for split, own in loaded.items()
    }


def _split(
    path: pathlib.Path, loaded: list[LoadedExample], groups: list[str | None], *, by_label: bool
) -> tuple[dict[str, list[LoadedExample]], str]:
    """Splits by speaker or by hash, and returns which.

    Every label needs two different examples, one for each side.
    """
    labels = [label if by_label else None for _, _, label, _ in loaded]
    digests_by_label: dict[str | None, set[str]] = {}
    for label, (digest, *_) in zip(labels, loaded, strict=True):
        digests_by_label.setdefault(label, set()).add(digest)
    for label, digests in digests_by_label.items():
        if len(digests) < 2:
            subject = "holds" if label is None else f"label {label!r} has"
            count = labels.count(label)
            equal = f" ({count} that are equal as they are read)" if count > 1 else ""
            raise UserError(
                f"{path}: {subject} only one example{equal}; at least two different are needed"
            )
    speakers = [group for group in groups if group is not None]
    if speakers:
        if len(set(speakers)) < 2:
            raise UserError(f"{path}: {speakers[0]!r} is the only speaker; at least two are needed")
        how = "by speaker"
        train, test = split_by_group(speakers, TEST_SHARE)
    else:
        how = "by hash"
        digests = [digest for digest, *_ in loaded]
        number = {label: index for index, label in enumerate(digests_by_label)}
        train, test = split_by_hash(digests, [number[label] for label in labels], TEST_SHARE)
    return {"train": [loaded[i] for i in train], "test": [loaded[i] for i in test]}, how


def _class_names(path: pathlib.Path, loaded: dict[str, list[LoadedExample]]) -> list[str]:
    """Returns the label names in order (whole numbers by value), [] if unlabeled."""
    labels = {split: {label for _, _, label, _ in own} for split, own in loaded.items()}
    names = {label for label in labels["train"] if label is not None}
    if None in labels["test"] and names:
        raise UserError(f"{path}: the train split has labels, the test split has none")
    unseen = sorted(str(label) for label in labels["test"] - labels["train"])
    if unseen:
        raise UserError(f"{path}: label {unseen[0]!r} occurs in the test split only")
    if len(names) == 1:
        raise UserError(f"{path}: label {names.pop()!r} is the only one; at least two are needed")
    if all(re.fullmatch(r"[+-]?\d{1,18}", name) for name in names):
        return sorted(names, key=int)
    return sorted(names)
