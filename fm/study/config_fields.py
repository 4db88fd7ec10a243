"""Fields of a config by dotted path, set from text; and configs read back from saved runs."""

from __future__ import annotations

import dataclasses
import difflib
import json
import lzma
import pathlib
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from fm.config_io import parse
from fm.errors import UserError, error_context
from fm.files import read_bytes
from fm.study.config import FURTHER_DATA_FIELDS, StudyConfig

_Config = TypeVar("_Config")
_Study = TypeVar("_Study", bound=StudyConfig)
# Of a task, besides the options of its reader: what its other fields were derived from.
_READ_FIRST = ("dataset", "fingerprint")


def with_field(
    config: _Study, field: str, text: str, *, flag: str = "--values", where: str = ""
) -> _Study:
    """Returns the study config with the field of a dotted path set to a value parsed from text.

    Args:
      config: of a study.
      field: dotted path in the recipe of every task (optionally after "recipe."), in every task, in
        one task after "tasks.NAME.", or in the study; the first that exists.
      text: the value.
      flag: that gave the value, for messages.
      where: that gave the path, for messages; "--field=PATH" by default.

    Raises:
      UserError: there is no such field, or the value is not of its type.
    """
    setter = _Setter(text, field, where or f"--field={field}", flag)
    first = field.partition(".")[0]
    if first == "tasks":
        return _with_task_field(config, field, setter)
    path = field.removeprefix("recipe.")
    first = path.partition(".")[0]
    joint = getattr(config, "joint", None)
    if joint is not None and path == field and first in _names(joint):
        raise UserError(
            f"{setter.where}: the models of this study are pretrained by its joint recipe; give "
            f"joint.{field}"
        )
    if first in _names(config.tasks[0].recipe):
        tasks = [
            dataclasses.replace(task, recipe=setter.replaced(task.recipe, path))
            for task in config.tasks
        ]
        return dataclasses.replace(config, tasks=tuple(tasks))
    if first in _names(config.tasks[0]):
        tasks = [setter.replaced(task, path) for task in config.tasks]
        return dataclasses.replace(config, tasks=tuple(tasks))
    if first in _names(config):
        return setter.replaced(config, path)
    for part in (config.tasks[0].recipe, config.tasks[0], config):
        _check_not_renamed(part, first, setter.where)
    names = [*_names(config.tasks[0].recipe), *_names(config)]
    raise UserError(
        f"{setter.where}: no {first!r} in a recipe or study; "
        f"{_accepted(field, study_field_paths(config), names)}"
    )


def _with_task_field(config: _Study, field: str, setter: _Setter) -> _Study:
    """Returns the study with a field of the one task that the path names changed."""
    for task in config.tasks:
        path = field.removeprefix(f"tasks.{task.name}.")
        if path == field:
            continue
        first = path.removeprefix("recipe.").partition(".")[0]
        if first in _names(task.recipe):
            recipe = setter.replaced(task.recipe, path.removeprefix("recipe."))
            changed = dataclasses.replace(task, recipe=recipe)
        else:
            changed = setter.replaced(task, path)
        tasks = tuple(changed if each is task else each for each in config.tasks)
        return dataclasses.replace(config, tasks=tasks)
    names = ", ".join(task.name for task in config.tasks)
    raise UserError(f"{setter.where}: takes tasks.NAME.FIELD, NAME being one of {names}")


def with_config_field(config: _Config, field: str, text: str, *, where: str) -> _Config:
    """Returns any frozen config with the field of a dotted path set to a value parsed from text.

    Raises:
      UserError: there is no such field, or the value is not of its type.
    """
    return _Setter(text, field, where, where).replaced(config, field)


