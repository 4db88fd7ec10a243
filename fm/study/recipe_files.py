"""Recipes as JSON files: what a search found, for other commands to start from."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from fm.config_io import parse, to_plain
from fm.errors import UserError, error_context
from fm.files import atomic_write, read_user_json
from fm.study.config import Recipe


@dataclasses.dataclass(frozen=True)
class RecipeFile:
    """Fields of a recipe from a JSON file, and the data they are for.

    Attributes:
      path: of the file.
      fields: of `Recipe`, some or all, as JSON.
      modality: of the data; "" for any.
      task_type: of the task, e.g. "ner"; "" for any.
    """

    path: pathlib.Path
    fields: dict[str, Any]
    modality: str = ""
    task_type: str = ""

    def fits(self, modality: str, task_type: str = "") -> bool:
        """Returns whether the recipe is for such data and, if it is known, for such a task."""
        return self.modality in ("", modality) and (not task_type or self._fits_task(task_type))

    def _fits_task(self, task_type: str) -> bool:
        return self.task_type in ("", task_type)

    @property
    def fits_what(self) -> str:
        """Returns what the recipe is for, in words."""
        return " ".join(filter(None, (self.modality, self.task_type))) or "any data"

    def applied(self, recipe: Recipe) -> Recipe:
        """Returns the recipe with the fields of the file.

        Raises:
          UserError: a field is unknown or has a value that is not accepted.
        """
        plain = to_plain(recipe)
        with error_context(self.path):
            return parse(Recipe, _merged(plain, self.fields), "recipe")


def read_recipe_file(path: pathlib.Path) -> RecipeFile:
    """Reads the JSON of a search's best recipe, or of recipe fields alone.

    Raises:
      UserError: it cannot be read, or is not an object of recipe fields.
    """
    content = read_user_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold an object with the fields of a recipe")
    whole: dict[str, Any] = content if "recipe" in content else {"recipe": content}
    names = "modality", "task_type"
    given = {name: whole.get(name, "") for name in names}
    wrong = [name for name in names if not isinstance(given[name], str)]
    if wrong or not isinstance(whole["recipe"], dict):
        raise UserError(f"{path}: {(*wrong, 'recipe')[0]} is not what a search writes there")
    return RecipeFile(path, whole["recipe"], **given)


def write_recipe_file(path: pathlib.Path, recipe: Recipe, **about: Any) -> None:
    """Writes a recipe as JSON, with what it is for and where it is from."""
    atomic_write(path, json.dumps(about | {"recipe": to_plain(recipe)}, indent=1))


def _merged(plain: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Returns a JSON object with the given fields replaced, at any depth."""
    merged = dict(plain)
    for name, value in fields.items():
        old = merged.get(name)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[name] = _merged(old, value) if both else value  # pyright: ignore
    return merged
