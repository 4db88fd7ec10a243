"""Files that appear whole or not at all, and system errors that name them."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator


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
