"""Frozen dataclasses as JSON dictionaries, and back, checking the type of every value."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

from fm.errors import UserError

_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}


def parse(annotation: Any, value: Any, name: str) -> Any:
    """Returns a JSON value converted to the annotated type; raises UserError if it does not fit.

    A dataclass may define `RENAMED_FIELDS: ClassVar[dict[str, str]]`, old field names to current
    ones, so that JSON saved under the old names stays readable.

    Args:
      annotation: int, float, bool, str, None, a tuple of these, a dataclass of such fields, a union
        of one of these and None, or a union of dataclasses, told apart by their fields.
      value: result of `json.loads`; lists stand for tuples.
      name: of the value, for messages.

    Raises:
      UserError: the value has another type, is not finite, or a dataclass field is missing or
        unknown.
    """
    if dataclasses.is_dataclass(annotation):
        return _parse_dataclass(annotation, value, name)
    args = typing.get_args(annotation)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        others = [each for each in args if each is not type(None)]
        if value is None and len(others) < len(args):
            return None
        return parse(_matching(others, value), value, name)
    if typing.get_origin(annotation) is tuple:
        if not isinstance(value, list | tuple):
            raise _type_error(name, "a list", value)
        item_types = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(item_types) != len(value):
            raise _type_error(name, f"{len(item_types)} values", value)
        return tuple(parse(*pair, name) for pair in zip(item_types, value, strict=True))
    # bool is a subclass of int.
    matches = isinstance(value, int | float if annotation is float else annotation)
    if not matches or (isinstance(value, bool) and annotation is not bool):
        raise _type_error(name, _TYPE_NAMES[annotation], value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _type_error(name, "a finite number", value)
    return value


def to_plain(value: Any) -> Any:
    """Inverse of `parse`: returns a config as JSON.

    A dataclass may define `ADDED_FIELDS: ClassVar[tuple[str, ...]]`, fields that earlier versions
    did not have. They are left out where they have their default, so that the hash of a config that
    does not use them stays what it was.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        added = getattr(value, "ADDED_FIELDS", ())
        return {
            field.name: to_plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.name not in added or getattr(value, field.name) != field.default
        }
    if isinstance(value, dict):
        return {name: to_plain(each) for name, each in value.items()}
    return [to_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _matching(classes: list[Any], value: Any) -> Any:
    """The first of several dataclasses that has all fields of an object; else the first."""
    if len(classes) == 1 or not isinstance(value, dict):
        return classes[0]
    for each in classes:
        names = {field.name for field in dataclasses.fields(each)}
        if {getattr(each, "RENAMED_FIELDS", {}).get(key, key) for key in value} <= names:
            return each
    return classes[0]


def _parse_dataclass(cls: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise _type_error(name, "an object", value)
    renamed = getattr(cls, "RENAMED_FIELDS", {})
    value = {renamed.get(key, key): each for key, each in value.items()}
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = value.keys() - fields.keys()
    if unknown:
        raise UserError(f"{name}: unknown fields {', '.join(sorted(unknown))}")
    for field in fields.values():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and field.name not in value:
            raise UserError(f"{name}: field {field.name} is missing")
    return cls(**{key: parse(hints[key], each, key) for key, each in value.items()})


def _type_error(name: str, accepted: str, value: Any) -> UserError:
    shown = repr(value)
    return UserError(f"{name} must be {accepted}, not {shown[:60]}{'…' * (len(shown) > 60)}")
