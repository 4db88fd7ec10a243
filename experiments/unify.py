"""One model for many tasks over four formats, against a network for each.

    python -m experiments.unify
    python -m experiments.unify --profile=quick --tasks=film_reviews,digits,spoken_words

Pretrains a model of each format alone and one of all together, adapts each to every task by labels,
tunes the joint one to follow instructions on all tasks at once, and writes a report. The same
command again goes on where it stopped, or says that it is finished.

    python -m experiments.unify --profile=full --out=runs/unify-full

studies further what transfers from which format to which tasks, what the weights of the mixture do,
and how much pretraining data it takes; --ablations picks one of these, in any profile.
"""

from __future__ import annotations

import dataclasses

from absl import flags

from experiments import cli, spread, studies
from fm.data.load import load
from fm.errors import UserError
from fm.study import presets
from fm.study import presets as defaults
from fm.study.config import TaskConfig
from fm.study.multitask_config import (
    MULTITASK_ABLATIONS,
    MULTITASK_ARMS,
    MultitaskConfig,
    check_ablations,
    check_multitask_arms,
)
from fm.study.multitask_runner import run_multitask
from fm.study.task_types import task_type_of
from fm.study.tasks import short_name

_BUDGETS = {"quick": ("50",), "default": ("50", "200"), "full": ("50", "200", "800")}


def define(values: flags.FlagValues) -> None:
    """Tasks, mixture, budgets."""
    flags.DEFINE_list(
        "tasks", list(defaults.MULTITASK_TASKS), "names, files or folders", flag_values=values
    )
    flags.DEFINE_list(
        "arms", list(MULTITASK_ARMS), f"some of {', '.join(MULTITASK_ARMS)}", flag_values=values
    )
    flags.DEFINE_string(
        "mixture", None, "weights of rows, such as film_reviews:2,digits:1", flag_values=values
    )
    flags.DEFINE_list("label_budgets", None, "numbers of labels of each task", flag_values=values)
    flags.DEFINE_integer(
        "seeds", None, "runs per cell; 8, or 2 if quick", flag_values=values, lower_bound=1
    )
    flags.DEFINE_integer(
        "max_test_items", None, "of each task at most; 300, or 60 if quick", flag_values=values,
        lower_bound=2,
    )  # fmt: skip
    flags.DEFINE_integer(
        "steps", None, "of pretraining, instead of the profile's", flag_values=values, lower_bound=1
    )
    flags.DEFINE_enum(
        "profile", "default", presets.PROFILES, "how much of everything", flag_values=values
    )
    flags.DEFINE_list(
        "ablations",
        None,
        f"further ones, of other pretraining: some of {', '.join(MULTITASK_ABLATIONS)}, or empty for none; if "
        "not given all in the full profile, else none",
        flag_values=values,
    )
    cli.define_data(values)
    cli.define_mesh(values)
    spread.define(values)
    cli.define_out(values, "runs/unify")


def configure(values: flags.FlagValues) -> MultitaskConfig:
    """The study that the flags describe.

    Raises:
      UserError: a flag names something that is not there, or does not fit.
    """
    profile = values["profile"].value
    quick = profile == "quick"
    names, arms = values["tasks"].value, tuple(values["arms"].value)
    # What needs no data to be found wrong comes first.
    if not names or not all(names) or len(set(names)) < len(names):
        raise UserError(f"--tasks={','.join(names)}: takes at least one name, none of them twice")
    check_multitask_arms(arms)
    further = _studies(values, profile, arms)
    budgets = studies.numbers(
        "--label_budgets", values["label_budgets"].value or list(_BUDGETS[profile])
    )
    short = [short_name(name) for name in names]
    weights = {name: weight for name, weight in defaults.MULTITASK_WEIGHTS.items() if name in short}
    if values["mixture"].value:
        weights = cli.parse_weights("--mixture", values["mixture"].value, short)
    joint = presets.joint_recipe(profile)
    if values["steps"].value:
        joint = dataclasses.replace(joint, steps=values["steps"].value)
    where = cli.data_options(values)
    tasks = []
    for name in names:
        data = load(name, **where)
        recipe = defaults.multitask_recipe(data.modality, task_type_of(data), joint, profile)
        tasks.append(
            TaskConfig(
                dataset=name,
                out_of_domain_dataset=None,
                label_budgets=budgets,
                recipe=recipe,
                max_test_items=values["max_test_items"].value or (60 if quick else 300),
                max_corpus_items=2000 if quick else None,
                fingerprint=data.info["fingerprint"],
                **where,
            )
        )
    seeds = values["seeds"].value or (2 if quick else 8)
    return MultitaskConfig(
        tasks=tuple(tasks),
        joint=joint,
        weights=tuple(weights.items()),
        instruction_tuning=defaults.instruction_tuning_config(profile),
        instruction_learning_rates=defaults.INSTRUCTION_LEARNING_RATES,
        max_instruction_length=defaults.INSTRUCTION_LENGTH,
        arms=arms,
        seeds=seeds,
        search_seeds=1,
        ablations=further,
    )


def _studies(values: flags.FlagValues, profile: str, arms: tuple[str, ...]) -> tuple[str, ...]:
    """The further studies asked for."""
    given = values["ablations"].value
    if given is None:
        return MULTITASK_ABLATIONS if profile == "full" and "joint" in arms else ()
    check_ablations(tuple(given), arms)
    return tuple(given)


def main(values: flags.FlagValues) -> None:
    """Runs the study and writes its report."""
    config, out = configure(values), cli.out_dir(values)
    with spread.over(values, "unify") as cells:
        results = run_multitask(config, out, cells)
    studies.finish(results, out)


if __name__ == "__main__":
    cli.run("unify", __doc__, define, main)
