"""Searches recipes for a task on a part of its training split, never on test items.

    fm search --tasks=digits --arm=in_domain \\
        --field=objective.mask_ratio=0.5,0.75 --field=steps=400,800 --trials=3

Tries the recipe as it is, then all combinations of the values, or --trials of them drawn at random,
with 3 seeds unless --seeds says otherwise. A recipe's score is the mean over label budgets and
seeds on the development part of the training split (up to 1,000 items, a fifth at most). The same
command resumes, trial by trial. Writes OUT/search.json, OUT/report.html and the best recipe, for

    fm compare --recipe=runs/search/best_recipe.json
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import cli, config_flags, stages, study_flags
from fm.errors import UserError
from fm.report import search as search_report
from fm.report.search import trial_name
from fm.study.arms import ARMS, arm_names, check_arms
from fm.study.config import StudyConfig
from fm.study.dry_run import repeated, study_stages
from fm.study.search import BEST_FILE, SearchConfig, parse_field, run_search, search_trials

SEEDS = 3


def define(values: flags.FlagValues) -> None:
    """Defines the fields, the arm, the number of trials, and the flags of a study."""
    flags.DEFINE_multi_string(
        "field",
        [],
        "a field of the recipe and the values to try, such as optimizer.learning_rate=0.005,0.02 "
        "or learning_rates=[0.01],[0.003,0.01]; any number of times",
        flag_values=values,
    )
    arms = [name for name in arm_names("compare") if _has_recipe(name)]
    flags.DEFINE_string(
        "arm", "in_domain", f"whose score counts: one of {', '.join(arms)}", flag_values=values
    )
    flags.DEFINE_integer(
        "trials",
        None,
        "combinations drawn at random; by default all are tried",
        flag_values=values,
        lower_bound=1,
    )
    study_flags.define(values, suite_name="ablate", out="runs/search")


def main(values: flags.FlagValues) -> None:
    """Runs the search; prints a table and where the best recipe is."""
    config, out = configure(values), cli.out_dir(values)
    results = run_search(config, out, _print_trial)
    page = search_report.write(results, out, str(out / BEST_FILE))
    table = search_report.search_table(results)
    decision = search_report.search_decision(results)
    print(f"\n{table}\n\n{decision}\n\nbest recipe: {out / BEST_FILE}\nreport: {page}")
    data = {name: values[name].value for name in ("dataset", "tasks") if values[name].present}
    data |= cli.given_data_flags(values) if "dataset" in data else {}
    cli.print_next("compare with it", "compare", recipe=out / BEST_FILE, **data)


def dry_run(values: flags.FlagValues) -> None:
    """Prints the stages of the search."""
    config = configure(values)
    count = len(search_trials(config))
    own = repeated(study_stages(config), count, f"{count} trials, ")
    note = "Every trial counts as long as the recipe as it is."
    stages.show("search", config.to_dict(), cli.out_dir(values), own, [note])


def configure(values: flags.FlagValues) -> SearchConfig:
    """Returns the search that the flags describe.

    Raises:
      UserError: a flag names something that does not exist or does not fit, or test items.
    """
    return config_flags.study_config(values, SearchConfig, "search", lambda: _from_flags(values))


def _from_flags(values: flags.FlagValues) -> SearchConfig:
    arm = values["arm"].value
    if not values["arms"].using_default_value:
        raise UserError(f"--arms={','.join(values['arms'].value)}: a search takes one: --arm=NAME")
    check_arms([arm], "compare", values["adapt"].value)
    if not _has_recipe(arm):
        raise UserError(f"--arm={arm}: has no recipe to search; takes an arm that trains a network")
    for flag in ("split", "test_slice"):
        given = values[flag].value
        if not values[flag].using_default_value and given != "development":
            raise UserError(
                f"--{flag}={given}: a search never scores test items, only the development part of "
                "the training split"
            )
    if more := values["more_recipes"].value:
        raise UserError(f"--more_recipes={','.join(more)}: a search changes one recipe: --recipe")
    fields = tuple(map(parse_field, values["field"].value))
    if not fields:
        raise UserError("--field: takes a field and its values, such as steps=400,800")
    # Comparisons take two arms.
    other = "scratch" if arm != "scratch" else "classical"
    values.__setattr__("arms", [arm, other])
    values.__setattr__("split", "development")
    if values["seeds"].value is None:
        values.__setattr__("seeds", SEEDS)
    study = study_flags.configure(values, "search", suite_name="ablate")
    if len(study.tasks) != 1:
        raise UserError(f"--tasks={','.join(values['tasks'].value)}: a search takes one task")
    own = {field.name: getattr(study, field.name) for field in dataclasses.fields(StudyConfig)}
    return SearchConfig(**own | {"arms": (arm,)}, fields=fields, num_trials=values["trials"].value)


def _has_recipe(arm: str) -> bool:
    spec = ARMS[arm]
    return spec.cost.is_network and spec.cost.pretraining != "unknown"


def _print_trial(rows: Sequence[dict[str, Any]], count: int) -> None:
    row = rows[-1]
    score = f"{100 * row['score']:.2f}" if row["score"] is not None else f"failed ({row['error']})"
    print(f"trial {len(rows)} of {count}: {score}, {trial_name(row)}", flush=True)


if __name__ == "__main__":
    cli.run("search", __doc__, define, main, dry_run=dry_run)
