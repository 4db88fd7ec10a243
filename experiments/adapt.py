"""Adapts a pretrained model to labels: a linear probe or full fine-tuning.

    python -m experiments.adapt --pretrained=runs/pretrain --dataset=film_reviews --labels=200

Chooses among the recipe's settings on validation cut from the labels, scores the test items
once, and writes OUT/summary.json. Without --pretrained it starts from fresh parameters.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
from absl import flags

from experiments import command, studies
from fm.data.sources import Dataset, load
from fm.errors import UserError
from fm.evaluation.validation import choose, draw_labels
from fm.model.config import sized
from fm.study import recipes, study
from fm.study.arms import network
from fm.study.config import Recipe, TaskConfig
from fm.study.pretraining import Reader, reader, restore
from fm.study.tasks import prepare


def define(values: flags.FlagValues) -> None:
    """Where the model and the labels come from."""
    flags.DEFINE_string("dataset", "film_reviews", "name, file or folder", flag_values=values)
    flags.DEFINE_string(
        "pretrained", None, "folder of experiments.pretrain; fresh if not given", flag_values=values
    )
    flags.DEFINE_string(
        "size", None, "of a fresh model: nano, micro, tiny, small, base", flag_values=values
    )
    flags.DEFINE_integer("labels", 100, "labelled examples", flag_values=values, lower_bound=2)
    flags.DEFINE_enum("adapt", "any", ["any", "probe", "full"], "how", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of everything random", flag_values=values, lower_bound=0)
    command.define_data(values)
    command.define_out(values, "runs/adapt")


def main(values: flags.FlagValues) -> None:
    """Chooses, fits, scores."""
    out, labels, seed = command.out(values), values["labels"].value, values["seed"].value
    name, size, folder = (values[key].value for key in ("dataset", "size", "pretrained"))
    if size and folder:
        raise UserError(f"--size={size}: the model of --pretrained has its own; leave one out")
    if size:
        sized(size)
    where = {key: values[key].value for key in ("data_dir", "text_column", "label_column")}
    data = load(name, **where)
    recipe = studies.fitted(recipes.for_format(data.modality), data.info.get("image_shape"))
    if size:
        recipe = recipes.with_size(recipe, size)
    pretrained = _pretrained(folder, data, recipe) if folder else None
    task = prepare(TaskConfig(name, None, (labels,), recipe, **where), ("scratch",), 1)
    drawn = draw_labels(task.dataset.train.labels, labels, seed)
    task = dataclasses.replace(task, drawn=(drawn,))
    config = {
        "experiment": "adapt",
        "dataset": {"name": name, "fingerprint": data.info["fingerprint"], **where},
        **{key: values[key].value for key in ("pretrained", "labels", "adapt", "seed")},
        "recipe": json.loads(json.dumps(dataclasses.asdict(recipe))),
    }
    study.claim(config, out)
    if pretrained:
        reads, checkpoints = pretrained[0], [pretrained[1]]
    else:
        reads, checkpoints = reader(task.dataset.train, task.modality, recipe, out), []
    arm = network(task, reads, checkpoints)
    truth, rows = task.dataset.train.labels[drawn], task.rows_of(drawn)
    wanted = values["adapt"].value
    trials = [
        trial
        for trial in arm.validate(rows, truth, seed)
        if wanted in ("any", trial["config"]["adapt"])
    ]
    setting = choose(trials)["config"]
    guessed = arm.fit_predict(rows, truth, seed, setting)
    accuracy = float(np.mean(guessed == np.asarray(task.test.labels)))
    summary = {
        "setting": setting,
        "accuracy": accuracy,
        "test_items": len(task.test),
        "trials": trials,
        "config": config,
    }
    partial = out / "summary.partial"
    partial.write_text(json.dumps(summary, indent=1))
    partial.replace(out / "summary.json")
    how = ", ".join(f"{key} {value}" for key, value in setting.items())
    print(f"accuracy {accuracy:.3f} on {len(task.test)} test items ({how}), {out / 'summary.json'}")


def _pretrained(folder: str, data: Dataset, recipe: Recipe) -> tuple[Reader, dict]:
    """The pretrained model, checked to read such data."""
    try:
        found = restore(pathlib.Path(folder).expanduser())
    except UserError as error:
        raise UserError(
            f"--pretrained={folder}: {error}; takes the --out of experiments.pretrain"
        ) from error
    reads, shape = found.reads, data.info.get("image_shape")
    patch = recipe.patch**2 * shape[2] if shape else 0
    if (reads.tokenizer is None) == (data.modality == "text") or reads.model.patch != patch:
        raise UserError(
            f"--pretrained={folder} reads {'images' if reads.tokenizer is None else 'text'} of "
            f"another shape than {data.name}; take a model pretrained on {data.modality} like it"
        )
    return reads, found.params


if __name__ == "__main__":
    command.run("adapt", __doc__, define, main)