def study_field_paths(config: StudyConfig) -> list[str]:
    """Returns the dotted paths that `with_field` takes, those of one task alone left out."""
    task, joint = config.tasks[0], getattr(config, "joint", None)
    shared = () if joint is None else _names(joint)
    paths = [path for path in field_paths(task.recipe) if path.partition(".")[0] not in shared]
    paths += [path for path in field_paths(task) if not path.startswith(("recipe.", "other_rec"))]
    paths += [path for path in field_paths(config) if not path.startswith("tasks.")]
    return list(dict.fromkeys(paths))


def field_paths(config: Any, prefix: str = "") -> list[str]:
    """Returns the dotted paths of all values of a config."""
    children = _children(config, Any)
    if not children:
        return [prefix[:-1]]
    return [
        path
        for name, (child, _) in children.items()
        for path in field_paths(child, f"{prefix}{name}.")
    ]


def fields_read_first(config: StudyConfig) -> tuple[str, ...]:
    """Returns the fields of a task that say which data is read, which the rest is derived from."""
    return (*_READ_FIRST, *config.tasks[0].load_options(), *FURTHER_DATA_FIELDS)


def nearest_fields(field: str, known: Sequence[str]) -> list[str]:
    """Returns up to three known paths that are most like a path, or end in the same name."""
    last = {path: path.rpartition(".")[2] for path in known}
    name = field.rpartition(".")[2]
    found = [path for path in known if last[path] == name]
    found += difflib.get_close_matches(field, known, 3, 0.6)
    similar = difflib.get_close_matches(name, sorted(set(last.values())), 3, 0.7)
    found += [path for each in similar for path in known if last[path] == each]
    return list(dict.fromkeys(found))[:3]


def _accepted(field: str, known: Sequence[str], names: Sequence[str]) -> str:
    """Returns the end of a message about an unknown path: the nearest ones, or all names."""
    if nearest := nearest_fields(field, known):
        return f"nearest: {', '.join(nearest)}"
    return f"must be one of {', '.join(names)}"


@dataclasses.dataclass(frozen=True)
class _Setter:
    """Sets one field of a config.

    Attributes:
      text: the value.
      field: the whole path, for messages.
      where: that gave the path, for messages.
      flag: that gave the value, for messages.
    """

    text: str
    field: str
    where: str
    flag: str

    def replaced(self, config: Any, path: str) -> Any:
        """Returns a config with the value at a dotted path replaced."""
        try:
            return self._replaced(config, type(config), path, config)
        except UserError as error:
            # What the config itself refuses names another flag, or none.
            said = any(each in str(error) for each in (self.where, self.flag, self.field))
            raise error if said else UserError(f"{self.where}: {error}") from error

    def _replaced(self, value: Any, annotation: Any, path: str, root: Any) -> Any:
        if not path:
            # A config as a whole can only be left out, where it may be.
            if dataclasses.is_dataclass(value) and self._leaves_out(annotation):
                return None
            if dataclasses.is_dataclass(value):
                raise UserError(f"{self.where}: must be the path of a single value")
            return self._parsed(annotation, value)
        children = _children(value, annotation)
        if not children:
            raise UserError(f"{self.where}: must be the path of a single value")
        name = next((each for each in children if f"{path}.".startswith(f"{each}.")), None)
        if name is None:
            name = path.partition(".")[0]
            _check_not_renamed(value, name, self.where)
            accepted = _accepted(self.field, field_paths(root), list(children))
            raise UserError(f"{self.where}: no {name!r} here; {accepted}")
        child = self._replaced(*children[name], path[len(name) + 1 :], root)
        return _with_child(value, name, child)

    def _leaves_out(self, annotation: Any) -> bool:
        return self.text == "null" and type(None) in typing.get_args(annotation)

    def _parsed(self, annotation: Any, old: Any) -> Any:
        if annotation is str:
            return self.text
        try:
            value = parse(annotation, _from_text(annotation, self.text), self.field)
            if value is not None and _required(annotation) is float:
                return float(value)
            return value
        except (UserError, OverflowError) as error:
            raise UserError(
                f"{self.flag}: {self.text!r:.80} is not a value of {self.field}, whose default is "
                f"{old!r}"
            ) from error


