"""The claim that pretraining on a task's own data lifts a plain transformer at tied compute.

A transformer gets a fixed number of passes over the labeled training data. A share of them goes to
predicting hidden tokens of the same examples, the others to their classes.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fm.adaptation.features import FeatureConfig
from fm.adaptation.finetune import FinetuneConfig
from fm.config_io import to_plain
from fm.data.datasets import subset
from fm.evaluation.design import Design
from fm.evaluation.statistics import mean_over_seeds_and_items
from fm.model.config import ArchConfig, ModelConfig
from fm.study import analysis, run_dir, test_slices
from fm.study.built_arm import InitialModel
from fm.study.cells import Cell, missing_cells, run_cells
from fm.study.claims.registry import (
    FULL,
    PILOT,
    QUICK,
    Claim,
    Condition,
    Paper,
    PaperFigure,
    Verdict,
    in_points,
    is_ahead,
    verdict_of,
)
from fm.study.claims.studies import task_config
from fm.study.comparisons import TaskScores, difference_rows
from fm.study.config import Recipe, config_hash
from fm.study.pretraining import pretrain
from fm.study.processing import Processor, build_processor
from fm.study.task import Task
from fm.study.tasks import prepare_task
from fm.training.objectives import PretrainingObjective
from fm.training.optimizer import OptimizerConfig

Row = dict[str, Any]
LEARNED, ROTARY = "learned", "rotary"
BATCH_SIZE = 32
GAIN = "gain"
MORE_WITH_FEW = "more with few labels"
MORE_WITH_LEARNED = "more with learned positions"
# On two cores.
MINUTES = {QUICK: 0.5, PILOT: 10.0, FULL: 60.0}
# What is judged: the task, and the share of the passes that goes to pretraining.
JUDGED_TASK, SHARE = "fashion_mnist", 0.4
CRITERION = (
    "learned positions, all data: spending 40% of the passes on pretraining is better than none "
    "(interval above 0, adjusted p below 0.05)",
    "learned positions: that gain is larger with a tenth of the data (same)",
    "all data: that gain is smaller with rotary positions (same)",
)


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """A task and how its models are built and trained.

    Attributes:
      dataset: its name.
      shares: of the passes that go to pretraining, 0 first.
      labels: labeled examples, few and all.
      epochs: passes over them in all, of few and of all.
      max_tokens: longest input, of learned positions.
      mask_ratio: of hidden tokens in pretraining.
      num_layers: of the model.
      learning_rates: of fine-tuning, by the name of `rate_key`.
      pretrain_learning_rate: of the layers.
      input_fields: of the recipe, how inputs are read.
      test_slice: first of the test items scored.
    """

    dataset: str
    shares: tuple[float, ...]
    labels: tuple[int, int]
    epochs: tuple[int, int]
    max_tokens: int
    mask_ratio: float
    num_layers: int
    learning_rates: tuple[tuple[str, float], ...]
    pretrain_learning_rate: float
    input_fields: tuple[tuple[str, Any], ...]
    test_slice: int = 0


@dataclasses.dataclass(frozen=True)
class Size:
    """How large the measurement is.

    Attributes:
      tasks: see `TaskSettings`.
      positions: position encodings, `LEARNED` first.
      seeds: each with its own labeled examples, checkpoints and order.
      test_items: scored.
      d_model: width of the model.
    """

    tasks: tuple[TaskSettings, ...]
    positions: tuple[str, ...]
    seeds: int
    test_items: int
    d_model: int = 64


def rate_key(positions: str, share: float) -> str:
    """Returns the name of a learning rate: that of pretrained models, or of those from scratch."""
    return f"{positions}, {'pretrained' if share else 'scratch'}"


# One rate for all; the pilot tried others with learned positions alone.
_LEARNING_RATES = tuple(
    (rate_key(positions, share), 3e-3) for positions in (LEARNED, ROTARY) for share in (0, 1)
)


def _fashion(
    labels: tuple[int, int], epochs: tuple[int, int], shares: tuple[float, ...] = (0.0, 0.4)
) -> TaskSettings:
    return TaskSettings(
        dataset="fashion_mnist",
        shares=shares,
        labels=labels,
        epochs=epochs,
        max_tokens=50,
        mask_ratio=0.5,
        num_layers=2,
        learning_rates=_LEARNING_RATES,
        pretrain_learning_rate=0.01,
        input_fields=(("patch_size", 4), ("raster", True)),
        test_slice=6000,
    )


def _digits(labels: tuple[int, int], epochs: tuple[int, int]) -> TaskSettings:
    """Returns the settings of a quick run: images that every installation has."""
    return dataclasses.replace(
        _fashion(labels, epochs),
        dataset="digits",
        input_fields=(("patch_size", 2), ("raster", True)),
        test_slice=0,
    )


def _list_ops(labels: tuple[int, int], epochs: tuple[int, int]) -> TaskSettings:
    return TaskSettings(
        dataset="list_ops",
        shares=(0.0, 0.4),
        labels=labels,
        epochs=epochs,
        max_tokens=128,
        mask_ratio=0.1,
        num_layers=2,
        learning_rates=_LEARNING_RATES,
        pretrain_learning_rate=0.01,
        input_fields=(("vocab_size", 32), ("seq_len", 128), ("tokenizer", "symbols")),
    )


SIZES = {
    QUICK: Size((_digits((30, 60), (5, 5)),), (LEARNED, ROTARY), 2, 50, 32),
    PILOT: Size((_fashion((200, 500), (40, 40)),), (LEARNED, ROTARY), 2, 1000),
    FULL: Size(
        (_fashion((200, 2000), (200, 60), (0.0, 0.4, 0.6)), _list_ops((200, 2000), (40, 20))),
        (LEARNED, ROTARY),
        4,
        2000,
    ),
}


def model_config(task: TaskSettings, positions: str, d_model: int) -> ModelConfig:
    """Returns a transformer with learned or rotary positions."""
    learned = positions == LEARNED
    return ModelConfig(
        num_layers=task.num_layers,
        d_model=d_model,
        num_heads=d_model // 16,
        num_kv_heads=d_model // 16,
        mlp_dim=2 * d_model,
        arch=ArchConfig(position_encoding=positions),
        max_seq_len=task.max_tokens if learned else 0,
    )


def recipe(task: TaskSettings, size: Size, positions: str, share: float, num_labels: int) -> Recipe:
    """Returns the recipe that spends a share of the passes over so many labels on pretraining."""
    epochs = dict(zip(task.labels, task.epochs, strict=True))[num_labels]
    finetune_epochs = round((1 - share) * epochs)
    return Recipe(
        model=model_config(task, positions, size.d_model),
        objective=PretrainingObjective(causal_lm=0.0, masked_lm=1.0, mask_ratio=task.mask_ratio),
        optimizer=OptimizerConfig(learning_rate=task.pretrain_learning_rate),
        steps=max(1, round((epochs - finetune_epochs) * num_labels / BATCH_SIZE)),
        batch_size=BATCH_SIZE,
        finetune=FinetuneConfig(
            batch_size=BATCH_SIZE,
            feature_config=FeatureConfig("mean"),
            fixed_epochs=finetune_epochs,
        ),
        learning_rates=(dict(task.learning_rates)[rate_key(positions, share)],),
        regularizers=("weight_decay",),
        **dict(task.input_fields),
    )


def measure(profile: str, out_dir: pathlib.Path, data_dir: str | None) -> Row:
    """Returns scores and differences of every task, position encoding, share and data size."""
    return measure_size(SIZES[profile], out_dir, data_dir, development=profile == PILOT)


def measure_size(
    size: Size, out_dir: pathlib.Path, data_dir: str | None, *, development: bool
) -> Row:
    """Returns scores and differences of every task, position encoding, share and data size."""
    scores: list[Row] = []
    differences: list[tuple[Row, np.ndarray, Design]] = []
    done, slices = [], {}
    own_hash = config_hash({"self_pretraining": to_plain(size)})
    for settings in size.tasks:
        task, cells = _measure_task(settings, size, out_dir, data_dir, development=development)
        by_arm = {(cell.arm, cell.num_labels): analysis.cell_scores(cell, task) for cell in cells}
        done.append((task, cells, TaskScores(task.name, settings.labels, by_arm, ())))
        slices[task.name] = test_slices.record(task, own_hash)
        about = {"task": task.name}
        for (arm, num_labels), own_SN in by_arm.items():
            interval = mean_over_seeds_and_items(own_SN)
            scores.append(
                about
                | {"arm": arm, "num_labels": num_labels}
                | dataclasses.asdict(interval)
                | {"values": own_SN.mean(axis=1).tolist()}
            )
        differences += [
            (about | row, gap_SN, Design()) for row, gap_SN in _gaps(size, settings, by_arm)
        ]
    analysis.write_predictions(done, out_dir / run_dir.PREDICTIONS_FILE)
    return {
        "scores": scores,
        "differences": difference_rows(differences),
        "test_slices": slices,
    }


def arm_name(positions: str, share: float) -> str:
    """Returns the name of the models of a position encoding and a share of pretraining."""
    return f"{positions}-{round(100 * share)}"


def _gaps(
    size: Size, settings: TaskSettings, by_arm: Mapping[tuple[str, int], np.ndarray]
) -> list[tuple[Row, np.ndarray]]:
    """Returns the gain by pretraining, and how it differs by data and by positions, [S, N]."""

    def gain(positions: str, share: float, num_labels: int) -> np.ndarray:
        none = by_arm[arm_name(positions, 0.0), num_labels]
        return by_arm[arm_name(positions, share), num_labels] - none

    few, whole = settings.labels
    found: list[tuple[Row, np.ndarray]] = []
    for share in settings.shares[1:]:
        about = {"share": share}
        for positions in size.positions:
            own = about | {"positions": positions}
            for num_labels in settings.labels:
                row = own | {"what": GAIN, "num_labels": num_labels}
                found.append((row, gain(positions, share, num_labels)))
            more = gain(positions, share, few) - gain(positions, share, whole)
            found.append((own | {"what": MORE_WITH_FEW, "num_labels": None}, more))
        if len(size.positions) > 1:
            for num_labels in settings.labels:
                row = about | {"positions": None, "what": MORE_WITH_LEARNED}
                more = gain(LEARNED, share, num_labels) - gain(ROTARY, share, num_labels)
                found.append((row | {"num_labels": num_labels}, more))
    return found


def _measure_task(
    settings: TaskSettings,
    size: Size,
    out_dir: pathlib.Path,
    data_dir: str | None,
    *,
    development: bool,
) -> tuple[Task, list[Cell]]:
    first = recipe(settings, size, size.positions[0], 0.0, settings.labels[0])
    config = task_config(
        settings.dataset,
        first,
        settings.labels,
        data_dir=data_dir,
        development=development,
        test_slice=settings.test_slice,
        max_test_items=size.test_items,
        # Near-duplicates of test items are left out of these.
        max_corpus_items=2 * settings.labels[-1],
    )
    task = prepare_task(config, (), size.seeds)
    cells = []
    for positions in size.positions:
        folder = out_dir / "processors" / f"{task.name}-{positions}"
        own = recipe(settings, size, positions, 0.0, settings.labels[0])
        rate = task.dataset.info.get("rate")
        processor = build_processor(task.dataset.train, task.modality, own, folder, rate)
        for num_labels in settings.labels:
            for share in settings.shares:
                own = recipe(settings, size, positions, share, num_labels)
                changed = dataclasses.replace(config, recipe=own, label_budgets=(num_labels,))
                variant = dataclasses.replace(task, config=changed)
                name, cells_dir = arm_name(positions, share), out_dir / "cells"
                checkpoints = []
                if share and missing_cells(variant, (name,), cells_dir):
                    checkpoints = _pretrain(variant, processor, out_dir / "pretrained", name)
                initial = InitialModel(processor, given_params=checkpoints)
                arm = variant.task_type.build_head(variant, initial, None, ("full",))
                cells += run_cells(variant, {name: arm}, cells_dir)
    return task, cells


def _pretrain(task: Task, processor: Processor, out_dir: pathlib.Path, name: str) -> list[dict]:
    """Returns a checkpoint per seed, pretrained on that seed's labeled examples alone."""
    (num_labels,) = task.config.label_budgets
    return [
        pretrain(
            subset(task.dataset.train, np.sort(order[:num_labels])),
            task.modality,
            task.config.recipe,
            processor,
            seed=seed,
            out_dir=out_dir / f"{task.name}-{name}-{num_labels}-{seed}",
            run_name=f"{task.name}: pretraining {name}, {num_labels} examples, seed {seed}",
        ).params
        for seed, order in enumerate(task.train_idx)
    ]


