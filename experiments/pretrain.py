"""Pretrains one model on unlabeled data.

    fm pretrain --dataset=film_reviews --size=tiny --steps=500
    fm pretrain --dataset=film_reviews,digits,spoken_words,moving_digits \\
        --mixture=film_reviews:2,digits:1,spoken_words:1,moving_digits:1

Several data sets train one model of several modalities; --mixture weighs their shares of a batch.
The same command resumes, and says so when the run is finished. Writes OUT/summary.json: steps,
metrics and a digest of the parameters.

On eight devices, and on two hosts of four devices each (with its own --process_id):

    fm pretrain --mesh=data:2,fsdp:4
    fm pretrain --mesh=data:2,fsdp:4 --coordinator_address=host0:1234 \\
        --num_processes=2 --process_id=0
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
from absl import flags

from experiments import cli, config_flags, recipe_flags, stages, training_flags
from experiments.pretraining_runs import JointPretrainingRun, PretrainingRun, StreamedPretrainingRun
from fm.config_io import parse, to_plain
from fm.data.datasets import Dataset
from fm.data.file_counts import tell_files
from fm.data.load import load
from fm.errors import UserError, error_context
from fm.files import expand_path
from fm.model.config import REMAT_POLICIES
from fm.model.sizes import format_count
from fm.parallel import distributed
from fm.study import joint_pretraining, presets, run_dir, streamed_text
from fm.study.config import Recipe
from fm.study.epochs import EpochSize, epoch_size
from fm.study.joint_pretraining import JointRecipe
from fm.study.model_card import DataSource, data_source
from fm.study.processing import Processor, check_corpus_size
from fm.training.config import TrainResult
from fm.training.objectives import PretrainingObjective, objective_rows
from fm.training.profiling import how_to_open
from fm.training.train_state import params_digest

_OBJECTIVES = ("causal_lm", "masked_lm", "bag_of_words")
_RENAMED_OBJECTIVES = {"next": "causal_lm", "masked": "masked_lm", "bag": "bag_of_words"}
# Of text `transformers` has a counterpart.
_TEXT_ARCH = "llama"
_Recipe = TypeVar("_Recipe", Recipe, JointRecipe)


def define(values: flags.FlagValues) -> None:
    """Defines the flags of data, model and training."""
    flags.DEFINE_string(
        "dataset", "film_reviews", "name, file or folder; or several names", flag_values=values
    )
    flags.DEFINE_string(
        "mixture", None, "weights of several data sets, such as digits:1,spoken_words:2",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_list(
        "captioned",
        [],
        "data sets that are also learned as class name followed by example (this uses labels)",
        flag_values=values,
    )
    recipe_flags.define_model_size(
        values, arch=f"{_TEXT_ARCH} for one data set of text, else that of the recipe"
    )
    training_flags.define(values, "pretrain")
    flags.DEFINE_integer(
        "early_stopping_patience",
        None,
        "stop after so many validations without a lower loss",
        flag_values=values,
        lower_bound=1,
    )
    flags.DEFINE_string(
        "profile_steps",
        None,
        "first and last step, such as 10:15, of which a profile (a trace of jax.profiler) is "
        "written to OUT/profile",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "remat_policy", "none", REMAT_POLICIES, "what a layer keeps for its backward pass",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "objective",
        None,
        "shares of the objectives, such as causal_lm:1. The default for text, "
        "bag_of_words:0.96875,causal_lm:0.03125, mostly learns which words a text has from a "
        "quarter of its tokens: in minutes of training this helps classification most, and the "
        "rest gives a likelihood. For a model that writes text take causal_lm:1",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "stream",
        "auto",
        streamed_text.MODES,
        "whether text is tokenized once to files in the cache and read from there while training, "
        "instead of into memory; auto: if there are over "
        f"{streamed_text.MAX_BYTES_IN_MEMORY // 10**6} MB of it",
        flag_values=values,
    )
    recipe_flags.define_recipe(values)
    config_flags.define(values)
    cli.define_tracker(values)
    cli.define_data(values)
    cli.define_mesh(values)
    cli.define_processes(values)
    cli.define_out(values, "runs/pretrain")


def main(values: flags.FlagValues) -> None:
    """Trains and writes the summary."""
    out_dir, run = cli.out_dir(values), configure(values)
    with distributed.lead_process_first("folder"):
        run = run.extending(out_dir)
        run_dir.init(run.config, out_dir)
        run.save_ids(out_dir)
        processor = run.build_processor(out_dir)
    result = run.train(processor, out_dir)
    _write_summary(result, run, processor, out_dir)
    if distributed.is_lead_process():
        _print_result(result, run, values, out_dir)


def dry_run(values: flags.FlagValues) -> None:
    """Prints what would be trained."""
    run = configure(values)
    stages.show("pretrain", run.config, cli.out_dir(values), [run.stage()])


def configure(values: flags.FlagValues) -> PretrainingRun:
    """Returns the run that the flags, or the file of --config, describe.

    Raises:
      UserError: a flag names something that does not exist or does not fit.
    """
    saved = config_flags.saved_config(values, "pretrain")
    training_flags.check(values)
    if values["profile_steps"].value is not None:
        _profile_steps(values["profile_steps"].value)
    if saved is not None:
        if earlier := saved.get("extended_from"):
            steps = " then ".join(f"--steps={n}" for n in (*earlier, saved["recipe"]["steps"]))
            raise UserError(
                f"--config={values['config'].value}: this run was extended; repeat it with its "
                f"flags, {steps}"
            )
        names = list(saved.get("datasets", ()))
        config_flags.fill(values, _flags_of(saved))
    else:
        dataset = values["dataset"].value
        names = [dataset] if expand_path(dataset).exists() else dataset.split(",")
    if len(names) > 1:
        run = _joint_run(values, names, saved)
    else:
        run = _single_run(values, values["dataset"].value, saved)
    training_flags.check_profile_steps(run.cadence.get("profile_steps"), run.recipe)
    if saved is not None:
        for name, fingerprint in _fingerprints(saved).items():
            found = _fingerprints(run.config)[name]
            config_flags.check_unchanged(values, name, fingerprint, found)
        if not values["set"].value:
            config_flags.tell_differences(values, saved, run.config)
    return run


def _flags_of(saved: dict[str, Any]) -> dict[str, Any]:
    """Returns the flags of a saved config, but for those of its recipe."""
    if "datasets" in saved:
        of_data = {"dataset": ",".join(saved["datasets"])}
    else:
        of_data = config_flags.data_flags(saved["dataset"])
    others = {
        key: value
        for key, value in saved.items()
        if key not in ("experiment", "dataset", "datasets", "recipe")
    }
    if "validate_every" in others:
        others["eval_every"] = others.pop("validate_every")
    if "mixture" in others:
        weights = others["mixture"].items()
        others["mixture"] = ",".join(f"{name}:{weight:g}" for name, weight in weights)
    return of_data | others


def _fingerprints(config: dict[str, Any]) -> dict[str, str]:
    if "datasets" in config:
        return config["datasets"]
    return {config["dataset"]["name"]: config["dataset"]["fingerprint"]}


def _single_run(
    values: flags.FlagValues, name: str, saved: dict[str, Any] | None
) -> PretrainingRun:
    """Returns pretraining on one data set."""
    for flag in ("mixture", "captioned"):
        if values[flag].value:
            raise UserError(f"--{flag} is for several data sets, not for {name} alone")
    recipe_flags.check_size(values)
    objective = parse_objective(values["objective"].value) if values["objective"].value else None
    options, file = cli.data_options(values), recipe_flags.recipe_file(values)
    # A saved config says whether its data was streamed.
    mode = values["stream"].value if saved is None else saved.get("stream", "never")
    with distributed.lead_process_first("data"):
        text = streamed_text.open_streamed(name, mode, options)
        data = None if text is not None else load(name, **options)
        if data is not None:
            tell_files(data)
    modality = "text" if data is None else data.modality
    training_flags.check_text_flags(values, [modality], [name])
    if file is not None and not file.fits(modality):
        raise UserError(f"--recipe={file.path} is for {file.fits_what}, not for {modality}")
    if data is not None:
        check_corpus_size(name, len(data.train))
    arch = _TEXT_ARCH if modality == "text" else None
    recipe = training_flags.with_default_dtype(presets.modality_recipe(modality))
    recipe = presets.with_model(recipe, arch=arch)
    recipe = recipe_flags.with_recipe_flags(recipe, values, file)
    if data is not None:
        recipe = presets.with_fitting_patch_size(recipe, data.info.get("shape"))
    size, given_arch = values["size"].value, values["arch"].value
    recipe = presets.with_model(recipe, size, given_arch or (arch if size else None))
    if objective:
        if objective.bag_of_words and modality != "text":
            raise UserError(
                f"--objective: bag_of_words is for text, not {modality}; takes causal_lm and "
                "masked_lm"
            )
        recipe = dataclasses.replace(recipe, objective=objective)

    def pass_over_data(recipe: Recipe) -> EpochSize:
        if text is not None:
            return text.epoch_size(recipe)
        assert data is not None
        rate, seed = data.info.get("rate"), values["seed"].value
        return epoch_size(data.train, data.modality, recipe, seed=seed, rate=rate)

    recipe = _with_training_flags(recipe, values, pass_over_data, name)
    recipe = _saved_or_set(recipe, values, saved)
    objective_rows(recipe.objective, recipe.batch_size)  # refuses before anything is tokenized
    if text is not None:
        config = {
            "experiment": "pretrain",
            "dataset": {"name": name, "fingerprint": text.fingerprint, **options},
            "stream": "always",
            **_of_training(recipe, values),
        }
        about = (text.card_source(),)
        return StreamedPretrainingRun(config, recipe, text, _cadence(values), about)
    assert data is not None
    presets.tell_image_size_cost(name, data, recipe.model, recipe.objective, recipe.patch_size)
    config = {
        "experiment": "pretrain",
        "dataset": {"name": name, "fingerprint": data.info["fingerprint"], **options},
        **_of_training(recipe, values),
    }
    return PretrainingRun(config, recipe, data, _cadence(values), _for_card([data]))


def _joint_run(
    values: flags.FlagValues, names: list[str], saved: dict[str, Any] | None
) -> JointPretrainingRun:
    """Returns pretraining of one model on several data sets."""
    if values["stream"].value == "always":
        raise UserError("--stream=always: is for one data set, not for several")
    if values["objective"].value:
        raise UserError("--objective is for one data set; each modality of a mixture has its own")
    for flag in ("recipe", "pretrain_minutes"):
        if values[flag].value is not None:
            raise UserError(f"--{flag}={values[flag].value}: is for one data set, not for several")
    recipe = training_flags.with_default_dtype(presets.joint_recipe())
    recipe = presets.with_model(recipe, values["size"].value, values["arch"].value)
    recipe = _with_training_flags(recipe, values, None, values["dataset"].value)
    recipe = _saved_or_set(recipe, values, saved)
    if len(set(names)) < len(names):
        raise UserError(f"--dataset={','.join(names)}: takes each data set once")
    weights = cli.parse_weights("--mixture", values["mixture"].value, names)
    captioned = values["captioned"].value
    if not set(captioned) <= set(names):
        raise UserError(f"--captioned={','.join(captioned)}: takes some of {', '.join(names)}")
    options = cli.data_options(values)
    cli.check_one_dataset(values, names)
    with distributed.lead_process_first("data"):
        datasets = {name: load(name, **options) for name in names}
        for data in datasets.values():
            tell_files(data)
    modalities = [data.modality for data in datasets.values()]
    training_flags.check_text_flags(values, modalities, names)
    for name, data in datasets.items():
        check_corpus_size(name, len(data.train))
        objective = dict(recipe.objectives).get(data.modality)
        if objective is not None:
            presets.tell_image_size_cost(name, data, recipe.model, objective)
    sources = [
        joint_pretraining.build_source(data, weights[name], captioned=name in captioned)
        for name, data in datasets.items()
    ]
    joint_pretraining.layouts_by_modality(sources)
    config = {
        "experiment": "pretrain",
        "datasets": {name: data.info["fingerprint"] for name, data in datasets.items()},
        **options,
        "mixture": weights,
        "captioned": captioned,
        **_of_training(recipe, values),
    }
    about = _for_card(datasets.values())
    return JointPretrainingRun(config, recipe, sources, _cadence(values, several=True), about)


def _for_card(datasets: Iterable[Dataset]) -> tuple[DataSource, ...]:
    return tuple(data_source(each, "pretraining") for each in datasets)


def _saved_or_set(
    recipe: _Recipe, values: flags.FlagValues, saved: dict[str, Any] | None
) -> _Recipe:
    """Returns the recipe of a saved config, or the given one, with the fields of --set."""
    if saved is not None:
        with error_context(f"--config={values['config'].value}"):
            recipe = parse(type(recipe), saved.get("recipe"), "recipe")
    return config_flags.with_settings(recipe, values)


def _of_training(recipe: Recipe | JointRecipe, values: flags.FlagValues) -> dict[str, Any]:
    """Returns the part of a config that says how the model is trained."""
    config = {
        "recipe": to_plain(recipe),
        "seed": values["seed"].value,
    }
    if values["early_stopping_patience"].value is not None:
        # Without it, neither changes the result.
        config["early_stopping_patience"] = values["early_stopping_patience"].value
        if values["eval_every"].value is not None:
            config["validate_every"] = values["eval_every"].value
    return config


def _cadence(values: flags.FlagValues, *, several: bool = False) -> dict[str, Any]:
    """Returns keyword arguments of `pretrain_config`; a recipe of several has no keep_period."""
    names = "checkpoint_every", "early_stopping_patience"
    cadence = {name: values[name].value for name in names}
    cadence["validate_every"] = values["eval_every"].value
    if several and values["keep_period"].value is not None:
        cadence["keep_period"] = values["keep_period"].value
    if values["profile_steps"].value is not None:
        cadence["profile_steps"] = _profile_steps(values["profile_steps"].value)
    return cadence


def _profile_steps(text: str) -> tuple[int, int]:
    """Returns the first and the last step of --profile_steps.

    Raises:
      UserError: they are not two numbers from 2 on, ascending.
    """
    found = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", text)
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 2 <= first <= last:
        raise UserError(
            f"--profile_steps={text}: takes the first and the last step, from 2 on (the first step "
            "of a run is compiled), such as 10:15"
        )
    return first, last


def _with_training_flags(
    recipe: _Recipe,
    values: flags.FlagValues,
    pass_over_data: Callable[[_Recipe], EpochSize] | None,
    name: str,
) -> _Recipe:
    """Returns the recipe with the flags of training and --remat_policy applied."""
    model = dataclasses.replace(recipe.model, remat_policy=values["remat_policy"].value)
    recipe = dataclasses.replace(recipe, model=model)
    return training_flags.with_flags(recipe, values, "pretrain", pass_over_data, name)


def _write_summary(
    result: TrainResult, run: PretrainingRun, processor: Processor, out_dir: pathlib.Path
) -> None:
    if not distributed.is_lead_process():
        return
    run_dir.write_summary_json(
        out_dir,
        steps=result.steps,
        tokens=result.tokens,
        data=[dataclasses.asdict(each) for each in run.data],
        attention=run.attention(processor),
        metrics={key: series[-1] for key, series in result.curve.items() if series},
        digests={"params": params_digest(result.params)},
        flops=result.flops,
        seconds=result.seconds,
        config=run.config,
    )


def _print_result(
    result: TrainResult, run: PretrainingRun, values: flags.FlagValues, out_dir: pathlib.Path
) -> None:
    """Prints the last lines of a run: loss, sizes, where things are and what to do next."""
    parameters = sum(int(leaf.size) for leaf in jax.tree.leaves(result.params))
    noun, unit = run.units
    print(
        f"{result.steps:,} steps of {result.tokens:,} {noun}, {_final_losses(result)} {unit}, "
        f"{format_count(parameters)} parameters, params {params_digest(result.params)[:16]}"
    )
    summary = out_dir / run_dir.SUMMARY_FILE
    print(cli.one_line(f"model and metrics: {out_dir}, summary: {summary}"))
    several = run.config.get("datasets")
    name = next(iter(several)) if several else run.config["dataset"]["name"]
    data = {"dataset": name} | cli.given_data_flags(values)
    cli.print_next("adapt it to labels", "adapt", model=out_dir, **data, labels=100)
    if values["profile_steps"].value is not None and (line := how_to_open(out_dir)) is not None:
        print(cli.one_line(line))


def _final_losses(result: TrainResult) -> str:
    """Returns the last validation losses in words, by group where there are several."""
    losses = {
        name.removesuffix("validation").rstrip("/"): values[-1]
        for name, values in result.curve.items()
        if values and name.rpartition("/")[2] == "validation"
    }
    groups = {name: loss for name, loss in losses.items() if name} or losses
    shown = ", ".join(f"{name} {loss:.3f}".strip() for name, loss in groups.items())
    return f"validation loss {shown}"


def parse_objective(text: str) -> PretrainingObjective:
    """Returns the objective of a flag such as `causal_lm:0.1,bag_of_words:0.9`.

    Raises:
      UserError: a name is unknown, or the shares do not add up to 1.
    """
    shares = dict.fromkeys(_OBJECTIVES, 0.0)
    for part in text.split(","):
        name, _, share = part.partition(":")
        if name in _RENAMED_OBJECTIVES:
            raise UserError(f"--objective: {name} is now called {_RENAMED_OBJECTIVES[name]}")
        if name not in shares or not re.fullmatch(cli.NUMBER, share):
            raise UserError(
                f"--objective={text}: takes shares of {', '.join(_OBJECTIVES)}, such as "
                "causal_lm:0.1,bag_of_words:0.9"
            )
        shares[name] = float(share)
    if abs(sum(shares.values()) - 1.0) > 1e-6:
        raise UserError(
            f"--objective={text}: the shares must add up to 1, such as "
            "causal_lm:0.1,bag_of_words:0.9"
        )
    return PretrainingObjective(**shares)


if __name__ == "__main__":
    cli.run("pretrain", __doc__, define, main, dry_run=dry_run)
