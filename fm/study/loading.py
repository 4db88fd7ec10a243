"""Data sets of a command, each read once: reading checks digests, and may decode every example."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fm.data.datasets import Dataset

_loaded: contextvars.ContextVar[dict[Any, Dataset] | None] = contextvars.ContextVar(
    "loaded", default=None
)


@contextlib.contextmanager
def datasets_read_once() -> Iterator[None]:
    """Context manager: `load` inside returns the same data set for the same arguments."""
    token = _loaded.set({})
    try:
        yield
    finally:
        _loaded.reset(token)


def load(name: str, **options: Any) -> Dataset:
    """Returns a data set like `fm.data.load.load`, from memory if this command has read it."""
    # TFDS takes seconds to import, and not every command reads data.
    from fm.data import load as reader

    loaded = _loaded.get()
    if loaded is None:
        return reader.load(name, **options)
    key = name, *sorted(options.items())
    if key not in loaded:
        loaded[key] = reader.load(name, **options)
    return loaded[key]
