"""Adapts a pretrained model to labels: a linear probe, fine-tuning, adapters or prompts.

    python -m experiments.adapt --pretrained=runs/pretrain --dataset=film_reviews --labels=200

    python -m experiments.adapt --pretrained=minilm-l6 --adapt=probe,lora --labels=200

--pretrained is the --out of experiments.pretrain, or a published model: a known name, a folder of
Hugging Face's or a GGUF file; without it the parameters are fresh. Chooses among the settings of
the methods on validation cut from the labels, scores the test items once, and writes
OUT/summary.json.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import time

import jax
import numpy as np
from absl import flags

from experiments import cli, study_flags
from fm.adaptation.methods import METHODS, check_methods
from fm.data.load import Dataset, load
from fm.errors import UserError
from fm.evaluation.model_selection import draw_labels, select_trial
from fm.files import expand_path
from fm.hf import model_zoo
from fm.hf.model_zoo import MODEL_ZOO
from fm.model.config import config_for_size
from fm.parallel import mesh as meshes
from fm.study import presets, run_dir
from fm.study.arms import load_published_arm
from fm.study.config import DEFAULT_METHODS, Recipe, TaskConfig
from fm.study.pretraining import load_pretrained
from fm.study.processing import Processor, build_processor
from fm.study.task_registry import task_spec
from fm.study.task_types import build_classification_arm, task_type_of
from fm.study.tasks import prepare_task
from fm.training.train_state import params_digest


def define(values: flags.FlagValues) -> None:
    """Where the model and the labels come from."""
    flags.DEFINE_string("dataset", "film_reviews", "name, file or folder", flag_values=values)
    flags.DEFINE_string(
        "pretrained",
        None,
        f"folder of experiments.pretrain, or a published model ({', '.join(MODEL_ZOO)}, a folder or a "
        "GGUF file); fresh if not given",
        flag_values=values,
    )
    flags.DEFINE_string(
        "size", None, "of a fresh model: nano, micro, tiny, small, base", flag_values=values
    )
    flags.DEFINE_integer("labels", 100, "labelled examples", flag_values=values, lower_bound=2)
    flags.DEFINE_list(
        "adapt",
        list(DEFAULT_METHODS),
        f"how: some of {', '.join(METHODS)}, the best on validation is taken; prompt only with a "
        "published model that goes on with a text",
        flag_values=values,
    )
    study_flags.define_prompts(values)
    flags.DEFINE_integer("seed", 0, "of everything random", flag_values=values, lower_bound=0)
    cli.define_data(values)
    cli.define_mesh(values)
    cli.define_out(values, "runs/adapt")


def main(values: flags.FlagValues) -> None:
    """Chooses, fits, scores."""
    began = time.perf_counter()
    out, labels, seed = cli.out_dir(values), values["labels"].value, values["seed"].value
    name, size, given = (values[key].value for key in ("dataset", "size", "pretrained"))
    if size and given:
        raise UserError(f"--size={size}: the model of --pretrained has its own; leave one out")
    adapt = tuple(values["adapt"].value)
    check_methods(adapt)
    study_flags.check_prompts(values, None)
    if size:
        config_for_size(size)
    where = cli.data_options(values)
    data = load(name, **where)
    task_type = task_type_of(data)
    if not task_type.predicts_classes:
        raise UserError(
            f"--dataset={name} is a {task_type.name} task, but only classification is supported; "
            "see experiments.multitask"
        )
    recipe = presets.with_fitting_patches(
        presets.modality_recipe(data.modality), data.info.get("shape")
    )
    if size:
        recipe = presets.with_model_size(recipe, size)
    # A folder of one's own is told by its checkpoints, else it is looked for among others'.
    theirs = given and _published(given)
    if not theirs and all(METHODS[name].published_models_only for name in adapt):
        raise UserError(
            f"--adapt={','.join(adapt)}: takes a published model as --pretrained; or add probe"
        )
    pretrained = _pretrained(given, data, recipe) if given and not theirs else None
    asked = study_flags.published_config(values, given, task_spec(name), data) if theirs else None
    config = TaskConfig(name, None, (labels,), recipe, published=asked, **where)
    try:
        task = prepare_task(config, ("scratch",), 1)
    except UserError as error:
        raise UserError(str(error).replace("--label_budgets", "--labels", 1)) from error
    drawn = draw_labels(task.dataset.train.labels, labels, seed)
    task = dataclasses.replace(task, train_idx=(drawn,))
    config = {
        "experiment": "adapt",
        "dataset": {"name": name, "fingerprint": data.info["fingerprint"], **where},
        **{key: values[key].value for key in ("pretrained", "labels", "adapt", "seed")},
        "published": dataclasses.asdict(asked) if asked else None,
        "recipe": json.loads(json.dumps(dataclasses.asdict(recipe))),
    }
    found = load_published_arm(task, adapt, trainable=True) if theirs else None
    run_dir.init(config, out)
    if (before := run_dir.read_summary(out)) is not None:
        print(f"{out} is finished; another --out runs it again")
        _tell(before, out)
        return
    if found:
        arm = found
    elif pretrained:
        arm = build_classification_arm(task, pretrained[0], [pretrained[1]], adapt)
    else:
        reads = build_processor(
            task.dataset.train, task.modality, recipe, out, data.info.get("rate")
        )
        arm = build_classification_arm(task, reads, [], adapt)
    truth, rows = task.dataset.train.labels[drawn], task.pool_rows(drawn)
    mesh = meshes.current_mesh()
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        trials = arm.validate(rows, truth, seed)
        setting = select_trial(trials)["config"]
        fitted = arm.fit(rows, truth, seed, setting)
    guessed = np.ascontiguousarray(arm.predict(fitted, setting))
    accuracy = float(np.mean(guessed == np.asarray(task.test.labels)))
    run_dir.write_summary(
        out,
        steps=fitted.steps,
        setting=setting,
        accuracy=accuracy,
        max_test_items=len(task.test),
        trials=trials,
        published=arm.model.description(),
        metrics={"accuracy": accuracy},
        digests={
            "params": params_digest(fitted.params),
            "predictions": hashlib.sha256(guessed).hexdigest(),
        },
        seconds=time.perf_counter() - began,
        config=config,
    )
    _tell({"setting": setting, "max_test_items": len(task.test), "accuracy": accuracy}, out)


def _tell(summary: dict, out: pathlib.Path) -> None:
    """What a person wants to know of it."""
    how = ", ".join(f"{key} {value}" for key, value in summary["setting"].items())
    items = f"{summary['max_test_items']} test items"
    print(f"accuracy {summary['accuracy']:.3f} on {items} ({how}), {out / run_dir.SUMMARY_FILE}")


def _published(name: str) -> bool:
    """Whether `name` is a published model, not a folder of experiments.pretrain."""
    own = (expand_path(name) / "checkpoints").is_dir()
    return not own and (name in MODEL_ZOO or model_zoo.locate_model(name) is not None)


def _pretrained(folder: str, data: Dataset, recipe: Recipe) -> tuple[Processor, dict]:
    """The pretrained model, checked to read such data."""
    try:
        found = load_pretrained(expand_path(folder))
    except UserError as error:
        raise UserError(
            f"--pretrained={folder}: {error}; takes the --out of experiments.pretrain, a "
            f"published model's folder or GGUF file, or one of {', '.join(MODEL_ZOO)}"
        ) from error
    reads, shape = found.processor, data.info.get("shape")
    layout = reads.layouts.get(data.modality)
    fits = reads.tokenizer if data.modality == "text" else layout and layout.shape == tuple(shape)
    if not fits:
        formats = [*reads.layouts, *["text"] * (reads.tokenizer is not None)]
        raise UserError(
            f"--pretrained={folder} reads {' and '.join(formats)}, not such {data.modality} as "
            f"{data.name} has; take a model pretrained on {data.modality} like it"
        )
    return reads, found.params


if __name__ == "__main__":
    cli.run("adapt", __doc__, define, main)
