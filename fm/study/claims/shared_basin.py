"""The claim that networks fine-tuned from one checkpoint share a basin of the loss.

Networks are fitted to the same labeled images in different orders, from one pretrained checkpoint,
from one random start and from a random start each. Every pair's straight line is read at 11 points.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from fm.adaptation.features import FeatureConfig
from fm.adaptation.interpolation import barrier, scores_on_line
from fm.adaptation.methods import METHODS, FittedModel
from fm.config_io import to_plain
from fm.data.block_shuffle import with_shuffled_blocks
from fm.evaluation.pairs import mean_over_pairs
from fm.evaluation.statistics import Interval, mean_interval
from fm.files import read_checked_json, write_checked_json
from fm.model.transformer import init
from fm.progress_lines import phase
from fm.study import presets, test_slices
from fm.study.adaptation import ModelArm
from fm.study.built_arm import InitialModel
from fm.study.cells import parallel_map
from fm.study.claims.registry import (
    FULL,
    PILOT,
    QUICK,
    Claim,
    Condition,
    Paper,
    PaperFigure,
    Verdict,
    is_above,
    verdict_of,
)
from fm.study.claims.studies import task_config
from fm.study.config import Recipe, config_hash
from fm.study.pretraining import pretrain_seeds
from fm.study.processing import build_processor
from fm.study.task import Task
from fm.study.tasks import prepare_task

PLAIN, SHUFFLED = "plain", "shuffled"
# What the runs of a group start from.
CHECKPOINT, ONE_START, OWN_START = "one checkpoint", "one random start", "a random start each"


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the measurement is.

    Attributes:
      dataset: of images.
      labels: labeled images, the same for all runs.
      updates: fine-tuning steps of every run.
      pretrain_steps: steps of pretraining.
      checkpoints: pretrained checkpoints.
      runs_of_each: runs from each checkpoint.
      scratch_runs: runs from random starts, of either kind.
      test_items: images on which networks are scored.
      corpus: training images, labeled ones included, that pretraining reads.
      test_slice: first of the test items scored.
    """

    dataset: str
    labels: int
    updates: int
    pretrain_steps: int
    checkpoints: int
    runs_of_each: int
    scratch_runs: int
    test_items: int
    corpus: int
    test_slice: int = 0


SIZES = {
    QUICK: Size("digits", 100, 10, 10, 2, 2, 3, 50, 400),
    PILOT: Size("fashion_mnist", 1000, 300, 400, 2, 3, 4, 1000, 6000),
    FULL: Size("fashion_mnist", 2000, 600, 4000, 4, 4, 8, 2000, 20_000, 8000),
}
# On two cores.
MINUTES = {QUICK: 0.5, PILOT: 10.0, FULL: 25.0}
BATCH_SIZE, LEARNING_RATE, BLOCK_SIDE = 32, 3e-3, 4
# Points of accuracy: a barrier below the first is none, one above the second is clear.
NO_BARRIER, CLEAR_BARRIER = 0.01, 0.05
CRITERION = (
    "fine-tuned from one checkpoint: the mean barrier over pairs is below 1 point (upper end of "
    "its 95% interval over checkpoints)",
    "from a random start each: the mean barrier over pairs is above 5 points (lower end of its 95% "
    "interval over runs)",
)


def measure(profile: str, out_dir: pathlib.Path, data_dir: str | None) -> dict[str, Any]:
    """Returns the accuracies of all runs and of the networks on the line of each pair."""
    return measure_size(SIZES[profile], out_dir, data_dir, development=profile == PILOT)


def measure_size(
    size: Size,
    out_dir: pathlib.Path,
    data_dir: str | None,
    *,
    development: bool,
) -> dict[str, Any]:
    """Measures at a given size, see `measure`.

    Args:
      size: how large.
      out_dir: keeps every group of runs once it is done.
      data_dir: folder of prepared TFDS data sets.
      development: whether a part of the training split is scored instead of test items.
    """
    config = task_config(
        size.dataset,
        recipe(size),
        (size.labels,),
        data_dir=data_dir,
        development=development,
        test_slice=size.test_slice,
        max_test_items=size.test_items,
        max_corpus_items=size.corpus,
    )
    task = prepare_task(config, ("in_domain",), 1)
    scored_slice = test_slices.record(task, config_hash({"shared_basin": to_plain(size)}))
    fitting = presets.with_fitting_patch_size(config.recipe, task.dataset.info["shape"])
    task = dataclasses.replace(task, config=dataclasses.replace(config, recipe=fitting))
    processor = build_processor(task.dataset.train, "image", fitting, out_dir)
    runs = pretrain_seeds(
        task.corpora["in_domain"],
        "image",
        fitting,
        processor,
        seeds=size.checkpoints,
        out_dir=out_dir / "pretrained",
        run_name="shared_basin: pretraining",
    )
    groups = []
    for inputs, own in ((PLAIN, task), (SHUFFLED, _shuffled(task))):
        starts: list[tuple[str, int, Sequence[dict], int]] = [
            *((CHECKPOINT, n, [run.params], size.runs_of_each) for n, run in enumerate(runs)),
            (ONE_START, 0, [init(jax.random.key(1000), processor.model)], size.scratch_runs),
            (OWN_START, 0, [], size.scratch_runs),
        ]
        for start, number, params, count in starts:
            name = f"{inputs}-{start}-{number}".replace(" ", "_")
            path = out_dir / "groups" / f"{name}.json"
            if not path.exists():
                arm = own.task_type.build_head(
                    own, InitialModel(processor, given_params=params), None, ("full",)
                )
                assert isinstance(arm, ModelArm), "images have one label each"
                group = _measure_group(own, arm, count, f"shared_basin: {name}")
                write_checked_json(path, group)
            about = {"inputs": inputs, "start": start, "number": number}
            groups.append(about | read_checked_json(path))
    return {"groups": groups, "test_slice": scored_slice}