def _from_text(annotation: Any, text: str) -> Any:
    """Returns the JSON of a text, or the text; of lists also `a,b` without brackets."""
    annotation = _required(annotation)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if typing.get_origin(annotation) is tuple and value is not None and text[:1] not in ("[", "{"):
        item = typing.get_args(annotation)[0]
        parts = [part.strip() for part in text.split(",")] if text.strip() else []
        return [part if item is str else _from_text(item, part) for part in parts]
    return value


def _required(annotation: Any) -> Any:
    """Returns the type of a value that may be left out, without None."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next(each for each in typing.get_args(annotation) if each is not type(None))
    return annotation


def _children(value: Any, annotation: Any) -> dict[str, tuple[Any, Any]]:
    """Returns the parts of a config by name, each with its annotation; none of a single value.

    A tuple of (name, value) pairs, or of configs with a name, has parts by these names.
    """
    if dataclasses.is_dataclass(value):
        hints = typing.get_type_hints(type(value))
        return {name: (getattr(value, name), hints[name]) for name in _names(value)}
    if not isinstance(value, tuple) or not value:
        return {}
    item = (typing.get_args(annotation) or (Any,))[0]
    if all(_is_pair(each) for each in value):
        kind = (*typing.get_args(item), Any, Any)[1]
        return {name: (child, kind) for name, child in value}
    if all(dataclasses.is_dataclass(each) and getattr(each, "name", "") for each in value):
        return {each.name: (each, item) for each in value}
    return {}


def _is_pair(value: Any) -> bool:
    """Returns whether a value is a named part: a pair of a name and a number or config."""
    if not isinstance(value, tuple) or len(value) != 2 or not isinstance(value[0], str):
        return False
    return dataclasses.is_dataclass(value[1]) or isinstance(value[1], int | float)


def _with_child(value: Any, name: str, child: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return dataclasses.replace(value, **{name: child})  # pyright: ignore
    if _is_pair(value[0]):
        return tuple((each, child if each == name else old) for each, old in value)
    return tuple(child if each.name == name else each for each in value)


def _names(config: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


def _check_not_renamed(config: Any, name: str, where: str) -> None:
    """Raises UserError if `name` is what an earlier version called a field of the config."""
    new = getattr(config, "RENAMED_FIELDS", {}).get(name)
    if new is not None:
        raise UserError(f"{where}: {name!r} is now called {new!r}")


def read_saved_config(path: pathlib.Path) -> dict[str, Any]:
    """Returns the config of a config.json or results.json, .xz or not, or of a run's folder.

    Raises:
      UserError: the file cannot be read, or holds no config.
    """
    if path.is_dir():
        path = path / "config.json"
    try:
        content = read_bytes(path)
        if path.suffix == ".xz":
            content = lzma.decompress(content)
        saved = json.loads(content.decode())
    except OSError as error:
        raise UserError(f"--config={path}: {error.strerror or error}") from error
    except (ValueError, RecursionError, EOFError, lzma.LZMAError) as error:
        raise UserError(f"--config={path} is not JSON: {error}") from error
    if isinstance(saved, dict) and isinstance(saved.get("config"), dict):
        saved = saved["config"]
    if not isinstance(saved, dict) or not isinstance(saved.get("experiment"), str):
        raise UserError(
            f"--config={path}: holds no config of a run; takes the config.json of an --out folder, "
            "or its results.json"
        )
    return saved


def study_from_saved(cls: type[_Study], saved: dict[str, Any], path: pathlib.Path) -> _Study:
    """Returns the study config that `StudyConfig.to_dict` made JSON of.

    Raises:
      UserError: a field is missing, unknown or of another type.
    """
    tasks = saved.get("tasks")
    if not isinstance(tasks, dict):
        raise UserError(f"--config={path}: tasks must be an object by name")
    with error_context(path):
        return parse(cls, saved | {"tasks": list(tasks.values())}, "config")