def judge(measured: Row) -> Verdict:
    """Returns the verdict on the task declared, from its rows of gains."""

    def row(task: str, what: str, positions: str | None, num_labels: int | None) -> Row:
        key = task, SHARE, what, positions, num_labels
        fields = ("task", "share", "what", "positions", "num_labels")
        (found,) = (
            each for each in measured["differences"] if tuple(each[name] for name in fields) == key
        )
        return found

    tasks = list(dict.fromkeys(each["task"] for each in measured["scores"]))
    found = {}
    for task in tasks:
        whole = max(each["num_labels"] for each in measured["scores"] if each["task"] == task)
        found[task] = (
            row(task, GAIN, LEARNED, whole),
            row(task, MORE_WITH_FEW, LEARNED, None),
            row(task, MORE_WITH_LEARNED, None, whole),
            row(task, GAIN, ROTARY, whole),
        )
    judged = found.get(JUDGED_TASK) or next(iter(found.values()))
    conditions = tuple(
        Condition(text, is_ahead(each), in_points(each))
        for text, each in zip(CRITERION, judged[:3], strict=True)
    )
    gain, _, _, rotary = judged
    figure = (
        f"gain {in_points(gain)} points with learned positions, {in_points(rotary)} with rotary"
    )
    notes = [
        f"{task}, not judged: gain {in_points(rows[0])} with learned positions, "
        f"{in_points(rows[1])} more at a tenth of the data, {in_points(rows[2])} more than with "
        "rotary"
        for task, rows in found.items()
        if task != JUDGED_TASK
    ]
    notes += [
        f"{each['task']}, {each['num_labels']:,} labels, {each['arm']}% of the passes for "
        f"pretraining: {each['mean']:.1%} [{each['low']:.1%}, {each['high']:.1%}]"
        for each in measured["scores"]
    ]
    return verdict_of(conditions, figure, notes)


