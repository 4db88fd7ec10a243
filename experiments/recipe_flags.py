"""The flags of a model's recipe: its size, its architecture, a file with its fields, its time."""

from __future__ import annotations

import dataclasses
import sys

from absl import flags

from fm.errors import UserError
from fm.files import expand_path
from fm.model.sizes import ARCHS, config_for_size, describe_sizes
from fm.study import presets
from fm.study.config import Recipe
from fm.study.recipe_files import RecipeFile, read_recipe_file

# Validations without a fall of the loss after which --pretrain_minutes takes it for flat.
FLAT_PATIENCE = 3


def define_model_size(
    values: flags.FlagValues, what: str = "model", arch: str = "that of the recipe"
) -> None:
    """Defines --size and --arch.

    Args:
      values: to hold them.
      what: what has the size, for --help.
      arch: the default architecture, for --help.
    """
    flags.DEFINE_string(
        "size",
        None,
        f"{what} size, here with the parameters of its layers: {describe_sizes()}",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "arch",
        None,
        list(ARCHS),
        "architecture: fm's own, or that of Llama, which fm export can write for "
        f"`transformers`; by default {arch}",
        flag_values=values,
    )


def define_recipe(values: flags.FlagValues) -> None:
    """Defines --recipe and --pretrain_minutes."""
    flags.DEFINE_string(
        "recipe",
        None,
        "JSON file with a recipe, or with some of its fields, as fm search writes it; "
        "used for the tasks of its modality and type",
        flag_values=values,
    )
    flags.DEFINE_float(
        "pretrain_minutes",
        None,
        "pretrain each model until its validation loss is flat, or this many minutes are over, "
        "instead of for the steps of its recipe",
        flag_values=values,
    )


def with_recipe_flags(recipe: Recipe, values: flags.FlagValues, file: RecipeFile | None) -> Recipe:
    """Returns the recipe with the fields of --recipe, and --pretrain_minutes, if given."""
    if file is not None:
        recipe = file.applied(recipe)
    minutes = values["pretrain_minutes"].value
    if minutes is None:
        return recipe
    if not 0 < minutes < float("inf"):
        raise UserError(f"--pretrain_minutes={minutes:g}: takes a number above 0")
    patience = recipe.early_stopping_patience or FLAT_PATIENCE
    return dataclasses.replace(
        recipe, early_stopping_patience=patience, max_pretrain_minutes=minutes
    )


def check_size(values: flags.FlagValues) -> None:
    """Raises UserError if --size names no size, before any data are read."""
    if values["size"].value is not None:
        config_for_size(values["size"].value)


def recipe_file(values: flags.FlagValues) -> RecipeFile | None:
    """Returns the file of --recipe, None if not given; raises UserError if it is not one."""
    path = values["recipe"].value
    return None if path is None else read_recipe_file(expand_path(path))


def other_recipes(
    task: str, first: Recipe, values: flags.FlagValues, modality: str, task_type: str
) -> tuple[Recipe, ...]:
    """Returns the recipes of --more_recipes that are for such data, made from the first one.

    A line on stderr names those that are not.

    Raises:
      UserError: one is neither built in nor a file with a recipe.
    """
    found = []
    built_in = {name for own in presets.OTHER_RECIPES.values() for name in own}
    for name in values["more_recipes"].value:
        if name in built_in:
            change = presets.OTHER_RECIPES.get(modality, {}).get(name)
            recipe = change(first) if change is not None else None
        else:
            path = expand_path(name)
            if not path.exists():
                raise UserError(
                    f"--more_recipes={name}: takes files with a recipe and {', '.join(built_in)}"
                )
            file, name = read_recipe_file(path), path.stem
            recipe = file.applied(first) if file.fits(modality, task_type) else None
        if recipe is None:
            print(f"{task}: --more_recipes={name} is not for {modality}, not used", file=sys.stderr)
        else:
            found.append(dataclasses.replace(recipe, name=name))
    return tuple(found)
