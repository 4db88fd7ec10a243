"""Prepared TFDS folders, opened without running what their files name."""

import contextlib
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from fm.errors import UserError
from fm.files import read_user_json

# TFDS imports the module of whatever class a folder's `features.json` names.
_OWN = re.compile(r"tensorflow_datasets\.core\.features\.\w+\.\w+", re.ASCII)
_CLASSES = ("pythonClassName", "python_class_name", "type")


def open_prepared(folder: pathlib.Path) -> Any:
    """Returns a builder that reads a folder TFDS has prepared.

    Raises:
        UserError: see `check`; or TFDS cannot read it.
    """
    check_features(folder)
    with damage_as_user_error(folder):
        return tfds.builder_from_directory(folder.resolve())


@contextlib.contextmanager
def damage_as_user_error(folder: pathlib.Path | str) -> Iterator[None]:
    """Says of a damaged folder, of which TFDS and ArrayRecord raise anything, that it is damaged.

    What is in its files they look at late, and some of it again and again.
    """
    try:
        yield
    except (UserError, NotImplementedError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise UserError(f"{folder} is no whole data set as TFDS prepares it: {reason}") from error


def check_features(folder: pathlib.Path) -> None:
    """Sees that a folder names no code but TFDS's own features.

    Raises:
        UserError: it does, or its description is missing or no JSON.
    """
    path = folder / "features.json"
    described = read_user_json(path)
    for name in _classes(described):
        if not _OWN.fullmatch(name):
            raise UserError(
                f"{path} names the class {name!r}, which would be imported; accepted are TFDS's own"
                " features, tensorflow_datasets.core.features"
            )


def _classes(tree: Any) -> Iterator[str]:
    """Names of classes anywhere in JSON, and in texts that are JSON, as older versions wrote."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key in _CLASSES and isinstance(value, str):
                yield value
            else:
                yield from _classes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _classes(value)
    elif isinstance(tree, str) and tree.lstrip().startswith(("{", "[")):
        try:
            inner = json.loads(tree)
        except (ValueError, RecursionError):
            return
        yield from _classes(inner)