def plot(measured: Row, figure: Figure) -> None:
    """Draws accuracy by the share of passes spent on pretraining, a panel for each task."""
    tasks = list(dict.fromkeys(each["task"] for each in measured["scores"]))
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        own = [each for each in measured["scores"] if each["task"] == task]
        budgets = sorted({each["num_labels"] for each in own})
        for positions, color in ((LEARNED, "#0072B2"), (ROTARY, "#D55E00")):
            for num_labels, style in zip(budgets, (":", "-"), strict=True):
                line = [
                    (int(each["arm"].removeprefix(f"{positions}-")), each)
                    for each in own
                    if each["arm"].startswith(positions) and each["num_labels"] == num_labels
                ]
                if not line:
                    continue
                shares, rows = zip(*sorted(line, key=lambda pair: pair[0]), strict=True)
                means, lows, highs = (
                    100 * np.array([each[name] for each in rows])
                    for name in ("mean", "low", "high")
                )
                few = num_labels == budgets[0]
                label = f"{positions}, {'a tenth of the data' if few else 'all data'}"
                axes.plot(shares, means, style, color=color, marker="o", label=label)
                axes.fill_between(shares, lows, highs, color=color, alpha=0.1, linewidth=0)
        axes.set_title(task.replace("_", " "))
        axes.set_xlabel("% of passes for pretraining")
    panels[0].set_ylabel("accuracy (%)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)


def settings(profile: str, data_dir: str | None) -> Row:
    """Returns everything that the outcome depends on, as JSON."""
    size = SIZES[profile]
    recipes = {
        f"{task.dataset} {arm_name(positions, share)} {num_labels}": to_plain(
            recipe(task, size, positions, share, num_labels)
        )
        for task in size.tasks
        for positions in size.positions
        for share in task.shares
        for num_labels in task.labels
    }
    return to_plain(size) | {"recipes": recipes, "judged_task": JUDGED_TASK, "share": SHARE}


def protocol() -> str:
    """Returns the protocol of the full profile."""
    size = SIZES[FULL]
    tasks = "; ".join(
        f"{task.dataset}, {task.labels[1]:,} labeled examples in {task.epochs[1]} passes and "
        f"{task.labels[0]:,} in {task.epochs[0]}, of which "
        f"{', '.join(f'{share:.0%}' for share in task.shares)} for pretraining, "
        f"with {task.mask_ratio:.0%} of tokens hidden"
        for task in size.tasks
    )
    return (
        f"Transformers of width {size.d_model} and 2 layers with learned or rotary positions; "
        "of a fixed number of passes over the labeled examples some go to predicting hidden tokens "
        f"of the same examples, the others to their classes. {tasks}. Images are 49 patches of "
        f"side 4 in raster order, with no other hint of two dimensions. {size.seeds} seeds, each "
        f"with its own examples, checkpoints and order; {size.test_items:,} test items. Unlike the "
        "paper: inputs of at most 128 tokens, less data, smaller models, one learning rate (3e-3, "
        "from the pilot), and more passes over a tenth of the data in place of convergence."
    )


CLAIM = Claim(
    name="self_pretraining",
    statement="At equal passes over the data, a plain transformer is better where some of them "
    "go to predicting hidden tokens of the task's own examples, the more so with less data.",
    paper=Paper(
        "Amos, Berant and Gupta",
        "Never Train from Scratch: Fair Comparison of Long-Sequence Models Requires "
        "Data-Driven Priors",
        2024,
        "ICLR",
        "https://arxiv.org/abs/2310.02980",
    ),
    figures=(
        PaperFigure(
            "the average accuracy of transformers on Long Range Arena rises by roughly 30% "
            "with self-pretraining; with rotary positions by 8 to 15% across tasks",
            "sections 3.1 and 3.2, in the paper's text (OpenReview PdaPky8MUn)",
        ),
        PaperFigure(
            "with the passes fixed (30 for Text, 150 for Image) and 40 or 60% of them spent "
            "on pretraining, even a modest amount outperforms or closely matches none",
            "Table 8 and its text; the table's numbers were not in the text at hand",
        ),
        PaperFigure(
            "relative gains are modest with all data and as large as 30% with less (of S4)",
            "section 3.4, Figure 3",
        ),
    ),
    protocol=protocol(),
    criterion=CRITERION,
    minutes=MINUTES,
    settings=settings,
    measure=measure,
    judge=judge,
    plot=plot,
    contradicted_by=(
        Paper(
            "Miralles-González, Huertas-Tato, Martín and Camacho",
            "On the locality bias and results in the Long Range Arena",
            2025,
            "arXiv",
            "https://arxiv.org/abs/2501.14850",
        ),
    ),
    tfds_name="fashion_mnist",
)
