"""Data sets of a command, each read once: reading checks digests, and may decode every example."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fm.progress_lines import phase

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
    key = name, *sorted(options.items())
    if loaded is not None and key in loaded:
        return loaded[key]
    with phase(f"{name}: reading", quiet=True):
        data = reader.load(name, **options)
    if loaded is not None:
        loaded[key] = data
    return data