def recipe(size: Size) -> Recipe:
    """Returns the image recipe with runs of fixed length and one setting."""
    base = presets.image_recipe()
    # Read side by side, as the recipe has it, networks are near linear, and the mean of two linear
    # ones is about as good as they are.
    finetune = dataclasses.replace(
        base.finetune,
        fixed_updates=size.updates,
        batch_size=BATCH_SIZE,
        class_weight=None,
        feature_config=FeatureConfig("mean"),
    )
    return dataclasses.replace(
        base,
        steps=size.pretrain_steps,
        finetune=finetune,
        learning_rates=(LEARNING_RATE,),
        regularizers=("weight_decay",),
    )


def _shuffled(task: Task) -> Task:
    """Returns the task on images with shuffled blocks; its test items and labels stay."""
    dataset = with_shuffled_blocks(task.dataset, BLOCK_SIDE)
    # The test items scored are a part of the whole split, read in the same way.
    test = dataclasses.replace(task.test, read=dataset.test.read)
    return dataclasses.replace(task, dataset=dataset, test=test)


def _measure_group(task: Task, arm: ModelArm, count: int, name: str) -> dict[str, Any]:
    """Fits runs that differ in the order of examples; returns accuracies of runs and of lines."""
    method = METHODS["full"]
    hparams = method.search_space(task.config.recipe)[0]
    train_idx = task.train_idx[0][: max(task.config.label_budgets)]
    rows, labels = task.pool_rows(train_idx), task.strata[train_idx]
    truths = np.asarray(task.test.labels)

    def right(params: dict) -> np.ndarray:
        return arm.predict(FittedModel(params, 0), hparams).values == truths

    with phase(f"{name}: fitting {count} runs", quiet=True):
        fitted = parallel_map(
            lambda seed: arm.fit(rows, labels, seed, hparams).params, range(count)
        )
    pairs = list(itertools.combinations(range(count), 2))
    with phase(f"{name}: reading {len(pairs)} lines", quiet=True):
        lines = parallel_map(
            lambda pair: scores_on_line(fitted[pair[0]], fitted[pair[1]], right).mean(axis=1),
            pairs,
        )
    predictions = parallel_map(
        lambda params: arm.predict(FittedModel(params, 0), hparams).values, fitted
    )
    return {
        "pairs": [list(pair) for pair in pairs],
        "lines": [[round(float(value), 6) for value in line] for line in lines],
        "predictions": np.stack(predictions).tolist(),
        "accuracies": [float((each == truths).mean()) for each in predictions],
    }


def settings(profile: str, data_dir: str | None) -> dict[str, Any]:
    """Returns everything that the outcome depends on, as JSON."""
    size = SIZES[profile]
    return dataclasses.asdict(size) | {
        "block_side": BLOCK_SIDE,
        "recipe": to_plain(recipe(size)),
    }


def barriers(measured: dict[str, Any], inputs: str, start: str) -> Interval:
    """Returns the mean barrier over pairs, with an interval over new checkpoints or new runs."""
    groups = [
        each for each in measured["groups"] if (each["inputs"], each["start"]) == (inputs, start)
    ]
    if len(groups) > 1:
        # Pairs of one checkpoint are no independent pairs: checkpoints are.
        return mean_interval(np.array([np.mean([*map(barrier, g["lines"])]) for g in groups]))
    (group,) = groups
    count = len(group["accuracies"])
    values_RR = np.zeros((count, count))
    for (first, second), line in zip(group["pairs"], group["lines"], strict=True):
        values_RR[first, second] = values_RR[second, first] = barrier(line)
    return mean_over_pairs(values_RR)


def _groups(measured: dict[str, Any], inputs: str, start: str) -> list[dict[str, Any]]:
    return [g for g in measured["groups"] if (g["inputs"], g["start"]) == (inputs, start)]


def _mean_accuracy(measured: dict[str, Any], inputs: str, start: str) -> float:
    """Returns the mean accuracy of runs in percent."""
    groups = _groups(measured, inputs, start)
    return 100 * float(np.mean([value for each in groups for value in each["accuracies"]]))


