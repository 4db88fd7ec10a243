"""Frozen dataclasses out of what JSON makes of them, every value of the kind it is to be."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

from fm.errors import UserError


def parse(annotation: Any, value: Any, name: str) -> Any:
    """A value of an annotated kind.

    Args:
      annotation: int, float, bool, str, None, a tuple or union of these, or a dataclass of such fields.
      value: what `json.loads` gave; lists stand for tuples.
      name: of the value, for messages.

    Raises:
      UserError: it is of another kind, not finite, or of a dataclass lacks a field or has others.
    """
    if dataclasses.is_dataclass(annotation):
        return _fields(annotation, value, name)
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        (other,) = (each for each in inner if each is not type(None))
        return None if value is None else parse(other, value, name)
    if typing.get_origin(annotation) is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong(name, "a list", value)
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(kinds) != len(value):
            raise _wrong(name, f"{len(kinds)} values", value)
        return tuple(parse(*each, name) for each in zip(kinds, value, strict=True))
    # bool is an int to Python.
    fits = isinstance(value, int | float if annotation is float else annotation)
    if not fits or (isinstance(value, bool) and annotation is not bool):
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        raise _wrong(name, words[annotation], value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(name, "a finite number", value)
    return value


def _fields(kind: Any, plain: Any, name: str) -> Any:
    if not isinstance(plain, dict):
        raise _wrong(name, "an object", plain)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = plain.keys() - fields.keys()
    if unknown:
        raise UserError(f"{name} of another version: {', '.join(sorted(unknown))} not known")
    for field in fields.values():
        none = field.default is field.default_factory is dataclasses.MISSING
        if none and field.name not in plain:
            raise UserError(f"{name} lacks {field.name}")
    return kind(**{key: parse(hints[key], value, key) for key, value in plain.items()})


def _wrong(name: str, accepted: str, plain: Any) -> UserError:
    shown = repr(plain)
    return UserError(f"{name} takes {accepted}, not {shown[:60]}{'…' * (len(shown) > 60)}")
