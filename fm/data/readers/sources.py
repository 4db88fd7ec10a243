"""Reads a data file with the files beside it (`--unlabeled`, `--validation`, `--test`)."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from fm.data.media import modality_for_path
from fm.data.readers import archives
from fm.data.readers.examples import Example, ReadLog, TextFormat
from fm.data.readers.folders import (
    FileNameFieldPositions,
    read_folder,
    walk,
    with_file_name_fields,
)
from fm.data.readers.text import read_text, read_text_file, text_extension
from fm.errors import UserError

# A split ("all" for the data file itself) and its file or folder.
Source = tuple[str, pathlib.Path]


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


@contextlib.contextmanager
def read_sources(
    sources: Sequence[Source],
    form: TextFormat,
    fields: FileNameFieldPositions,
    notices: list[str],
) -> Iterator[tuple[dict[str, list[Example]], ReadLog]]:
    """Yields the examples of all sources by split, while archives are unpacked; and the log.

    Raises:
        UserError: a source cannot be read, or two give the same split.
    """
    names = Counter(path.name for _, path in sources)
    found: dict[str, list[Example]] = {}
    origin: dict[str, pathlib.Path] = {}
    with contextlib.ExitStack() as stack:
        scratch = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        log = ReadLog(scratch, "", scratch, notices=notices)
        for split, path in sources:
            is_archive = path.is_file() and archives.is_archive(path)
            inside = stack.enter_context(archives.unpacked_archive(path)) if is_archive else path
            own = dataclasses.replace(
                log,
                root=inside if inside.is_dir() or not form.file_column else inside.parent,
                title=path.name if names[path.name] == 1 else str(path),
                only_inside=is_archive,
            )
            parts = _read_source(inside, form, fields, own, unlabeled=split == "unlabeled")
            if split != "all":
                if set(parts) - {"all"}:
                    raise UserError(
                        f"--{split}={path}: has splits of its own ({', '.join(parts)}); takes a "
                        "file or folder without"
                    )
                parts = {split: parts["all"]}
            for name, examples in parts.items():
                examples = _with_ids(examples, own)
                if name in found and name != "unlabeled":
                    raise UserError(
                        f"--{name}={path}: {origin[name]} has a {name} split already; one is "
                        "accepted"
                    )
                found.setdefault(name, []).extend(examples)
                origin[name] = path
        yield _with_test(found, origin, log), log


def _read_source(
    path: pathlib.Path,
    form: TextFormat,
    fields: FileNameFieldPositions,
    log: ReadLog,
    *,
    unlabeled: bool,
) -> dict[str, list[Example]]:
    """Returns the examples of one file or folder by split, "all" without splits."""
    if path.is_dir():
        return read_folder(path, form, fields, log, unlabeled=unlabeled)
    if unlabeled and modality_for_path(path):
        return {"all": [Example(path)]}
    own = form.without_labels() if unlabeled else form
    if unlabeled and text_extension(path) != ".txt":
        own = dataclasses.replace(own, file_column=form.file_column)
    examples = read_text_file(path, own, log, unlabeled=unlabeled)
    return {"all": with_file_name_fields(examples, fields, unlabeled=unlabeled)}


def _with_ids(examples: list[Example], log: ReadLog) -> list[Example]:
    """Returns the examples with the text of .txt files that a table names, ids, and file names."""
    found = []
    for example in examples:
        content, row_id = example.content, example.row_id
        if isinstance(content, pathlib.Path):
            row_id = row_id or log.name(content)
            if content.suffix.lower() == ".txt" and content.is_file():
                content = read_text(content).strip()
        found.append(
            dataclasses.replace(
                example, content=content, row_id=row_id, file=example.file or log.title
            )
        )
    return found


def _with_test(
    by_split: dict[str, list[Example]], origin: dict[str, pathlib.Path], log: ReadLog
) -> dict[str, list[Example]]:
    """Returns the examples under "train" and "test", or "all"; and perhaps "unlabeled".

    A validation split joins the training examples, or takes the place of a test split.
    """
    held_out = "test" in by_split or "validation" in by_split
    found = {"train" if name == "all" and held_out else name: by_split[name] for name in by_split}
    if "validation" not in found:
        return found
    validation = found.pop("validation")
    name = origin["validation"].name
    if "test" in found:
        found["train"] = found["train"] + validation
        said = "joins the training examples: settings are chosen on parts of each seed's own labels"
    else:
        found["test"] = validation
        said = "is read as the test split, as there is no other"
    log.notices.append(f"the validation split ({name}) {said}")
    return found


def named_file_digests(
    sources: Sequence[Source], form: TextFormat, fields: FileNameFieldPositions
) -> list[str]:
    """Returns the digests of files that tables name and that lie outside the sources' folders."""
    folders = [path.resolve() for _, path in sources if path.is_dir()]
    with read_sources(sources, form, fields, []) as (by_split, _):
        contents = [example.content for own in by_split.values() for example in own]
        outside = [
            content
            for content in contents
            if isinstance(content, pathlib.Path)
            and not any(content.resolve().is_relative_to(folder) for folder in folders)
        ]
        return [source_digest(content) for content in outside]


def source_digest(path: pathlib.Path) -> str:
    """Returns the SHA-256 of an example's file, or of the files in its folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    parts = [hashlib.sha256(file.read_bytes()).digest() for file in files if file.is_file()]
    return hashlib.sha256(b"".join(parts)).hexdigest()
