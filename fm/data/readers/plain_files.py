"""Any plain file or folder becomes a TFDS data set, prepared once per content and options."""

import contextlib
import hashlib
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fm.data import media
from fm.data.media import ArraySpec, ModalityCodec
from fm.data.prepare import is_prepared, open_checked, prepare
from fm.data.readers import archives
from fm.data.readers.folders import FileNameFields, read_folder, with_file_name_fields
from fm.data.readers.text import TEXT_EXTENSIONS as TEXT_ENDINGS
from fm.data.readers.text import Example, read_text_file
from fm.data.splitting import (
    array_digest,
    split_by_group,
    split_by_hash,
    text_digest,
    with_unique_keys,
)
from fm.errors import UserError
from fm.files import cache_dir

__all__ = ["BUILDER_NAME", "EXTENSIONS", "prepare_files"]

BUILDER_NAME = "plain_files"
TEST_SHARE = 0.2
# Goes up when the same files would be read differently.
_VERSION = "1.0.0"
EXTENSIONS = (*TEXT_ENDINGS, *archives.ARCHIVE_EXTENSIONS)
_NO_FIELDS = FileNameFields()

# Digest, text or array, label.
LoadedExample = tuple[str, str | np.ndarray, str | None]


def prepare_files(
    path: pathlib.Path,
    *,
    text_column: str,
    label_column: str,
    target_column: str = "",
    fields: FileNameFields = _NO_FIELDS,
) -> Any:
    """Returns a prepared TFDS builder with the examples of a file, folder or archive of a folder.

    Its features are `text` or a medium's, and `label` unless unlabelled. The split is the one
    that the folder makes (`fm.data.readers.folders.read_folder`), else 20% test by speaker, where the
    names of the files say who speaks, or by hash of the content.

    Args:
        path: an existing file or folder.
        text_column: the CSV column or JSON key of the text.
        label_column: that of the label; "" for unlabelled data.
        target_column: that of a text to write, which stands in the label's stead.
        fields: what the files' names say.

    Raises:
        UserError: something about the files is wrong; the message names the file.
    """
    columns = text_column, label_column, target_column
    digest = content_digest(path, _VERSION, columns, repr(fields))
    label_column = target_column or label_column
    home = cache_dir() / "files" / digest
    done = home / BUILDER_NAME / _VERSION
    if is_prepared(done):
        return open_checked(done)
    archive = path.is_file() and archives.is_archive(path)
    with archives.unpacked_archive(path) if archive else contextlib.nullcontext(path) as inside:
        if inside.is_dir():
            by_split = read_folder(inside, text_column, label_column, fields)
        else:
            by_split = {
                "all": with_file_name_fields(
                    read_text_file(path, text_column, label_column), fields
                )
            }
        medium = _medium(inside, by_split)
        form = _form(path, by_split, medium) if medium else None
        loaded = {
            split: [_load(each, medium, form) for each in own] for split, own in by_split.items()
        }
        if not target_column:
            loaded = {split: _named(inside, own) for split, own in loaded.items()}
        if target_column and any(label is None for own in loaded.values() for _, _, label in own):
            raise UserError(f"{path}: no column {target_column!r} with the text to write")
        how = "official"
        if "all" in loaded:
            groups = [example.group for example in by_split["all"]]
            loaded, how = _split(inside, loaded["all"], groups, by_label=not target_column)
        classes = [] if target_column else _classes(inside, loaded)
    return prepare(
        lambda where: PlainFiles(
            loaded=loaded,
            medium=medium,
            form=form,
            classes=classes,
            beside="target" if target_column else "label",
            described=(f"Files of {display_name(path)}.", how),
            data_dir=where,
            file_format="array_record",
        ),
        home,
    )


class PlainFiles(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Features: text, or a medium's of one form; label, a class name, or target, a text, if any."""

    name = BUILDER_NAME
    VERSION = tfds.core.Version(_VERSION)
    pkg_dir_path = None

    def __init__(
        self,
        *,
        loaded: dict[str, list[LoadedExample]],
        medium: ModalityCodec | None,
        form: ArraySpec | None,
        classes: list[str],
        beside: str,
        described: tuple[str, str],
        **options: Any,
    ):
        self._loaded, self._classes, self._beside = loaded, classes, beside
        self._medium, self._form = medium, form
        self._description, self._how = described
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {}
        metadata = {"split": self._how}
        if self._medium and self._form:
            features[self._medium.name] = self._medium.tfds_feature(self._form)
            metadata |= {"rate": self._form.rate} if self._form.rate else {}
        else:
            features["text"] = tfds.features.Text()
        if self._classes:
            features["label"] = tfds.features.ClassLabel(names=self._classes)
        elif self._beside == "target":
            features["target"] = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._description,
            license="not stated: your own files",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(metadata),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(own) for split, own in self._loaded.items()}

    def _generate_examples(self, loaded: Iterable[LoadedExample]) -> Iterator[tuple[str, dict]]:
        return with_unique_keys(
            (digest, self._features(content, label)) for digest, content, label in loaded
        )

    def _features(self, content: str | np.ndarray, label: str | None) -> dict[str, Any]:
        if isinstance(content, str):
            features: dict[str, Any] = {"text": content}
        else:
            assert self._medium is not None
            features = {self._medium.name: self._medium.encode(content)}
        return features if label is None else features | {self._beside: label}


