"""Files that appear whole or not at all, or are read as what they are; errors that name them."""

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


@contextlib.contextmanager
def with_filename(path: pathlib.Path) -> Iterator[None]:
    """Gives an OSError that names no file, as a full disk's does, the name of this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_path(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields where to write; on leaving, what is there gets the name `path`, folders made.

    What was at `path` stays as it was if anything fails.

    Raises:
      OSError: it could not be written; names a file.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with with_filename(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            with partial.open("rb") as file:
                # Before the name: a machine that loses power must not find it over nothing.
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def atomic_write(path: pathlib.Path, content: bytes | str) -> None:
    """Writes a file, text as UTF-8; see `replacing`."""
    with atomic_path(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def expand_path(text: str) -> pathlib.Path:
    """A path as a person writes it, `~` and `~user` being homes.

    Raises:
      UserError: there is no such user.
    """
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: no user has this home; takes a path, ~/ leads it home") from error


def read_bytes(path: pathlib.Path) -> bytes:
    """Reads a file whole.

    Raises:
      OSError: it cannot be read, or is a pipe, a socket or a device, which may never end.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "a pipe, socket or device, not a file", str(path))
    return path.read_bytes()


def read_json(path: pathlib.Path) -> Any:
    """Reads a file of JSON in UTF-8.

    Raises:
      OSError: as `read_bytes` does.
      ValueError: it is not JSON, or nested deeper than Python goes.
    """
    try:
        return json.loads(read_bytes(path).decode("utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_user_json(path: pathlib.Path) -> Any:
    """`read_json` of a file that a user has named, or of one beside it.

    Raises:
      UserError: it cannot be read or is not JSON; names it.
    """
    try:
        return read_json(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def write_checked_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON-able value; see `read`."""
    value = json.loads(json.dumps(value))  # as it will be read
    atomic_write(path, json.dumps({"sha256": _json_digest(value), "value": value}))


def read_checked_json(path: pathlib.Path) -> Any:
    """What `keep` wrote.

    Raises:
      UserError: the file is not what was written.
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


_DIGESTS_NAME = "digests.json"


def write_digests(folder: pathlib.Path, exclude: Sequence[str] = ()) -> None:
    """Writes the digests of all files in the folder and below, but of some."""
    found = {name: _file_digest(folder / name) for name in sorted(_file_names(folder, exclude))}
    atomic_write(folder / _DIGESTS_NAME, json.dumps(found, indent=0))


def digests_exist(folder: pathlib.Path) -> bool:
    """Whether a folder has digests."""
    return (folder / _DIGESTS_NAME).is_file()


def check_digests(
    folder: pathlib.Path, subdirs: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> None:
    """Compares every file with its digest.

    Args:
      folder: what `write` was called for, with the same `exclude`.
      subdirs: of the folder's own folders, those to look at; all unless given.
      exclude: files without a digest.

    Raises:
      ValueError: a file differs, is missing or has no digest; names it.
    """
    path = folder / _DIGESTS_NAME
    if not path.is_file():
        raise ValueError(f"it has no {_DIGESTS_NAME}")
    try:
        found = read_json(path)
    except ValueError:
        raise ValueError(f"{_DIGESTS_NAME} is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"{_DIGESTS_NAME} is no list of digests")
    for name in sorted(_file_names(folder, exclude) | found.keys()):
        part, below, _ = name.partition("/")
        if subdirs is not None and below and part not in subdirs:
            continue
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if _file_digest(folder / name) != found.get(name):
            raise ValueError(f"{name} is not what was written")


def _file_names(folder: pathlib.Path, but: Sequence[str]) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in found} - {_DIGESTS_NAME, *but}


def _file_digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir() -> pathlib.Path:
    """Returns `$FM_CACHE`, or `~/.cache/fm` when that is unset."""
    return expand_path(os.environ.get("FM_CACHE") or "~/.cache/fm").absolute()


@contextlib.contextmanager
def new_dir(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a scratch folder that becomes `target` when the block ends without an error.

    A reader sees all of `target` or nothing. When two processes race, the first one wins and
    the second one's copy is thrown away: both hold the same content by construction.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with with_filename(target):
            yield scratch
        try:
            scratch.replace(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_cached(folder: pathlib.Path) -> None:
    """Compares the files of a folder of the cache with their digests.

    Raises:
        UserError: one is not what was written there.
    """
    try:
        check_digests(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is damaged ({error}); delete it and run again") from error
