"""What a study would do, before it does it: its stages in order, with time, memory and disk."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fm.adaptation.methods import METHODS
from fm.adaptation.methods.finetuning import Finetuning
from fm.data.datasets import Dataset, development_dataset
from fm.data.media import PatchLayout, get_modality, layout_of
from fm.evaluation.model_selection import CROSS_VALIDATE_UNDER, FOLDS
from fm.model import flops
from fm.model.sizes import format_count
from fm.study.arm_spec import IN_DOMAIN, JOINT, OUT_OF_DOMAIN
from fm.study.arms import ARMS
from fm.study.config import (
    JointRecipe,
    MultitaskConfig,
    PublishedEncoderConfig,
    Recipe,
    StudyConfig,
    TaskConfig,
)
from fm.study.joint_pretraining import Source, modality_batch_sizes
from fm.study.loading import load
from fm.study.step_estimate import StepEstimate, joint_step, recipe_step
from fm.study.task_types import task_type_of

# A run keeps its last two checkpoints.
_CHECKPOINTS = 2
_NOT_TRIED = "too large to try, so the time is from its FLOPs and the rate of matrix products"
# A row of predictions.csv, and the same answer in the JSON of its cell.
_BYTES_PER_PREDICTION = 90
# FLOPs of a search that stops the worse trials early, as a share of those at full length: 0.30 to
# 0.64 over tasks, arms and numbers of labels of the default comparison.
_EARLY_STOPPING_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class StageEstimate:
    """What one stage of a run would do and take, before it runs; see `fm.study.stages.Stage`.

    Attributes:
      name: what is done.
      details: to print behind it, in order.
      seconds: estimate; None if it is not known.
      memory_bytes: of a training step; 0 if nothing is trained.
      disk_bytes: written.
      pretrains: whether models are pretrained, which studies may share.
    """

    name: str
    details: tuple[str, ...]
    seconds: float | None = None
    memory_bytes: int = 0
    disk_bytes: int = 0
    pretrains: bool = False


def pretraining_stage(
    name: str,
    steps: int,
    estimate: StepEstimate,
    recipe: Any,
    *,
    runs: int = 1,
    examples: str = "",
) -> StageEstimate:
    """Returns the stage of pretraining one model, or several by the same recipe.

    Args:
      name: of the stage.
      steps: of a run.
      estimate: of a step.
      recipe: config with `model`, `optimizer` and `batch_size`, maybe `grad_accum_steps`.
      runs: number of models.
      examples: what it is trained on, in words.
    """
    details = (
        *([f"{runs} models"] if runs > 1 else []),
        *([examples] if examples else []),
        f"{format_count(estimate.num_params)} parameters",
        f"{steps:,} steps of up to {estimate.tokens:,} tokens",
        *_training_details(recipe, steps),
        *([] if estimate.measured else [_NOT_TRIED]),
    )
    return StageEstimate(
        name,
        details,
        runs * steps * estimate.seconds,
        estimate.memory_bytes,
        runs * _CHECKPOINTS * estimate.state_bytes,
        pretrains=True,
    )


def _training_details(recipe: Any, steps: int) -> list[str]:
    """Returns how a recipe trains: dtype, optimizer, schedule and microbatches."""
    config, parts = recipe.optimizer, getattr(recipe, "grad_accum_steps", 1)
    rates = [config.learning_rate]
    rates += [config.adam_learning_rate] if config.name == "muon" else []
    return [
        f"{recipe.model.dtype} products",
        f"{config.name} at {' and '.join(f'{rate:g}' for rate in rates)}",
        f"{config.schedule} after {config.num_warmup_steps(steps):,} steps of warm-up",
        f"weight decay {config.weight_decay:g}, gradient norm up to {config.clip:g}",
        *([f"{parts} microbatches"] if parts > 1 else []),
    ]


def study_stages(config: StudyConfig) -> list[StageEstimate]:
    """Returns the stages of a study in order; reads the data, and measures training steps."""
    if isinstance(config, MultitaskConfig):
        return _multitask_stages(config)
    return [stage for task in config.tasks for stage in _task_stages(config, task)]


def variant_stages(variants: Mapping[str, StudyConfig]) -> list[StageEstimate]:
    """Returns the stages of several studies that share pretraining runs where these are equal."""
    stages: list[StageEstimate] = []
    seen: list[StageEstimate] = []
    for name, config in variants.items():
        for stage in study_stages(config):
            if stage.pretrains and stage in seen:
                continue
            seen.append(stage)
            stages.append(dataclasses.replace(stage, name=f"{name}: {stage.name}"))
    return stages


def repeated(stages: Sequence[StageEstimate], count: int, prefix: str) -> list[StageEstimate]:
    """Returns the stages of a study that is run several times, each time as long."""
    return [
        dataclasses.replace(
            stage,
            name=f"{prefix}{stage.name}",
            seconds=None if stage.seconds is None else count * stage.seconds,
            disk_bytes=count * stage.disk_bytes,
        )
        for stage in stages
    ]


def _task_stages(config: StudyConfig, task: TaskConfig) -> list[StageEstimate]:
    data, arms = _data(task), config.arms_of(task)
    corpora = [
        corpus
        for corpus in (IN_DOMAIN, OUT_OF_DOMAIN)
        if any(
            ARMS[arm].depends_on_pretraining and (ARMS[arm].corpus or IN_DOMAIN) == corpus
            for arm in arms
        )
    ]
    stages, rates = [], []
    for corpus in corpora:
        source = data if corpus == IN_DOMAIN else _other_data(task)
        for recipe in (task.recipe, *task.other_recipes):
            estimate = recipe_step(recipe, data.modality, source.train, data.info.get("rate"))
            rates.append(estimate.flops_per_second)
            label = " ".join(filter(None, (corpus, recipe.name)))
            stages.append(
                pretraining_stage(
                    f"{task.name}: pretraining {label}",
                    recipe.steps,
                    estimate,
                    recipe,
                    runs=config.pretrain_seeds,
                    examples=_examples(source, task.max_corpus_items),
                )
            )
    if not rates:
        estimate = recipe_step(task.recipe, data.modality, data.train, data.info.get("rate"))
        rates.append(estimate.flops_per_second)
    return [*stages, _adapting_stage(config, task, data, min(rates))]


def _adapting_stage(
    config: StudyConfig, task: TaskConfig, data: Dataset, rate: float
) -> StageEstimate:
    """Returns the stage of one task's cells; its time is that of fine-tuning."""
    arms, budgets = config.arms_of(task), task.label_budgets
    cells, fits = len(arms) * len(budgets), len(arms) * len(budgets) * config.seeds
    items = min(task.max_test_items, len(data.test))
    total = sum(
        finetuning_flops(recipe, data, budget, config.methods)
        for budget in budgets
        for recipe in (task.recipe, *task.other_recipes)
        for arm in arms
        if ARMS[arm].trains_network(recipe, budget)
    )
    details = (
        f"{_count(len(arms), 'arm')} ({', '.join(arms)})",
        f"{_count(len(budgets), 'label budget')} ({', '.join(f'{n:,}' for n in budgets)})",
        f"{_count(cells, 'cell')} of {_count(config.seeds, 'seed')}, {_count(fits, 'fit')}",
        f"{items:,} test items",
    )
    if isinstance(task.published, PublishedEncoderConfig):
        details += ("without the time of the published encoder, which is not known",)
    return StageEstimate(
        f"{task.name}: adapting",
        details,
        config.seeds * total / rate,
        disk_bytes=fits * items * _BYTES_PER_PREDICTION,
    )