def display_name(path: pathlib.Path) -> str:
    """Returns the name of a file; where it is no Unicode, which Linux allows, as far as it is."""
    return path.name.encode("utf-8", "replace").decode()


def content_digest(path: pathlib.Path, *options: Any) -> str:
    """Names prepared data after the files' names and content, and how they are read."""
    digest = hashlib.sha256(repr((options, path.name)).encode())
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in paths:
        if not file.is_file():
            continue
        digest.update(repr(os.fspath(file.relative_to(path.parent))).encode())
        try:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error
    return digest.hexdigest()[:32]


def _medium(path: pathlib.Path, by_split: dict[str, list[Example]]) -> ModalityCodec | None:
    """Returns the one format of all examples, None for text."""
    found: dict[ModalityCodec | None, str | pathlib.Path] = {}
    for content in (example.content for examples in by_split.values() for example in examples):
        medium = media.codec_for_path(content) if isinstance(content, pathlib.Path) else None
        found.setdefault(medium, content)
    if len(found) > 1:
        nouns = sorted(f"{medium.noun if medium else 'text'}s" for medium in found)
        named = [f"{each} is among the {medium.noun}s" for medium, each in found.items() if medium]
        frames = "; a clip has two frames or more" if {"clips", "images"} <= set(nouns) else ""
        raise UserError(
            f"{path} mixes {' and '.join(nouns)}; one is needed ({', '.join(named)}{frames})"
        )
    return next(iter(found), None)


def _form(
    path: pathlib.Path, by_split: dict[str, list[Example]], medium: ModalityCodec
) -> ArraySpec:
    """Returns the common form; what it changes about the examples is said on stderr."""
    measures = [
        medium.measure(_open(example.content, medium))
        for examples in by_split.values()
        for example in examples
    ]
    form = medium.common_spec(measures)
    for line in medium.describe_changes(measures, form):
        print(f"{path}: {line}", file=sys.stderr, flush=True)
    return form


def _open(content: str | pathlib.Path, medium: ModalityCodec) -> Any:
    assert isinstance(content, pathlib.Path)
    try:
        return medium.open(content)
    except OSError as error:
        raise UserError(f"{content} is a broken {medium.noun}: {error}") from error


def _load(example: Example, medium: ModalityCodec | None, form: ArraySpec | None) -> LoadedExample:
    if medium is None or form is None:
        text = str(example.content)
        return text_digest(text), text, example.label
    array = medium.to_array(_open(example.content, medium), form)
    return array_digest(array), array, example.label


def _named(path: pathlib.Path, loaded: Iterable[LoadedExample]) -> list[LoadedExample]:
    """Labels as names of classes, which TFDS keeps a line each, in UTF-8."""
    named = []
    for digest, content, label in loaded:
        if label is not None and label != label.encode("utf-8", "replace").decode():
            raise UserError(f"{path}: the class {label!r} has a name that is not UTF-8")
        named.append((digest, content, label if label is None else " ".join(label.split())))
    return named


def _split(
    path: pathlib.Path, loaded: list[LoadedExample], groups: list[str | None], *, by_label: bool
) -> tuple[dict[str, list[LoadedExample]], str]:
    """Splits by speaker or by hash; returns how, too.

    Every label needs two different examples, one for each side.
    """
    labels = [label if by_label else None for _, _, label in loaded]
    different: dict[str | None, set[str]] = {}
    for label, (digest, _, _) in zip(labels, loaded, strict=True):
        different.setdefault(label, set()).add(digest)
    for label, digests in different.items():
        if len(digests) < 2:
            named = "holds" if label is None else f"label {label!r} has"
            raise UserError(f"{path}: {named} only one example; at least two different are needed")
    speakers = [group for group in groups if group is not None]
    if speakers:
        if len(set(speakers)) < 2:
            raise UserError(f"{path}: {speakers[0]!r} is the only speaker; at least two are needed")
        how = "by speaker"
        train, test = split_by_group(speakers, TEST_SHARE)
    else:
        how = "by hash"
        digests = [digest for digest, _, _ in loaded]
        number = {label: index for index, label in enumerate(different)}
        train, test = split_by_hash(digests, [number[label] for label in labels], TEST_SHARE)
    return {"train": [loaded[i] for i in train], "test": [loaded[i] for i in test]}, how


def _classes(path: pathlib.Path, loaded: dict[str, list[LoadedExample]]) -> list[str]:
    """Returns the label names in order, whole numbers by value; [] when unlabelled."""
    labels = {split: {label for _, _, label in own} for split, own in loaded.items()}
    names = {label for label in labels["train"] if label is not None}
    unseen = sorted(str(label) for label in labels["test"] - labels["train"])
    if unseen:
        raise UserError(f"{path}: label {unseen[0]!r} occurs in the test split only")
    if None in labels["test"] and names:
        raise UserError(f"{path}: the train split has labels, the test split has none")
    if len(names) == 1:
        raise UserError(f"{path}: label {names.pop()!r} is the only one; at least two are needed")
    if all(re.fullmatch(r"[+-]?\d{1,18}", name) for name in names):
        return sorted(names, key=int)
    return sorted(names)
