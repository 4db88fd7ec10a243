"""Flags that describe a study, and the study they describe; shared by compare and ablate."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import sys

from absl import flags

from experiments import asking, command
from fm import report
from fm.adaptation.methods import METHODS, check_methods
from fm.data.load import load
from fm.errors import UserError
from fm.hf.model_zoo import MODEL_ZOO
from fm.model.config import config_for_size
from fm.study import presets, run_dir, runner, task_types
from fm.study.config import (
    COMPARE_ARMS,
    DEFAULT_METHODS,
    Recipe,
    StudyConfig,
    TaskConfig,
)

# What else of the same format there is, built in, for the upstream arm.
UPSTREAM = {"film_reviews": "docstrings", "digits": "photos", "tweet_entities": "film_reviews"}
_BUDGETS = {
    "quick": ("20", "100"),
    "default": ("20", "50", "150", "400"),
    "full": ("20", "50", "150", "400", "1000"),
}


def define(
    values: flags.FlagValues,
    *,
    tasks: str,
    out: str,
    imported: str | None = None,
    full: str | None = None,
) -> None:
    """The flags of a study.

    Args:
      values: to hold them.
      tasks: if none are named.
      out: folder if none is named.
      imported: the published model of text tasks if none is named.
      full: tasks in the full profile if none are named; those of `tasks` if not given.
    """
    flags.DEFINE_string(
        "published",
        None,
        f"published model of the imported arm: {', '.join(MODEL_ZOO)}, a folder of Hugging Face's or "
        f"a GGUF file; if not given {imported or 'none'} for text (in the quick profile none "
        "unless --arms names that arm); empty for none",
        flag_values=values,
    )
    more = f"; if not given {full} in the full profile" if full else ""
    flags.DEFINE_list(
        "tasks", tasks.split(","), f"built-in or TFDS names{more}", flag_values=values
    )
    flags.DEFINE_string(
        "dataset", None, "a file or folder of your own as the only task", flag_values=values
    )
    flags.DEFINE_list(
        "arms", list(COMPARE_ARMS), f"arms: some of {', '.join(COMPARE_ARMS)}", flag_values=values
    )
    flags.DEFINE_list(
        "out_of_domain",
        None,
        "what the upstream arm is fed, one name per task, empty where there is none",
        flag_values=values,
    )
    flags.DEFINE_list(
        "adapt",
        list(DEFAULT_METHODS),
        f"ways from a model to the task: some of {', '.join(METHODS)}; an arm does those it can",
        flag_values=values,
    )
    asking.define(values)
    flags.DEFINE_list("budgets", None, "numbers of labels", flag_values=values)
    flags.DEFINE_integer(
        "seeds",
        None,
        "runs per cell; 8, or 3 in the quick profile",
        flag_values=values,
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "pretrain_seeds", 1, "pretrained checkpoints per arm", flag_values=values, lower_bound=1
    )
    flags.DEFINE_integer(
        "max_test_items",
        None,
        "at most this many test items are scored; 1000, or 200 in the quick profile",
        flag_values=values,
        lower_bound=2,
    )
    flags.DEFINE_string("size", None, "nano, micro, tiny, small, base", flag_values=values)
    flags.DEFINE_enum(
        "profile", "default", presets.PROFILES, "how much of everything", flag_values=values
    )
    command.define_data(values)
    command.define_mesh(values)
    command.define_out(values, out)


def configure(
    values: flags.FlagValues,
    experiment: str,
    imported: str | None = None,
    full: str | None = None,
) -> StudyConfig:
    """The study that the flags describe; see `define` about `imported` and `full`.

    Raises:
      UserError: a flag names something that is not there, or does not fit.
    """
    profile = values["profile"].value
    names = values["tasks"].value
    if full and profile == "full" and values["tasks"].using_default_value:
        names = full.split(",")
    if values["dataset"].value is not None:
        if not values["dataset"].value.strip():
            raise UserError("--dataset=: takes a file or folder, or leave it out")
        names = [values["dataset"].value]
    if not names or not all(names) or len(set(names)) < len(names):
        raise UserError(f"--tasks={','.join(names)}: takes at least one name, none of them twice")
    _check(values)
    upstream = values["out_of_domain"].value
    if upstream and len(upstream) != len(names):
        raise UserError(f"--upstream takes {len(names)} names, one per task, not {len(upstream)}")
    arms = tuple(values["arms"].value)
    adapt = tuple(values["adapt"].value)
    model = _model(values, imported)
    tasks = []
    for n, name in enumerate(names):
        fed = (upstream[n] or None) if upstream else UPSTREAM.get(name)
        tasks.append(_task(name, fed, values, profile, model))
    if values["arms"].using_default_value:
        # An arm that no task has is none of the study's.
        arms = tuple(arm for arm in arms if any(arm not in task.without for task in tasks))
    tasks = [
        dataclasses.replace(task, without=tuple(arm for arm in task.without if arm in arms))
        for task in tasks
    ]
    seeds = values["seeds"].value or (3 if profile == "quick" else 8)
    return StudyConfig(
        experiment=experiment,
        tasks=tuple(tasks),
        arms=arms,
        seeds=seeds,
        search_seeds=1 if profile == "quick" else min(seeds, 2),
        pretrain_seeds=values["pretrain_seeds"].value,
        methods=adapt,
    )


def _check(values: flags.FlagValues) -> None:
    """Raises what needs no data to be found wrong, before any is fetched."""
    for arm in values["arms"].value:
        if arm not in COMPARE_ARMS:
            raise UserError(f"--arms: {arm!r} is not known; accepted are {', '.join(COMPARE_ARMS)}")
    check_methods(tuple(values["adapt"].value))
    asking.check(values, values["published"].value)
    if values["size"].value:
        config_for_size(values["size"].value)
    if values["budgets"].value is not None:
        numbers("--budgets", values["budgets"].value)


def _model(values: flags.FlagValues, default: str | None) -> str | None:
    """The published model of the imported arm, None for none."""
    given = values["published"].value
    asked = not values["arms"].using_default_value and "published" in values["arms"].value
    if given is None and (asked or values["profile"].value != "quick"):
        given = default
    if asked and not given:
        raise UserError("--arms names imported: that arm takes --imported=NAME, such as minilm-l6")
    fits = any(not METHODS[name].updates_model for name in values["adapt"].value)
    return given if given and (asked or fits) and "published" in values["arms"].value else None


def _without(
    name: str,
    modality: str,
    kind: str,
    upstream: str | None,
    model: str | None,
    values: flags.FlagValues,
) -> tuple[str, ...]:
    """Arms that a task has not; says so of each unless all of the study is without it."""
    without = []
    if upstream is None and values["arms"].using_default_value:
        print(f"{name}: no upstream data given, that arm is left out", file=sys.stderr)
        without.append("out_of_domain")
    if model is None or modality != "text" or kind != "class":
        without.append("published")
    if model and "published" in values["arms"].value:
        if modality != "text":
            print(f"{name}: {model} reads text, that arm is left out", file=sys.stderr)
        elif kind != "class":
            print(f"{name}: {model} tells classes apart, that arm is left out", file=sys.stderr)
    return tuple(without)


def _task(
    name: str,
    upstream: str | None,
    values: flags.FlagValues,
    profile: str,
    model: str | None,
) -> TaskConfig:
    where = command.data_options(values)
    data = load(name, **where)
    kind = task_types.task_type_of(data)
    if kind == "text":
        raise UserError(
            f"{name} asks for texts to be written, but a task here asks for classes or named "
            "entities; experiments.unify takes all three"
        )
    recipe = presets.task_recipe(data.modality, kind, profile)
    if values["size"].value:
        recipe = presets.with_model_size(recipe, values["size"].value)
    budgets = values["budgets"].value
    if budgets is None:
        # Of small data sets only the budgets that fit; asked-for ones must fit or fail.
        least = task_types.min_labels(data, kind)
        room = range(least, len(data.train) + 1)
        budgets = [text for text in _BUDGETS[profile] if int(text) in room]
        if not budgets:
            raise UserError(
                f"--budgets: none of {', '.join(_BUDGETS[profile])} labels fits {name}, which has "
                f"{least} {task_types.STRATA_NAMES[kind]} and {len(data.train)} training examples"
            )
    return TaskConfig(
        dataset=name,
        out_of_domain_dataset=upstream,
        label_budgets=numbers("--budgets", budgets),
        recipe=fitted(recipe, data.info.get("shape")),
        max_test_items=values["max_test_items"].value or (200 if profile == "quick" else 1000),
        max_corpus_items=3000 if profile == "quick" else None,
        fingerprint=data.info["fingerprint"],
        excluded_arms=_without(name, data.modality, kind, upstream, model, values),
        published=asking.imported(values, model, name, data) if model else None,
        **where,
    )


def fitted(recipe: Recipe, shape: list[int] | None) -> Recipe:
    """The recipe with a patch size that divides the pictures and leaves at most 64 patches.

    `shape` is that of an example; only pictures have three axes.
    """
    if shape is None or len(shape) != 3:
        return recipe
    height, width, _ = shape
    sides = [p for p in range(recipe.patch_size, 33) if height % p == 0 and width % p == 0]
    sides = [p for p in sides if height * width // p**2 <= 64]
    if not sides:
        raise UserError(f"pictures of {height}x{width} cannot be cut into at most 64 patches")
    return presets.with_patch_size(recipe, sides[0])


def numbers(flag: str, texts: list[str]) -> tuple[int, ...]:
    """Whole numbers above 0, ascending, out of a flag."""
    if not texts or not all(re.fullmatch(r" *0*[1-9][0-9]{0,8} *", text) for text in texts):
        raise UserError(f"{flag}={','.join(texts)}: takes whole numbers above 0, such as 20,100")
    numbers = sorted({int(text) for text in texts})
    return tuple(numbers)


def finish(results: dict, out: pathlib.Path) -> None:
    """Adds the headline, writes results and report, and prints what a person wants to see."""
    results["headline"] = report.headline(results)
    runner.write_results(results, out)
    page = report.write(results, out)
    run_dir.write_study_summary(results, out)
    print(f"\n{report.text_table(results)}\n\n{results['headline']}\n\nreport: {page}")