def judge(measured: dict[str, Any]) -> Verdict:
    """Returns the verdict: no barrier between runs of one checkpoint, a clear one from scratch."""
    found = {
        (inputs, start): barriers(measured, inputs, start)
        for inputs in (PLAIN, SHUFFLED)
        for start in (CHECKPOINT, OWN_START, ONE_START)
    }
    shared, apart = found[PLAIN, CHECKPOINT], found[PLAIN, OWN_START]
    conditions = (
        Condition(CRITERION[0], is_above(-shared.high, -shared.low, -NO_BARRIER), told(shared)),
        Condition(CRITERION[1], is_above(apart.low, apart.high, CLEAR_BARRIER), told(apart)),
    )
    figure = (
        f"mean barrier {told(shared)} points from one checkpoint, {told(apart)} from a random "
        "start each"
    )
    notes = [f"{PLAIN} images, {ONE_START}: mean barrier {told(found[PLAIN, ONE_START])} points"]
    notes += [
        f"{SHUFFLED} blocks, {start}: mean barrier {told(found[SHUFFLED, start])} points"
        for start in (CHECKPOINT, ONE_START, OWN_START)
    ]
    notes += [
        f"accuracy on {inputs} images: {_mean_accuracy(measured, inputs, CHECKPOINT):.1f}% from a "
        f"checkpoint, {_mean_accuracy(measured, inputs, OWN_START):.1f}% from scratch"
        for inputs in (PLAIN, SHUFFLED)
    ]
    return verdict_of(conditions, figure, notes)


def told(interval: Interval) -> str:
    """Returns an interval of accuracies in points."""
    mean, low, high = (100 * value for value in dataclasses.astuple(interval))
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def plot(measured: dict[str, Any], figure: Figure) -> None:
    """Draws the accuracy along every line, by inputs and by what the runs start from."""
    colors = {CHECKPOINT: "#0072B2", ONE_START: "#E69F00", OWN_START: "#000000"}
    panels = figure.subplots(1, 2, sharey=True)
    for axes, inputs in zip(panels, (PLAIN, SHUFFLED), strict=True):
        for start, color in colors.items():
            lines = [line for each in _groups(measured, inputs, start) for line in each["lines"]]
            shares = np.linspace(0, 1, len(lines[0]))
            for line in lines:
                axes.plot(shares, 100 * np.array(line), color=color, alpha=0.15, linewidth=0.8)
            mean = 100 * np.mean(lines, axis=0)
            axes.plot(shares, mean, color=color, linewidth=2, label=f"from {start}")
        axes.set_title(f"{inputs} images")
        axes.set_xlabel("share of the second network")
    panels[0].set_ylabel("accuracy (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)


def protocol() -> str:
    """Returns the protocol of the full profile."""
    size = SIZES[FULL]
    return (
        f"{size.dataset}, {size.labels:,} labeled images, the same for all runs; the image recipe "
        f"of compare in patches of side 4, mean features, pretrained {size.checkpoints} times for "
        f"{size.pretrain_steps:,} steps on {size.corpus:,} training images without labels. Every "
        f"run is fitted for {size.updates} updates, and runs differ in the order of images: "
        f"{size.runs_of_each} from each checkpoint, {size.scratch_runs} from a random start each, "
        f"{size.scratch_runs} from one random start. The line between every two runs of a group "
        f"is read at 11 points on {size.test_items:,} test images; the barrier is the largest "
        "fall of accuracy below the straight line between its ends. All of it again on images "
        f"whose blocks of side {BLOCK_SIDE} are in random order, with the same checkpoints. Unlike "
        "the paper: a small transformer pretrained without labels on the images of the task, "
        "not a ResNet-50 pretrained with labels on ImageNet."
    )


CLAIM = Claim(
    name="shared_basin",
    statement="Two networks fine-tuned from one pretrained checkpoint lie in one basin of the "
    "loss; two trained from scratch do not.",
    paper=Paper(
        "Neyshabur, Sedghi and Zhang",
        "What is being transferred in transfer learning?",
        2020,
        "NeurIPS",
        "https://arxiv.org/abs/2008.11687",
    ),
    figures=(
        PaperFigure(
            "trained from pretrained weights, the model stays in the same basin of the loss, "
            "and instances are close in parameter space",
            "abstract, read at proceedings.neurips.cc",
        ),
        PaperFigure(
            "no performance barrier between two networks from pretrained weights; a barrier "
            "between two from random weights, even from the same random weights",
            "in words, read in a review of the paper (creatis-myriad.github.io); its figure "
            "was not at hand, so no number is quoted",
        ),
    ),
    protocol=protocol(),
    criterion=CRITERION,
    minutes=MINUTES,
    settings=settings,
    measure=measure,
    judge=judge,
    plot=plot,
    tfds_name="fashion_mnist",
)
