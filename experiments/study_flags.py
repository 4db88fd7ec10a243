"""Flags that describe a comparison of arms, and its config; shared by compare and ablate."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import cli, config_flags, published_flags, recipe_flags, training_flags
from fm.adaptation.methods import METHODS, check_methods
from fm.data.builders import BUILDERS
from fm.data.datasets import development_dataset
from fm.data.prepare import tell_once
from fm.errors import UserError
from fm.files import expand_path
from fm.hf.encoders import encoder_modality
from fm.hf.model_zoo import MODEL_ZOO
from fm.study import presets
from fm.study.arm_spec import OUT_OF_DOMAIN
from fm.study.arms import ARMS, arm_names, check_arms
from fm.study.config import DEFAULT_METHODS, SPLITS, Recipe, StudyConfig, TaskConfig
from fm.study.config_ablations import check_upstream
from fm.study.epochs import EpochSize, epoch_size
from fm.study.loading import load
from fm.study.model_folders import PUBLISHED, find_model
from fm.study.published_encoder_arm import check_modality, readable_modalities
from fm.study.recipe_files import RecipeFile
from fm.study.task import TaskType
from fm.study.task_registry import TASKS, TaskSpec, suite, task_spec_or_default
from fm.study.task_types import task_type_of
from fm.study.tasks import check_label_budgets, fitting_budgets

# Of the further recipes: one patch that is the whole image leaves nothing to predict.
_MIN_PATCHES = 4


def define(
    values: flags.FlagValues, *, suite_name: str, out: str, published_model: str | None = None
) -> None:
    """Defines the flags of a study.

    Args:
      values: to hold them.
      suite_name: the task suite if no tasks are named.
      out: folder if none is named.
      published_model: of text tasks if none is named.
    """
    flags.DEFINE_string(
        "model",
        None,
        f"model of the published arm: {', '.join(MODEL_ZOO)}, a Hugging Face folder (of text, or "
        "an encoder of images or sounds) or a GGUF file; by default "
        f"{published_model or 'none'} for text (in the quick profile none unless --arms names that "
        "arm); empty for none",
        flag_values=values,
    )
    full = f"{suite_name}_full"
    more = f"; in the full profile by default {','.join(suite(full))}" if suite(full) else ""
    flags.DEFINE_list(
        "tasks",
        list(suite(suite_name)),
        f"names of built-in or TFDS data sets{more}",
        flag_values=values,
    )
    flags.DEFINE_string(
        "dataset", None, "a file or folder of your own as the only task", flag_values=values
    )
    flags.DEFINE_string(
        "name",
        None,
        "name of the task of --dataset in tables and plots; default: that of the file or folder",
        flag_values=values,
    )
    arms = arm_names("compare")
    slow = ", ".join(presets.COMPARE["default"].excluded_arms)
    flags.DEFINE_list(
        "arms",
        list(arms),
        f"arms to compare, some of {', '.join(arms)}; by default all, but {slow} only with "
        "--profile=full",
        flag_values=values,
    )
    flags.DEFINE_list(
        "out_of_domain_dataset",
        None,
        "what the out_of_domain arm is pretrained on: one name per task, empty for none",
        flag_values=values,
    )
    flags.DEFINE_list(
        "adapt",
        list(DEFAULT_METHODS),
        f"adaptation methods: some of {', '.join(METHODS)}; an arm uses those it supports",
        flag_values=values,
    )
    published_flags.define_prompts(values)
    budgets = [
        f"{','.join(map(str, presets.COMPARE[each].label_budgets))} ({each})"
        for each in presets.PROFILES
    ]
    flags.DEFINE_list(
        "label_budgets",
        None,
        f"numbers of labels to compare the arms at; by default {', '.join(budgets)}",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "seeds",
        None,
        "repetitions of every arm at every number of labels, each with labels of its own; by "
        "default "
        + ", ".join(f"{presets.COMPARE[each].seeds} ({each})" for each in presets.PROFILES),
        flag_values=values,
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "pretrain_seeds", 1, "pretraining runs per arm", flag_values=values, lower_bound=1
    )
    flags.DEFINE_integer(
        "max_test_items",
        None,
        "largest number of test items; by default 1000, or 200 in the quick profile",
        flag_values=values,
        lower_bound=2,
    )
    define_test_items(values)
    flags.DEFINE_float(
        "label_cost",
        None,
        "price of one label, in any currency: the report then says what pretraining saves",
        flag_values=values,
        lower_bound=0.0,
    )
    recipe_flags.define_model_size(values)
    training_flags.define(values, "compare")
    recipe_flags.define_recipe(values)
    flags.DEFINE_list(
        "more_recipes",
        [],
        "further recipes, JSON files or built-in ones "
        f"({', '.join(name for own in presets.OTHER_RECIPES.values() for name in own)}): every "
        "network arm is built with each of them that fits the task's data, and each seed chooses "
        "on its own labels",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "profile", "default", presets.PROFILES, "size of the study", flag_values=values
    )
    config_flags.define(values)
    cli.define_tracker(values)
    cli.define_data(values)
    cli.define_mesh(values)
    cli.define_out(values, out)


def define_test_items(values: flags.FlagValues) -> None:
    """Defines --split and --test_slice."""
    flags.DEFINE_enum(
        "split",
        "test",
        SPLITS,
        "what is scored: the test items, or, to choose recipes on, a part of the training split",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "test_slice",
        None,
        "where the scored test items begin, in their fixed random order; by default at 0, and for "
        "a built-in task behind the items that earlier versions have scored (with "
        "--profile=quick at 0, with full behind those of the default profile)",
        flag_values=values,
        lower_bound=0,
    )


def test_items_of(values: flags.FlagValues, spec: TaskSpec) -> dict[str, Any]:
    """Returns `split` and `test_slice` of a task's config.

    Raises:
      UserError: both flags are given.
    """
    split, start = values["split"].value, values["test_slice"].value
    if split != "test":
        if start is not None:
            raise UserError(f"--test_slice={start}: is for --split=test, not for {split} items")
        return {"split": split}
    if start is None:
        start = presets.first_test_item(spec.test_slice, values["profile"].value)
    return {"split": split, "test_slice": start}


def configure(
    values: flags.FlagValues,
    experiment: str,
    *,
    suite_name: str,
    published_model: str | None = None,
    upstream: bool = False,
) -> StudyConfig:
    """Returns the study that the flags describe.

    Args:
      values: flags of `define`.
      experiment: its name.
      suite_name: see `define`.
      published_model: see `define`.
      upstream: whether --out_of_domain_dataset names several data sets for one task, from near to
        far.

    Raises:
      UserError: a flag names something that does not exist or does not fit.
    """
    profile = values["profile"].value
    names = values["tasks"].value
    if profile == "full" and values["tasks"].using_default_value:
        names = list(suite(f"{suite_name}_full") or suite(suite_name))
    if values["dataset"].value is not None:
        if not values["dataset"].value.strip():
            raise UserError("--dataset=: takes a file or folder, or leave it out")
        name = values["dataset"].value
        names = [name]
        if name in BUILDERS and expand_path(name).exists():
            tell_once(name, f"the file or folder here is read; --tasks={name} is the built-in one")
            names = [f"./{name}"]
    if not names or not all(names) or len(set(names)) < len(names):
        raise UserError(f"--tasks={','.join(names)}: takes one or more different names")
    cli.check_one_dataset(values, names)
    methods = tuple(values["adapt"].value)
    _check_flags(values, methods)
    others = values["out_of_domain_dataset"].value
    if upstream and others:
        if len(names) > 1:
            raise UserError(
                f"--out_of_domain_dataset={','.join(others)}: is for one task, not for "
                f"{', '.join(names)}; give one with --tasks or --dataset"
            )
        others = [others[0]]
    if others and len(others) != len(names):
        raise UserError(
            f"--out_of_domain_dataset: takes {len(names)} names, one per task, not {len(others)}"
        )
    model = published_flags.published_model(values, published_model)
    file = recipe_flags.recipe_file(values)
    tasks = []
    for n, name in enumerate(names):
        spec = task_spec_or_default(name)
        other = (others[n] or None) if others else spec.out_of_domain_dataset
        task = _task_config(spec, other, values, model, file)
        if upstream:
            named = tuple(values["out_of_domain_dataset"].value or spec.upstream_datasets)
            check_upstream(task.name, named)
            task = dataclasses.replace(task, upstream_datasets=named)
        tasks.append(task)
    if training_flags.gives_text_flags(values):
        loaded = [load(task.dataset, **task.load_options()) for task in tasks]
        training_flags.check_text_flags(values, [data.modality for data in loaded], names)
    if values["model"].value and model:
        _check_model_is_read(model, tasks, values)
    arms = tuple(values["arms"].value)
    if values["arms"].using_default_value:
        # Without the arms that are too slow for the profile, and those that no task has.
        slow = set(presets.COMPARE[profile].excluded_arms)
        if values["out_of_domain_dataset"].value:
            slow -= {OUT_OF_DOMAIN}
        arms = tuple(
            arm
            for arm in arms
            if arm not in slow and any(arm not in task.excluded_arms for task in tasks)
        )
    tasks = [
        dataclasses.replace(
            task, excluded_arms=tuple(arm for arm in task.excluded_arms if arm in arms)
        )
        for task in tasks
    ]
    preset = presets.COMPARE[profile]
    seeds = values["seeds"].value or preset.seeds
    config = StudyConfig(
        experiment=experiment,
        tasks=tuple(tasks),
        arms=arms,
        seeds=seeds,
        pretrain_seeds=values["pretrain_seeds"].value,
        methods=methods,
        label_cost=values["label_cost"].value,
        smoke_test=profile == "quick",
    )
    check_arms(config.arms, "compare", methods)
    return config


def _check_flags(values: flags.FlagValues, methods: tuple[str, ...]) -> None:
    """Raises UserError for what is wrong whatever the data, before any is fetched."""
    check_methods(methods)
    arms = values["arms"].value
    check_arms(arms, "compare", DEFAULT_METHODS)
    for flag, arm in (("model", "published"), ("out_of_domain_dataset", OUT_OF_DOMAIN)):
        if values[flag].value and arm not in arms:
            raise UserError(
                f"--{flag}={values[flag].serialize().partition('=')[2]}: is for the {arm} arm, "
                f"which --arms={','.join(arms)} leaves out; add it, or leave this flag out"
            )
    model = values["model"].value
    if model and encoder_modality(model) is None and not published_flags.published_methods(values):
        raise UserError(
            f"--model={values['model'].value}: --adapt={','.join(methods)} "
            f"trains the model itself, which the published arm does not; add "
            f"{published_flags.listed_published_methods()}, or leave this flag out"
        )
    _check_name(values)
    published_flags.check_prompts(values)
    if values["model"].value:
        find_model(values["model"].value, (PUBLISHED,))
    recipe_flags.check_size(values)
    training_flags.check(values)
    if values["label_budgets"].value is not None:
        cli.parse_counts("--label_budgets", values["label_budgets"].value)


def _check_name(values: flags.FlagValues) -> None:
    name = values["name"].value
    if name is None:
        return
    if values["dataset"].value is None:
        raise UserError(f"--name={name}: is for the task of --dataset, which is not given")
    if not re.fullmatch(r"\w[\w .+-]{0,59}", name) or name in TASKS:
        raise UserError(
            f"--name={name}: takes up to 60 letters, digits, spaces and _.+- that are not the name "
            "of a built-in task"
        )


def _excluded_arms(
    name: str,
    modality: str,
    task_type: TaskType,
    other: str | None,
    model: str | None,
    values: flags.FlagValues,
) -> tuple[str, ...]:
    """Returns the arms that a task does not have, and prints why."""
    excluded = [
        spec.name
        for spec in ARMS.values()
        if spec.task_types and task_type.name not in spec.task_types
    ]
    if other is None and values["arms"].using_default_value:
        print(f"{name}: skipping the out_of_domain arm: no data set is given", file=sys.stderr)
        excluded.append("out_of_domain")
    reads = encoder_modality(model) if model else None
    fits = modality in readable_modalities(reads)
    if model is None or not fits or not task_type.predicts_by_head:
        excluded.append("published")
    if model and "published" in excluded and "published" in values["arms"].value:
        reason = f"needs one label per {modality}" if fits else f"reads {reads or 'text'} only"
        print(f"{name}: skipping the published arm: {model} {reason}", file=sys.stderr)
    return tuple(excluded)


def _check_model_is_read(model: str, tasks: Sequence[TaskConfig], values: flags.FlagValues) -> None:
    """Raises UserError if --model reads the data of no task; tells what it does not do."""
    reads = encoder_modality(model)
    modalities = [load(task.dataset, **task.load_options()).modality for task in tasks]
    if not set(modalities) & set(readable_modalities(reads)):
        check_modality(model, reads, modalities[0])
    if reads is not None and values["adapt"].using_default_value:
        print(
            f"--model={model}: its features are read as they are; --adapt=probe,full also "
            "fine-tunes it, which takes long on a CPU",
            file=sys.stderr,
        )


def _task_config(
    spec: TaskSpec,
    other: str | None,
    values: flags.FlagValues,
    model: str | None,
    file: RecipeFile | None,
) -> TaskConfig:
    profile, dataset = values["profile"].value, spec.dataset or spec.name
    options = cli.data_options(values)
    data = load(dataset, **options)
    test_items = test_items_of(values, spec)
    if test_items["split"] == "development":
        data = development_dataset(data)
    task_type = task_type_of(data)
    if "compare" not in task_type.experiments:
        raise UserError(
            f"--tasks: {spec.name} is a {task_type.name} task, which only "
            f"{' and '.join(f'fm {name}' for name in task_type.experiments)} runs"
        )
    recipe = presets.task_recipe(data.modality, task_type.name, profile)
    recipe = training_flags.with_default_dtype(recipe)
    if file is not None and not file.fits(data.modality, task_type.name):
        print(
            f"{spec.name}: --recipe={file.path} is for {file.fits_what}, not used", file=sys.stderr
        )
        file = None
    recipe = recipe_flags.with_recipe_flags(recipe, values, file)
    recipe = presets.with_model(recipe, values["size"].value, values["arch"].value)
    preset = presets.COMPARE[profile]

    def pass_over_data(recipe: Recipe) -> EpochSize:
        rate, limit = data.info.get("rate"), preset.max_corpus_items
        return epoch_size(data.train, data.modality, recipe, rate=rate, limit=limit)

    recipe = training_flags.with_flags(recipe, values, "compare", pass_over_data, spec.name)
    kind = data.modality, task_type.name
    others = [
        presets.with_fitting_patch_size(each, data.info.get("shape"), _MIN_PATCHES)
        for each in recipe_flags.other_recipes(spec.name, recipe, values, *kind)
    ]
    recipe = presets.with_fitting_patch_size(recipe, data.info.get("shape"))
    presets.tell_image_size_cost(spec.name, data, recipe.model, recipe.objective, recipe.patch_size)
    if values["label_budgets"].value is not None:
        budgets = cli.parse_counts("--label_budgets", values["label_budgets"].value)
    else:
        budgets = preset.label_budgets
    published = None
    if model:
        published = published_flags.published_config(values, model, spec, data, profile)
    config = TaskConfig(
        dataset=dataset,
        name=values["name"].value or spec.name,
        out_of_domain_dataset=other,
        label_budgets=budgets,
        recipe=recipe,
        other_recipes=tuple(others),
        max_test_items=values["max_test_items"].value or preset.max_test_items,
        **test_items,
        max_corpus_items=preset.max_corpus_items,
        fingerprint=data.info["fingerprint"],
        excluded_arms=_excluded_arms(spec.name, data.modality, task_type, other, model, values),
        published=published,
        **options,
    )
    if values["label_budgets"].value is None:
        # Default budgets that do not fit are left out; given ones must fit.
        budgets = fitting_budgets(budgets, config.name, data, task_type, validated=True)
        return dataclasses.replace(config, label_budgets=budgets)
    check_label_budgets(budgets, config.name, data, task_type, validated=True)
    return config
