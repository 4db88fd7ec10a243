"""Files that appear whole or not at all, or are read as what they are; errors that name them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from fm.errors import UserError


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Gives an OSError that names no file, as a full disk's does, the name of this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields where to write; on leaving, what is there gets the name `path`, folders made.

    What was at `path` stays as it was if anything fails.

    Raises:
      OSError: it could not be written; names a file.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            with partial.open("rb") as file:
                # Before the name: a machine that loses power must not find it over nothing.
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def replace(path: pathlib.Path, content: bytes | str) -> None:
    """Writes a file, text as UTF-8; see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def expanded(text: str) -> pathlib.Path:
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


def given_json(path: pathlib.Path) -> Any:
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
