"""Atomic writes, checked reads, and the cache folder.

Files and folders appear complete or not at all. Two formats detect damage when they are read: JSON
stored beside its own SHA-256 (`write_checked_json`), and folders with a `digests.json` that holds
the SHA-256 of every file (`write_digests`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from fm.errors import UserError

_DIGESTS_NAME = "digests.json"


@contextlib.contextmanager
def oserror_with_filename(path: pathlib.Path) -> Iterator[None]:
    """Sets `path` as the file name of an OSError raised in the block, if it has none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_path(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path; what is written there replaces `path` when the block succeeds.

    Parent folders are created. If anything fails, `path` keeps its old content.

    Raises:
        OSError: the file cannot be written; the error has a file name.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with oserror_with_filename(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            with partial.open("rb") as file:
                # Before the rename: otherwise a power loss could leave `path` empty.
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def atomic_write(path: pathlib.Path, content: bytes | str) -> None:
    """Writes text (as UTF-8) or bytes to a file atomically."""
    with atomic_path(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def expand_path(text: str) -> pathlib.Path:
    """Returns the path with a leading `~` or `~user` replaced by that user's home folder.

    Raises:
        UserError: there is no such user.
    """
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: no user has this home folder; use ~/ for your own") from error


def read_bytes(path: pathlib.Path) -> bytes:
    """Returns the content of a regular file.

    Raises:
        OSError: it cannot be read, or is a pipe, socket or device, whose content may never end.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "a pipe, socket or device, not a file", str(path))
    return path.read_bytes()


def read_json(path: pathlib.Path) -> Any:
    """Returns the content of a UTF-8 JSON file.

    Raises:
        OSError: see `read_bytes`.
        ValueError: it is not JSON, or nested too deep for Python's parser.
    """
    try:
        return json.loads(read_bytes(path).decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_user_json(path: pathlib.Path) -> Any:
    """Returns the content of a JSON file named by the user; raises UserError if unreadable.

    Raises:
        UserError: it cannot be read or is not JSON; the message names the file.
    """
    try:
        return read_json(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def write_checked_json(path: pathlib.Path, value: Any) -> None:
    """Writes a value as JSON with its SHA-256, which `read_checked_json` verifies."""
    value = json.loads(json.dumps(value))  # e.g. int keys become strings before the hash
    atomic_write(path, json.dumps({"sha256": _json_digest(value), "value": value}))


def read_checked_json(path: pathlib.Path) -> Any:
    """Returns a value written by `write_checked_json`, after verifying its SHA-256.

    Raises:
        UserError: the file has changed since.
    """
    try:
        content = read_json(path)
        if content["sha256"] == _json_digest(content["value"]):
            return content["value"]
    except (ValueError, TypeError, KeyError):
        pass
    raise UserError(f"{path} is damaged; delete it, and it is made again")


def _json_digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_digests(folder: pathlib.Path, exclude: Sequence[str] = ()) -> None:
    """Writes `digests.json`, the digests of all files below a folder except `exclude`."""
    digests = {name: file_digest(folder / name) for name in sorted(_file_names(folder, exclude))}
    atomic_write(folder / _DIGESTS_NAME, json.dumps(digests, indent=0))


def digests_exist(folder: pathlib.Path) -> bool:
    """Returns whether the folder has a `digests.json`."""
    return (folder / _DIGESTS_NAME).is_file()


def check_digests(
    folder: pathlib.Path, subdirs: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> None:
    """Raises ValueError if a file below the folder differs from its digest in `digests.json`.

    Args:
        folder: a folder passed to `write_digests`.
        subdirs: the direct subfolders to check; all if None.
        exclude: files without a digest, as passed to `write_digests`.

    Raises:
        ValueError: a file has changed, is missing or has no digest; the message names it.
    """
    path = folder / _DIGESTS_NAME
    if not path.is_file():
        raise ValueError(f"it has no {_DIGESTS_NAME}")
    try:
        expected = read_json(path)
    except ValueError:
        raise ValueError(f"{_DIGESTS_NAME} is not JSON") from None
    if not isinstance(expected, dict):
        raise ValueError(f"{_DIGESTS_NAME} is no list of digests")
    for name in sorted(_file_names(folder, exclude) | expected.keys()):
        subdir, below, _ = name.partition("/")
        if subdirs is not None and below and subdir not in subdirs:
            continue
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if file_digest(folder / name) != expected.get(name):
            raise ValueError(f"{name} is not what was written")


def _file_names(folder: pathlib.Path, exclude: Sequence[str]) -> set[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in files} - {_DIGESTS_NAME, *exclude}


def file_digest(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir() -> pathlib.Path:
    """Returns the cache folder: `$FM_CACHE`, or `~/.cache/fm` if that is unset or empty."""
    return expand_path(os.environ.get("FM_CACHE") or "~/.cache/fm").absolute()


@contextlib.contextmanager
def atomic_dir(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder that is renamed to `target` when the block succeeds.

    If two processes race, the first one's folder stays; both have the same content.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with oserror_with_filename(target):
            yield scratch
        try:
            scratch.replace(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_cached_digests(folder: pathlib.Path) -> None:
    """Raises UserError if a cached folder does not match its digests.

    Raises:
        UserError: a file has changed, is missing or cannot be read.
    """
    try:
        check_digests(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is damaged ({error}); delete it and run again") from error
