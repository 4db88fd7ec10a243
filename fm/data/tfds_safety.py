"""Opens prepared TFDS folders without importing code that their files name."""

import contextlib
import json
import pathlib
import re
import traceback
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from fm.errors import UserError
from fm.files import read_user_json

# TFDS imports the module of any class that `features.json` names.
_TFDS_FEATURE = re.compile(r"tensorflow_datasets\.core\.features\.\w+\.\w+", re.ASCII)
# Packages that read a prepared folder.
_READERS = {"tensorflow_datasets", "array_record", "google", "etils"}
_CLASS_KEYS = ("pythonClassName", "python_class_name", "type")


def open_prepared(folder: pathlib.Path) -> Any:
    """Returns a read-only TFDS builder for a prepared folder, without running code from it.

    Raises:
        UserError: see `check_features`; or TFDS cannot read the folder.
    """
    check_features(folder)
    with damage_as_user_error(folder):
        return tfds.builder_from_directory(folder.resolve())


@contextlib.contextmanager
def damage_as_user_error(folder: pathlib.Path | str) -> Iterator[None]:
    """Runs the block; turns errors of TFDS and ArrayRecord about a damaged folder into UserError.

    Both read some files late, so the block must also cover the reading of examples. What says
    nothing about the data stays what it is: a disk or a permission that fails, and bugs of ours.
    """
    try:
        yield
    except (UserError, NotImplementedError, MemoryError):
        raise
    except Exception as error:
        if not _is_damage(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(f"{folder} is not a complete prepared TFDS data set: {reason}") from error


def _is_damage(error: Exception) -> bool:
    if isinstance(error, OSError):
        return isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    if isinstance(error, ValueError | LookupError | EOFError):
        return True
    # TFDS and what it reads with raise errors of any type; of others they are bugs.
    packages = [
        str(frame.f_globals.get("__name__", "")).partition(".")[0]
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    ours = max(
        (n for n, name in enumerate(packages) if name == __name__.partition(".")[0]), default=0
    )
    return not _READERS.isdisjoint(packages[ours:])


def check_features(folder: pathlib.Path) -> None:
    """Raises UserError if a folder's `features.json` names other classes than TFDS's own.

    Raises:
        UserError: it names others, is missing or is not JSON.
    """
    path = folder / "features.json"
    for name in _class_names(read_user_json(path)):
        if not _TFDS_FEATURE.fullmatch(name):
            raise UserError(
                f"{path} names the class {name!r}, which would be imported; accepted are TFDS's own"
                " features, tensorflow_datasets.core.features"
            )


def _class_names(tree: Any) -> Iterator[str]:
    """Yields class names anywhere in JSON, and in strings of JSON (of older TFDS versions)."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in _CLASS_KEYS and isinstance(value, str):
                yield value
            else:
                yield from _class_names(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _class_names(value)
    elif isinstance(tree, str) and tree.lstrip().startswith(("{", "[")):
        try:
            inner = json.loads(tree)
        except (ValueError, RecursionError):
            return
        yield from _class_names(inner)
