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

from experiments import command, pretrain
from fm.data.sources import load
from fm.errors import UserError
from fm.evaluation.validation import choose
from fm.study.arms import network
from fm.study.config import TaskConfig
from fm.study.pretraining import reader, restore
from fm.study.tasks import prepare


def define(values: flags.FlagValues) -> None:
    """Where the model and the labels come from."""
    pretrain.define(values, out="runs/adapt")
    flags.DEFINE_string(
        "pretrained", None, "folder of experiments.pretrain; fresh if not given", flag_values=values
    )
    flags.DEFINE_integer("labels", 100, "labelled examples", flag_values=values, lower_bound=2)
    flags.DEFINE_enum("adapt", "any", ["any", "probe", "full"], "how", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Chooses, fits, scores."""
    out, labels, seed = command.out(values), values["labels"].value, values["seed"].value
    name = values["dataset"].value
    where = {key: values[key].value for key in ("data_dir", "text_column", "label_column")}
    data = load(name, **where)
    recipe = pretrain.recipe_of(values, data.modality, data.info.get("image_shape"))
    task = prepare(TaskConfig(name, None, (labels,), recipe, **where), ("scratch",), seed + 1)
    if values["pretrained"].value:
        reads, params = restore(pathlib.Path(values["pretrained"].value))
        if (reads.tokenizer is None) == (task.modality == "text"):
            raise UserError(
                f"--pretrained={values['pretrained'].value} does not read {task.modality}; take a "
                f"model pretrained on {task.modality}"
            )
        checkpoints = [params]
    else:
        reads, checkpoints = reader(task.dataset.train, task.modality, recipe, out), []
    arm = network(task, reads, checkpoints)
    drawn = task.drawn[seed]
    truth = np.asarray(task.dataset.train.labels)[drawn]
    rows = task.rows_of(drawn)
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
        "dataset": name,
        "labels": labels,
        "setting": setting,
        "accuracy": accuracy,
        "test_items": len(task.test),
        "trials": trials,
        "config": json.loads(json.dumps(dataclasses.asdict(recipe))),
    }
    out.mkdir(parents=True, exist_ok=True)
    partial = out / "summary.partial"
    partial.write_text(json.dumps(summary, indent=1))
    partial.replace(out / "summary.json")
    print(f"accuracy {accuracy:.3f} on {len(task.test)} test items with {setting}")


if __name__ == "__main__":
    command.run("adapt", __doc__, define, main)
