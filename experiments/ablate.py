"""What one field of the recipe does: the main job's study, once per value, side by side.

    python -m experiments.ablate --field=objective.hide --values=0.5,0.75 --tasks=digits

A field is a dotted path in a recipe (model.depth, optimizer.name, steps, finetune.steps, ...).
Every value gets the same arms, labels and seeds and a report of its own under OUT; OUT/report.html
holds them side by side, each value against the first, with the same evidence.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

from absl import flags

from experiments import cli, studies
from fm.config_io import parse
from fm.errors import UserError
from fm.study import analysis, run_dir, runner
from fm.study.config import StudyConfig, to_dict


def define(values: flags.FlagValues) -> None:
    """The field, its values, and the flags of a study."""
    flags.DEFINE_string("field", "objective.hide", "dotted path in a recipe", flag_values=values)
    flags.DEFINE_list("values", ["0.5", "0.75"], "what the field is set to", flag_values=values)
    studies.define(values, tasks="digits", out="runs/ablate")


def main(values: flags.FlagValues) -> None:
    """One study per value, then the comparison of them."""
    out, field = cli.out_dir(values), values["field"].value
    base = studies.configure(values, "ablate")
    settings = {text: _with(base, field, text) for text in values["values"].value}
    if len(settings) < 2:
        raise UserError("--values takes at least two different values, such as 0.5,0.75")
    run_dir.init(to_dict(base) | {"experiment": "ablate", "field": field}, out)
    folders = {text: out / f"{field}={text.replace('/', '_')}" for text in settings}
    results = {}
    for text, config in settings.items():
        print(f"\n{field} = {text}")
        results[text] = runner.run_compare(config, folders[text])
        studies.finish(results[text], folders[text])
    print(f"\n{field}: side by side")
    studies.finish(analysis.merge_studies(field, results, folders), out)


def _with(base: StudyConfig, field: str, text: str) -> StudyConfig:
    """The study with the field set in every task's recipe."""
    tasks = [
        dataclasses.replace(task, recipe=replaced(task.recipe, field, text, field))
        for task in base.tasks
    ]
    return dataclasses.replace(base, tasks=tuple(tasks))


def replaced(config: Any, path: str, text: str, whole: str) -> Any:
    """A frozen config with the field at a dotted path set to what the text says.

    Raises:
      UserError: there is no such field, or the text is not of its kind.
    """
    name, _, rest = path.partition(".")
    names = [field.name for field in dataclasses.fields(config)]
    if name not in names:
        raise UserError(f"--field={whole}: no {name!r} here; accepted are {', '.join(names)}")
    old = getattr(config, name)
    if rest or dataclasses.is_dataclass(old):
        if not (rest and dataclasses.is_dataclass(old)):
            raise UserError(f"--field={whole}: takes the path of a single value")
        return dataclasses.replace(config, **{name: replaced(old, rest, text, whole)})
    kind = typing.get_type_hints(type(config))[name]
    return dataclasses.replace(config, **{name: _value(kind, old, text, whole)})


def _value(kind: Any, old: Any, text: str, field: str) -> Any:
    if kind is str:
        return text
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = text  # where a text or none will do
    try:
        new = parse(kind, given, field)
        return float(new) if kind is float else new
    except (UserError, OverflowError) as error:
        raise UserError(
            f"--values: {text!r:.80} is no value of {field}, which is {old!r} by default"
        ) from error


if __name__ == "__main__":
    cli.run("ablate", __doc__, define, main)
