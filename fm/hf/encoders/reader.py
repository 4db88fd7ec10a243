"""Typed, checked values of a preprocessor_config.json."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from fm.errors import UserError

FILE = "preprocessor_config.json"
# Keys that say nothing about the numbers.
_IGNORED = (
    *("image_processor_type", "feature_extractor_type", "processor_class", "model_input_names"),
    *("_valid_processor_keys", "data_format", "return_tensors", "image_seq_length", "device"),
)


class PreprocessorReader:
    """Reads values from a preprocessor_config.json; a bad or unknown one is a `UserError`.

    A key that is absent or null takes the default. Every key has to be asked for before `finish`.
    """

    def __init__(self, values: Mapping[str, Any]):
        self.values = {key: value for key, value in values.items() if value is not None}
        self._asked: set[str] = set()

    def raw(self, key: str, default: Any = None) -> Any:
        """Returns a key's value as it is."""
        self._asked.add(key)
        return self.values.get(key, default)

    def flag(self, key: str, default: bool) -> bool:
        """Returns a key's value, a boolean."""
        value = self.raw(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "must be true or false")
        return value

    def size(self, key: str, default: int) -> int:
        """Returns a key's value, an integer of at least 1."""
        value = self.raw(key, default)
        if type(value) is not int or value < 1:
            raise self.error(key, "must be a whole number of at least 1")
        return value

    def number(self, key: str, default: float) -> float:
        """Returns a key's value, a finite number."""
        value = self.raw(key, default)
        if not _is_number(value):
            raise self.error(key, "must be a number")
        return float(value)

    def numbers(self, key: str, default: Collection[float], count: int) -> tuple[float, ...]:
        """Returns a key's value, `count` finite numbers; one number stands for as many."""
        value = self.raw(key, list(default))
        values = [value] * count if _is_number(value) else value
        if isinstance(values, list) and len(values) == 1:
            values = values * count
        if not isinstance(values, list) or len(values) != count or not all(map(_is_number, values)):
            raise self.error(key, f"must be {count} numbers")
        return tuple(map(float, values))

    def require(self, key: str, accepted: Any) -> None:
        """Raises UserError if a key is present with a value other than the supported one."""
        value = self.raw(key, accepted)
        if value != accepted:
            raise self.error(key, f"is not supported, only {accepted!r} is")

    def ignore(self, *keys: str) -> None:
        """Marks keys as known that do not matter here."""
        self._asked.update(keys)

    def finish(self) -> None:
        """Raises UserError for a key that nothing asked for, unless it says nothing."""
        for key in sorted(self.values.keys() - self._asked):
            if key not in _IGNORED:
                raise self.error(key, "is not supported; remove it if it does not matter")

    def error(self, key: str, reason: str) -> UserError:
        """Returns the error that names a key, its value and what is wrong with it."""
        shown = repr(self.values.get(key))
        return UserError(f"{FILE}: {key}={shown[:80]}{'…' * (len(shown) > 80)} {reason}")


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