def adapting_stage(
    recipe: Recipe, data: Dataset, num_labels: int, methods: Sequence[str], *, own: bool
) -> StageEstimate:
    """Returns the stage of adapting one model to labels.

    Args:
      recipe: of a model of the project.
      data: of the task.
      num_labels: labels used.
      methods: of adaptation.
      own: whether the model is one of the recipe; nothing is known of others' time.
    """
    trials = sum(len(METHODS[name].search_space(recipe)) for name in methods)
    details = (
        f"{num_labels:,} labels",
        f"{_count(trials, 'trial')} ({', '.join(methods)}), then a fit to all labels",
        f"{len(data.test):,} test items",
    )
    if not own:
        return StageEstimate("adapting", details)
    step = recipe_step(recipe, data.modality, data.train, data.info.get("rate"))
    total = finetuning_flops(recipe, data, num_labels, methods)
    details = (f"{format_count(step.num_params)} parameters", *details)
    seconds = total / step.flops_per_second
    return StageEstimate("adapting", details, seconds, step.memory_bytes)


def finetuning_flops(
    recipe: Recipe, data: Dataset, num_labels: int, methods: Sequence[str]
) -> float:
    """Returns the FLOPs of a seed's search and fit by all methods that train the network.

    A search on one validation part stops the worse trials early, and is counted at the share that
    such searches have taken; a cross-validated one is counted whole.
    """
    model, config = recipe.model, recipe.finetune
    folds = FOLDS if num_labels < CROSS_VALIDATE_UNDER else 1
    fit_labels = max(1, num_labels - num_labels // FOLDS)
    epochs = max(config.epoch_grid(fit_labels))
    length, modality = _adaptation_length(recipe, data)
    if not task_type_of(data).reads_words:  # tags are those of all words
        length = min(config.tokens_kept or length, length)
    if modality != "tokens":
        layout = _recipe_layout(recipe, data)
        model = dataclasses.replace(model, patch_dims=((modality, layout.patch_dim),))
    per_example = flops.train_flops(model, length, num_predictions=0, modalities=(modality,))
    total = 0.0
    for name in methods:
        method = METHODS[name]
        if not isinstance(method, Finetuning):
            continue
        trials = len(method.search_space(recipe))
        updates = trials * folds * config.num_steps(fit_labels, epochs)
        updates *= _EARLY_STOPPING_SHARE if folds == 1 else 1
        updates += config.num_steps(num_labels, epochs)
        total += method.relative_flops * updates * config.batch_size * per_example
    return total


def _adaptation_length(recipe: Recipe, data: Dataset) -> tuple[int, str]:
    """Returns the tokens or patches of an example as it is adapted to, and the modality's array."""
    if data.modality == "text":
        # A sentence of words is one row, whatever a text has.
        num_rows = 1 if task_type_of(data).reads_words else recipe.num_windows
        return recipe.seq_len * num_rows, "tokens"
    return len(_recipe_layout(recipe, data).positions()), data.modality


def _recipe_layout(recipe: Recipe, data: Dataset) -> PatchLayout:
    shape, rate = data.info["shape"], data.info.get("rate")
    patch_size = recipe.patch_size or None
    return layout_of(data.modality, shape, rate, patch_size, raster=recipe.raster)


def _multitask_stages(config: MultitaskConfig) -> list[StageEstimate]:
    sources = [_source(config, task) for task in config.tasks]
    stages: list[StageEstimate] = []
    joint = joint_step(config.joint, sources)
    rows = modality_batch_sizes(sources, config.joint.batch_size)
    corpora = {ARMS[arm].corpus for arm in config.arms if ARMS[arm].depends_on_pretraining}
    if IN_DOMAIN in corpora:
        for modality, count in rows.items():
            own = [each for each in sources if each.modality == modality]
            recipe = dataclasses.replace(config.joint, batch_size=count)
            name = f"pretraining {modality}"
            stages.append(joint_stage(name, recipe, own, joint.flops_per_second))
    if JOINT in corpora:
        stages.append(joint_stage("pretraining all", config.joint, sources))
    if any(ARMS[arm].cost.tuning == "shared" for arm in config.arms):
        budgets, rates = config.tasks[0].label_budgets, config.instruction_learning_rates
        details = (
            _count(len(rates), "learning rate"),
            _count(len(budgets), "label budget"),
            _count(config.seeds, "seed"),
            f"at least {config.instruction_tuning.min_steps:,} steps each",
        )
        stages.append(StageEstimate("instruction tuning", details))
    for task in config.tasks:
        stages.append(_adapting_stage(config, task, _data(task), joint.flops_per_second))
    if config.ablations:
        stages.append(StageEstimate("ablations", (", ".join(config.ablations),)))
    return stages


def joint_stage(
    name: str,
    recipe: JointRecipe,
    sources: Sequence[Source],
    flops_per_second: float | None = None,
) -> StageEstimate:
    """Returns the stage of pretraining one model on several sources, see `joint_step`."""
    examples = f"{sum(len(each.corpus) for each in sources):,} examples"
    step = joint_step(recipe, sources, flops_per_second=flops_per_second)
    return pretraining_stage(name, recipe.steps, step, recipe, examples=examples)


def _source(config: MultitaskConfig, task: TaskConfig) -> Source:
    data, layout = _data(task), None
    if data.modality != "text":
        layout = layout_of(data.modality, data.info["shape"], data.info["rate"])
    weight = dict(config.weights).get(task.name, 1.0)
    return Source(task.name, data.modality, data.train, weight, layout)


def _data(task: TaskConfig) -> Dataset:
    data = load(task.dataset, **task.load_options())
    return development_dataset(data) if task.split == "development" else data


def _other_data(task: TaskConfig) -> Dataset:
    options = task.load_options() | {"label_column": ""}
    assert task.out_of_domain_dataset is not None
    return load(task.out_of_domain_dataset, **options)


def _examples(data: Dataset, limit: int | None) -> str:
    count, noun = len(data.train), get_modality(data.modality).noun
    count = min(count, limit or count)
    return f"{count:,} {noun}s" if not noun.endswith("s") else f"{count:,} {noun}"


def total_seconds(stages: Sequence[StageEstimate]) -> float:
    """Returns the sum of the times that are known."""
    return math.fsum(stage.seconds or 0.0 for stage in stages)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
