"""One model for many tasks over four modalities, against a network for each.

    fm multitask
    fm multitask --profile=quick --tasks=film_reviews,digits,spoken_words

Pretrains a model of each modality alone and one of all together, adapts each to every task by
labels, tunes the joint one to follow instructions on all tasks at once, and writes a report. The
same command again resumes, or says that the study is finished.

    fm multitask --profile=full --out=runs/multitask-full

also runs the ablations of pretraining: what transfers from which modality to which tasks, what the
weights of the mixture do, and how much pretraining data it takes; --ablations selects some of
them, in any profile.
"""

from __future__ import annotations

import dataclasses
import sys

from absl import flags

from experiments import cli, cluster, config_flags, stages, study_flags, training_flags
from experiments.finish import finish
from fm.data.datasets import development_dataset
from fm.errors import UserError
from fm.study import presets
from fm.study.ablations import ablation_names, check_ablations
from fm.study.arm_spec import JOINT
from fm.study.arms import arm_names, arms_without_text, check_arms, check_arms_have_text
from fm.study.config import DEFAULT_METHODS, MultitaskConfig, TaskConfig
from fm.study.dry_run import study_stages
from fm.study.loading import load
from fm.study.multitask import run_multitask
from fm.study.task_registry import suite, task_spec_or_default
from fm.study.task_types import task_type_of
from fm.study.tasks import fitting_budgets


def define(values: flags.FlagValues) -> None:
    """Defines the flags: tasks, mixture, budgets, ablations."""
    arms = arm_names("multitask")
    flags.DEFINE_list(
        "tasks",
        list(suite("multitask")),
        "names of built-in or TFDS data sets, files or folders",
        flag_values=values,
    )
    flags.DEFINE_list("arms", list(arms), "arms to compare, some of these", flag_values=values)
    flags.DEFINE_string(
        "mixture",
        None,
        "weights of the tasks in pretraining, such as film_reviews:2,digits:1",
        flag_values=values,
    )
    flags.DEFINE_list("label_budgets", None, "numbers of labels of each task", flag_values=values)
    flags.DEFINE_integer(
        "seeds",
        None,
        "repetitions of every arm at every number of labels; by default 8, or 2 in the quick "
        "profile",
        flag_values=values,
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "max_test_items",
        None,
        "largest number of test items of a task; by default 300, or 60 in the quick profile",
        flag_values=values,
        lower_bound=2,
    )
    study_flags.define_test_items(values)
    training_flags.define(values, "multitask")
    flags.DEFINE_enum(
        "profile", "default", presets.PROFILES, "size of the study", flag_values=values
    )
    flags.DEFINE_list(
        "ablations",
        None,
        f"ablations of pretraining: some of {', '.join(ablation_names())}, or empty for none; by "
        "default all in the full profile, else none",
        flag_values=values,
    )
    config_flags.define(values)
    cli.define_tracker(values)
    cli.define_data(values)
    cli.define_mesh(values)
    cluster.define(values)
    cli.define_out(values, "runs/multitask")


def configure(values: flags.FlagValues) -> MultitaskConfig:
    """Returns the study that the flags describe.

    Raises:
      UserError: a flag names something that does not exist or does not fit.
    """
    return config_flags.study_config(
        values, MultitaskConfig, "multitask", lambda: _from_flags(values)
    )


def _from_flags(values: flags.FlagValues) -> MultitaskConfig:
    profile = values["profile"].value
    preset = presets.MULTITASK[profile]
    names, arms = values["tasks"].value, tuple(values["arms"].value)
    # Errors that need no data come first.
    if not names or not all(names) or len(set(names)) < len(names):
        raise UserError(f"--tasks={','.join(names)}: takes one or more different names")
    check_arms(arms, "multitask", DEFAULT_METHODS)
    ablations = _ablations(values, profile, arms)
    budgets = preset.label_budgets
    if values["label_budgets"].value:
        budgets = cli.parse_counts("--label_budgets", values["label_budgets"].value)
    specs = [task_spec_or_default(name) for name in names]
    weights = {spec.name: spec.mixture_weight for spec in specs}
    if values["mixture"].value:
        weights = cli.parse_weights("--mixture", values["mixture"].value, list(weights))
    joint = training_flags.with_default_dtype(presets.joint_recipe(profile))
    joint = training_flags.with_flags(joint, values, "multitask")
    options = cli.data_options(values)
    tasks, modalities = [], set()
    for spec in specs:
        dataset = spec.dataset or spec.name
        data = load(dataset, **options)
        test_items = study_flags.test_items_of(values, spec)
        if test_items["split"] == "development":
            data = development_dataset(data)
        task_type = task_type_of(data)
        modalities.add(data.modality)
        if data.modality in dict(joint.objectives):
            objective = dict(joint.objectives)[data.modality]
            presets.tell_image_size_cost(spec.name, data, joint.model, objective)
        if not values["label_budgets"].value:
            # One validation label: tasks differ in their grids, and a model shares the budgets.
            budgets = fitting_budgets(budgets, spec.name, data, task_type, validated=True)
        tasks.append(
            TaskConfig(
                dataset=dataset,
                name=spec.name,
                out_of_domain_dataset=None,
                label_budgets=(),
                recipe=presets.task_recipe_for_joint_model(
                    data.modality, task_type.name, joint, profile
                ),
                max_test_items=values["max_test_items"].value or preset.max_test_items,
                **test_items,
                max_corpus_items=preset.max_corpus_items,
                fingerprint=data.info["fingerprint"],
                **options,
            )
        )
    training_flags.check_text_flags(values, modalities, names)
    return MultitaskConfig(
        tasks=tuple(dataclasses.replace(task, label_budgets=budgets) for task in tasks),
        joint=joint,
        weights=tuple(weights.items()),
        instruction_tuning=presets.instruction_tuning_config(profile),
        instruction_learning_rates=presets.INSTRUCTION_LEARNING_RATES,
        max_instruction_length=presets.MAX_INSTRUCTION_LENGTH,
        arms=_arms_of(values, modalities),
        seeds=values["seeds"].value or preset.seeds,
        ablations=ablations,
        smoke_test=profile == "quick",
    )


def _arms_of(values: flags.FlagValues, modalities: set[str]) -> tuple[str, ...]:
    """Returns the arms that tasks of these modalities can have; the others must not be named."""
    arms = tuple(values["arms"].value)
    skipped = arms_without_text(arms, modalities)
    if not values["arms"].using_default_value or not skipped:
        check_arms_have_text(arms, modalities)
        return arms
    print(
        f"skipping the {', '.join(skipped)} arm: instructions are text, and no task is",
        file=sys.stderr,
    )
    return tuple(arm for arm in arms if arm not in skipped)


def _ablations(values: flags.FlagValues, profile: str, arms: tuple[str, ...]) -> tuple[str, ...]:
    names = values["ablations"].value
    if names is None:
        return ablation_names() if profile == "full" and JOINT in arms else ()
    check_ablations(names, arms)
    return tuple(names)


def main(values: flags.FlagValues) -> None:
    """Runs the study and writes its report."""
    config, out_dir = configure(values), cli.out_dir(values)
    with cluster.cell_executor(values, "multitask") as executor:
        results = run_multitask(config, out_dir, executor)
    finish(results, out_dir)


def dry_run(values: flags.FlagValues) -> None:
    """Prints the stages of the study."""
    config = configure(values)
    stages.show("multitask", config.to_dict(), cli.out_dir(values), study_stages(config))


if __name__ == "__main__":
    cli.run("multitask", __doc__, define, main, dry_run=dry_run)
