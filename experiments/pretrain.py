"""Pretrains one model on unlabelled data and says what it learned.

    python -m experiments.pretrain --dataset=film_reviews --size=tiny --steps=500
    python -m experiments.pretrain --dataset=film_reviews,digits,spoken_words,moving_digits \\
        --mixture=film_reviews:2,digits:1,spoken_words:1,moving_digits:1

Several data sets make one model of several formats; the mixture is in rows of a batch.
The same command again goes on where it was, or says that it is finished. Ends with
OUT/summary.json: steps, metrics, params_digest.

On eight devices, and on two machines of four (each with its own --process):

    python -m experiments.pretrain --mesh=data:2,fsdp:4
    python -m experiments.pretrain --mesh=data:2,fsdp:4 --coordinator=host0:1234 --processes=2 \\
        --process=0
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re

from absl import flags

from experiments import command, studies
from fm.data.load import load
from fm.errors import UserError
from fm.files import expand_path
from fm.model.config import REMAT_POLICIES, ModelConfig, config_for_size
from fm.parallel import distributed
from fm.study import joint_pretraining, presets, run_dir
from fm.study.config import Recipe
from fm.study.pretraining import pretrain
from fm.study.processing import build_processor
from fm.training.config import TrainResult
from fm.training.objectives import Objective
from fm.training.train_state import params_digest


def define(values: flags.FlagValues) -> None:
    """Data, model, length."""
    flags.DEFINE_string(
        "dataset", "film_reviews", "name, file or folder; or several", flag_values=values
    )
    flags.DEFINE_string(
        "mixture", None, "weights of several, such as digits:1,spoken_words:2", flag_values=values
    )
    flags.DEFINE_list(
        "captioned", [], "those of them to learn after the name of the class too (uses labels)",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string("size", None, "nano, micro, tiny, small, base", flag_values=values)
    flags.DEFINE_integer("steps", None, "updates", flag_values=values, lower_bound=1)
    flags.DEFINE_integer(
        "batch_size", None, "sequences per update", flag_values=values, lower_bound=1
    )
    flags.DEFINE_enum(
        "remat", "none", REMAT_POLICIES, "what layers keep for the backward pass, from all to the least",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "checkpoint_every", None, "steps between saves", flag_values=values, lower_bound=1
    )
    flags.DEFINE_integer(
        "validate_every", None, "steps between validations", flag_values=values, lower_bound=1
    )
    flags.DEFINE_integer(
        "early_stop", None, "validations in a row without a lower loss that end it",
        flag_values=values, lower_bound=1,
    )  # fmt: skip
    flags.DEFINE_integer("seed", 0, "of everything random", flag_values=values, lower_bound=0)
    flags.DEFINE_string(
        "objective",
        None,
        "shares, such as causal_lm:1 or causal_lm:0.1,bag_of_words:0.9",
        flag_values=values,
    )
    command.define_data(values)
    command.define_mesh(values)
    command.define_processes(values)
    command.define_out(values, "runs/pretrain")


def main(values: flags.FlagValues) -> None:
    """Trains and writes the summary."""
    out = command.out(values)
    name = values["dataset"].value
    names = [name] if expand_path(name).exists() else name.split(",")
    if len(names) > 1:
        _joint(values, names, out)
        return
    for flag in ("mixture", "captioned"):
        if values[flag].value:
            raise UserError(f"--{flag} goes with several data sets, not with {name} alone")
    where = command.data_options(values)
    if values["size"].value:
        config_for_size(values["size"].value)
    objective = _objective(values["objective"].value) if values["objective"].value else None
    with distributed.lead_process_first("data"):
        data = load(name, **where)
    recipe = recipe_of(values, data.modality, data.info.get("shape"), objective)
    config = {
        "experiment": "pretrain",
        "dataset": {"name": name, "fingerprint": data.info["fingerprint"], **where},
        "recipe": json.loads(json.dumps(dataclasses.asdict(recipe))),
        "seed": values["seed"].value,
    }
    with distributed.lead_process_first("folder"):
        run_dir.init(config, out)
        reads = build_processor(data.train, data.modality, recipe, out, data.info.get("rate"))
    trained = pretrain(
        data.train,
        data.modality,
        recipe,
        reads,
        seed=values["seed"].value,
        out_dir=out,
        run_name=pathlib.Path(name).name,
        checkpoint_every=values["checkpoint_every"].value,
        validate_every=values["validate_every"].value,
        early_stopping_patience=values["early_stop"].value,
    )
    _write(trained, config, out)


def _joint(values: flags.FlagValues, names: list[str], out: pathlib.Path) -> None:
    """`main` of several data sets."""
    if values["objective"].value:
        raise UserError("--objective goes with one data set; formats have their own here")
    recipe = presets.joint_recipe()
    if values["size"].value:
        recipe = dataclasses.replace(recipe, model=config_for_size(values["size"].value))
    recipe = dataclasses.replace(recipe, model=_remembering(recipe.model, values))
    for name in ("steps", "batch_size"):
        if values[name].value is not None:
            recipe = dataclasses.replace(recipe, **{name: values[name].value})
    if len(set(names)) < len(names):
        raise UserError(f"--dataset={','.join(names)}: takes each data set once")
    weights = command.weights("--mixture", values["mixture"].value, names)
    captioned = values["captioned"].value
    if not set(captioned) <= set(names):
        raise UserError(f"--captioned={','.join(captioned)}: takes some of {', '.join(names)}")
    where = command.data_options(values)
    with distributed.lead_process_first("data"):
        datasets = {name: load(name, **where) for name in names}
    sources = [
        joint_pretraining.build_source(data, weights[name], captioned=name in captioned)
        for name, data in datasets.items()
    ]
    joint_pretraining.source_layouts(sources)
    config = {
        "experiment": "pretrain",
        "datasets": {name: data.info["fingerprint"] for name, data in datasets.items()},
        **where,
        "mixture": weights,
        "captioned": captioned,
        "recipe": json.loads(json.dumps(dataclasses.asdict(recipe))),
        "seed": values["seed"].value,
    }
    with distributed.lead_process_first("folder"):
        run_dir.init(config, out)
        reads = joint_pretraining.build_joint_processor(sources, recipe, out)
    trained = joint_pretraining.pretrain_joint(
        sources,
        recipe,
        reads,
        seed=values["seed"].value,
        out_dir=out,
        run_name="joint",
        checkpoint_every=values["checkpoint_every"].value,
        validate_every=values["validate_every"].value,
        early_stopping_patience=values["early_stop"].value,
    )
    _write(trained, config, out)


def _write(trained: TrainResult, config: dict, out: pathlib.Path) -> None:
    """The summary, by the first process."""
    if not distributed.is_lead_process():
        return
    digest = params_digest(trained.params)
    path = run_dir.write_summary(
        out,
        steps=trained.steps,
        tokens=trained.tokens,
        metrics={key: series[-1] for key, series in trained.curve.items() if series},
        digests={"params": digest},
        flops=trained.flops,
        seconds=trained.seconds,
        config=config,
    )
    print(f"{trained.steps} steps, params {digest[:16]}, {path}")


def recipe_of(
    values: flags.FlagValues,
    modality: str,
    shape: list[int] | None,
    objective: Objective | None,
) -> Recipe:
    """The format's recipe, less what the flags say otherwise."""
    recipe = studies.fitted(presets.modality_recipe(modality), shape)
    if values["size"].value:
        recipe = presets.with_model_size(recipe, values["size"].value)
    recipe = dataclasses.replace(recipe, model=_remembering(recipe.model, values))
    for name in ("steps", "batch_size"):
        if values[name].value is not None:
            recipe = dataclasses.replace(recipe, **{name: values[name].value})
    if objective:
        if objective.bag_of_words and modality != "text":
            raise UserError(
                f"--objective: bag_of_words is for text, not {modality}; take causal_lm and masked_lm"
            )
        recipe = dataclasses.replace(recipe, objective=objective)
    return recipe


def _remembering(model: ModelConfig, values: flags.FlagValues) -> ModelConfig:
    """The model, keeping what --remat says."""
    return dataclasses.replace(model, remat_policy=values["remat"].value)


def _objective(text: str) -> Objective:
    shares = {"causal_lm": 0.0, "masked_lm": 0.0, "bag_of_words": 0.0}
    for part in text.split(","):
        name, _, share = part.partition(":")
        if name not in shares or not re.fullmatch(command.NUMBER, share):
            raise UserError(
                f"--objective={text}: takes shares of causal_lm, masked_lm, bag_of_words, such as causal_lm:0.1,bag_of_words:0.9"
            )
        shares[name] = float(share)
    if abs(sum(shares.values()) - 1.0) > 1e-6:
        raise UserError(
            f"--objective={text}: the shares must add up to 1, as in causal_lm:0.1,bag_of_words:0.9"
        )
    return Objective(**shares)


if __name__ == "__main__":
    command.run("pretrain", __doc__, define, main)
