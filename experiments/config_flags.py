"""--set and --config: any field of an experiment's config, and a saved config run again."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from absl import flags

from experiments import cli
from fm.errors import UserError
from fm.files import expand_path
from fm.study.config import StudyConfig, config_hash
from fm.study.config_fields import (
    fields_read_first,
    nearest_fields,
    read_saved_config,
    study_field_paths,
    study_from_saved,
    with_config_field,
    with_field,
)
from fm.study.loading import load
from fm.training.config import config_differences

_Config = TypeVar("_Config")
_Study = TypeVar("_Study", bound=StudyConfig)
# Flags that say where and how a config runs, not what it is.
_OF_THE_RUN = (
    *("out", "config", "set", "dry_run", "help", "h", "mesh", "tracker", "cluster"),
    *("cluster_workers", "coordinator_address", "num_processes", "process_id"),
    *("checkpoint_every", "eval_every", "keep_best", "profile_steps"),
)


def define(values: flags.FlagValues) -> None:
    """Defines --set and --config."""
    flags.DEFINE_multi_string(
        "set",
        [],
        "a field of the config and its value, such as --set=objective.mask_ratio=0.5 or "
        "--set=label_budgets=20,100; can be given several times, and changes what the other flags "
        "say. Fields are named as in config.json; those of a task or its recipe are set for every "
        "task, or for one as tasks.NAME.FIELD",
        flag_values=values,
    )
    flags.DEFINE_string(
        "config",
        None,
        "saved config to run again: a config.json, a results.json(.xz), or the --out folder of a "
        "run. --set changes its fields; other flags that describe a config are refused beside it",
        flag_values=values,
    )


def settings(values: flags.FlagValues) -> list[tuple[str, str, str]]:
    """Returns path, value and the whole flag of every --set, in order.

    Raises:
      UserError: one is not PATH=VALUE.
    """
    found = []
    for given in values["set"].value:
        path, equals, text = given.partition("=")
        if not equals or not path.strip():
            raise UserError(f"--set={given}: takes PATH=VALUE, such as objective.mask_ratio=0.5")
        found.append((path.strip(), text, f"--set={given}"))
    return found


def saved_config(
    values: flags.FlagValues, experiment: str, beside: Iterable[str] = ()
) -> dict[str, Any] | None:
    """Returns the config of --config as JSON, None if the flag is not given.

    Args:
      values: flags.
      experiment: that the config must be of.
      beside: further flags that may be given with it.

    Raises:
      UserError: the file holds no config of the experiment, or a flag beside it describes one.
    """
    text = values["config"].value
    if text is None:
        return None
    path = expand_path(text)
    allowed = (*_OF_THE_RUN, *beside)
    given = [name for name in values if values[name].present and name not in allowed]
    if given:
        raise UserError(
            f"--{min(given)}: --config={text} is a whole config already; leave this flag out, or "
            "change a field with --set=FIELD=VALUE"
        )
    saved = read_saved_config(path)
    if saved["experiment"] != experiment:
        raise UserError(f"--config={text} is of fm {saved['experiment']}, not of fm {experiment}")
    return saved


def study_config(
    values: flags.FlagValues,
    cls: type[_Study],
    experiment: str,
    build: Callable[[], _Study],
    beside: Iterable[str] = (),
) -> _Study:
    """Returns the study config of --config, or else the one `build` returns, changed by --set.

    Args:
      values: flags.
      cls: of the config.
      experiment: its name.
      build: makes the config of the other flags.
      beside: further flags that may be given with --config.

    Raises:
      UserError: see `saved_config`; the data has changed; or a --set does not fit the config.
    """
    given = settings(values)
    saved = saved_config(values, experiment, beside)
    if saved is None:
        config = build()
    else:
        saved = {name: value for name, value in saved.items() if name not in beside}
        config = study_from_saved(cls, saved, expand_path(values["config"].value))
        for task in config.tasks:
            data = load(task.dataset, **task.load_options())
            check_unchanged(values, task.name, task.fingerprint, data.info["fingerprint"])
        tell_differences(values, saved, config.to_dict())
    for path, text, flag in given:
        _check_is_set_later(config, path, flag)
        config = with_field(config, path, text, flag=flag, where=flag)
    return config


def with_settings(
    config: _Config, values: flags.FlagValues, also: Iterable[str] = (), prefix: str = "recipe."
) -> _Config:
    """Returns a config that is no study's with the fields of every --set changed.

    Args:
      config: frozen dataclass.
      values: flags.
      also: its fields that flags of the same name set, and the rest is derived from.
      prefix: that paths may have.

    Raises:
      UserError: a path or value does not fit.
    """
    for path, text, flag in settings(values):
        name = path.partition(".")[0]
        own = {field.name for field in dataclasses.fields(config)}  # pyright: ignore
        if name in also or (name in values and name not in own):
            raise UserError(f"{flag}: is set by a flag of its own: --{name}={text}")
        config = with_config_field(config, path.removeprefix(prefix), text, where=flag)
    return config


def fill(values: flags.FlagValues, saved: dict[str, Any]) -> None:
    """Sets flags to what a saved config says.

    Raises:
      UserError: there is no such flag.
    """
    for name, value in saved.items():
        if name not in values:
            near = nearest_fields(name, sorted(values))
            raise UserError(
                f"--config={values['config'].value}: {name!r} is not of this experiment"
                + (f"; nearest: {', '.join(near)}" if near else "")
            )
        values.__setattr__(name, value)


def data_flags(dataset: dict[str, Any]) -> dict[str, Any]:
    """Returns the flags of a saved config's data set: its name, and how it was read."""
    others = {key: each for key, each in dataset.items() if key not in ("name", "fingerprint")}
    return {"dataset": dataset["name"]} | others


def check_unchanged(values: flags.FlagValues, name: str, saved: str, current: str) -> None:
    """Raises UserError if the data of a saved config is no longer what it was."""
    if saved and saved != current:
        raise UserError(
            f"--config={values['config'].value}: the data of {name} has changed since (fingerprint "
            f"{saved[:12]}, now {current[:12]}); run it with its flags instead"
        )


def tell_differences(
    values: flags.FlagValues, saved: dict[str, Any], current: dict[str, Any]
) -> None:
    """Prints the hash of a saved config to stderr, and what this version reads differently."""
    differences = config_differences(saved, current)
    if not differences:
        print(f"config hash {config_hash(current)}, that of the saved config", file=sys.stderr)
        return
    shown = [f"{name}: {old} -> {new}" for name, (old, new) in differences.items()]
    more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    print(
        f"--config={values['config'].value}: written by another version, so the config hash "
        f"differs ({cli.one_line('; '.join(shown[:4]))}{more})",
        file=sys.stderr,
    )


def _check_is_set_later(config: StudyConfig, path: str, flag: str) -> None:
    """Raises UserError for a field that the rest of the config was derived from."""
    name = path
    for task in config.tasks:
        name = name.removeprefix(f"tasks.{task.name}.")
    if name in fields_read_first(config):
        how = {"fingerprint": "it follows from the data", "dataset": "give --dataset or --tasks"}
        raise UserError(
            f"{flag}: the data is read before fields are set; {how.get(name, f'give --{name}')}"
        )
    if name == "experiment":
        near = ", ".join(nearest_fields(name, study_field_paths(config)))
        raise UserError(f"{flag}: is the name of the command; nearest: {near}")
