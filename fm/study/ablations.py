"""Ablations: named sets of variants, each compared with a baseline variant.

Two kinds of variant exist. A *model* variant is another model to start from, adapted to the tasks
of the multitask study in its folder (`--ablations`). A *config* variant is a whole study with a
changed config (`fm ablate`). To add an ablation, pass one to `register_ablation`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from fm.data.datasets import subset
from fm.errors import UserError
from fm.evaluation.design import Design
from fm.study import analysis, run_dir
from fm.study.built_arm import InitialModel
from fm.study.cells import Cell, run_cells
from fm.study.comparisons import with_differences
from fm.study.config import JointRecipe, MultitaskConfig, StudyConfig
from fm.study.config_fields import with_field
from fm.study.joint_pretraining import Source, modality_batch_sizes, pretrain_joint
from fm.study.processing import Processor
from fm.study.task import Task
from fm.training.objectives import with_a_row_each

Row = dict[str, Any]
# Models that the multitask study has anyway; fresh ones read all modalities too.
FRESH, JOINT = "fresh", "joint"
DATA_SHARES = (Fraction(1, 64), Fraction(1, 16), Fraction(1, 4))
WEIGHT_FACTORS = (0.25, 4.0)
# A corpus needs one example to train on and one to validate on.
_MIN_EXAMPLES = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Variant:
    """A variant of an ablation: a changed initial model, or a changed study config.

    Attributes:
      fields: what its rows say of it.
      model: to start from.
      config: of a whole study.
      same_rivals_as: of configs, an earlier variant whose arms without pretraining have the same
        results, which are then taken from there; "" for none.
    """

    fields: Row = dataclasses.field(default_factory=dict)
    model: InitialModel | None = None
    config: StudyConfig | None = None
    same_rivals_as: str = ""


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A named set of variants, i.e. changed initial models or study configs, with a baseline.

    Attributes:
      name: as in --ablations, and the section of results.json.
      title: of its figures.
      variants: given the context (of models) or the config (of configs), variants by name.
      baseline: name of the baseline variant; "" for the first.
      figure: how reports draw the rows: {"kind": "grid" or "curve", "field": name of the row
        field that tells variants apart}; of configs a kind of `fm.report.ablation_plots`.
      of_configs: whether its variants are configs.
      arm: of configs, the arm whose difference from training from scratch its rows hold; "" for
        no rows.
      add_sections: of configs, returns further sections of results.json, given the rows and, as
        many, the scores [seeds, items] of each.
    """

    name: str
    title: str
    variants: Callable[[Any], Mapping[str, Variant]]
    baseline: str = ""
    figure: Mapping[str, str] = dataclasses.field(default_factory=dict)
    of_configs: bool = False
    arm: str = ""
    add_sections: Callable[[Sequence[Row], Sequence[np.ndarray]], Row] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns what reports need, JSON-able."""
        names = ("name", "title", "baseline", "figure")
        return {name: getattr(self, name) for name in names}


ABLATIONS: dict[str, Ablation] = {}


def register_ablation(ablation: Ablation) -> None:
    """Adds an ablation to the registry, or replaces the one with the same name."""
    ABLATIONS[ablation.name] = ablation


def ablation_names(*, of_configs: bool = False) -> tuple[str, ...]:
    """Returns the names of ablations that vary the model, or the study config if `of_configs`."""
    return tuple(each.name for each in ABLATIONS.values() if each.of_configs == of_configs)


def check_ablations(names: Sequence[str], arms: Sequence[str]) -> None:
    """Raises UserError if the ablation names of a multitask study are invalid or not applicable.

    Raises:
      UserError: a name is unknown or given twice, or the joint arm is missing.
    """
    known = ablation_names()
    for name in names:
        if name not in known:
            raise UserError(f"--ablations: {name!r} must be one of {', '.join(known)}")
    if len(set(names)) < len(names):
        raise UserError(f"--ablations={','.join(names)}: takes none of them twice")
    if names and JOINT not in arms:
        raise UserError(f"--ablations={','.join(names)}: needs the joint arm in --arms")


@dataclasses.dataclass(frozen=True, eq=False)
class AblationContext:
    """Config, tasks, data sources and initial models shared by the variants of an ablation.

    Attributes:
      config: of the study.
      tasks: with the smallest and the largest of their label budgets only.
      sources: of the joint model.
      processor: of the joint model.
      models: the fresh and the joint model.
      build_head: builds the arm that adapts a model to a task.
      out_dir: folder of the study; cells are beside its own, under the variant's name.
      pretrained_rows: rows of `fm.study.run_dir.pretrained_model_row` of the variants so far.
    """

    config: MultitaskConfig
    tasks: list[Task]
    sources: list[Source]
    processor: Processor
    models: dict[str, InitialModel]
    build_head: Callable[[Task, InitialModel], Any]
    out_dir: pathlib.Path
    pretrained_rows: list[Row] = dataclasses.field(default_factory=list)

    @classmethod
    def of_study(cls, study: Any) -> AblationContext:
        """Returns the context of a `fm.study.multitask.MultitaskContext`."""
        budgets = study.config.tasks[0].label_budgets
        ends = tuple(sorted({budgets[0], budgets[-1]}))
        tasks = [
            dataclasses.replace(task, config=dataclasses.replace(task.config, label_budgets=ends))
            for task in study.tasks
        ]
        joint = study.joint_model
        return cls(
            study.config,
            tasks,
            study.sources,
            joint.processor,
            {FRESH: InitialModel(joint.processor), JOINT: joint},
            lambda task, initial: task.task_type.build_head(
                task, initial, study, study.config.methods
            ),
            study.out_dir,
        )

    def pretrain(self, name: str, sources: Sequence[Source], recipe: JointRecipe) -> InitialModel:
        """Pretrains a model of all modalities on some sources."""
        run = pretrain_joint(
            sources,
            recipe,
            self.processor,
            seed=0,
            out_dir=self.out_dir / "pretrained" / name,
            run_name=f"pretraining {name}",
        )
        self.pretrained_rows.append(run_dir.pretrained_model_row(name, run))
        return InitialModel(self.processor, [run])


def run_ablation(ablation: Ablation, context: AblationContext) -> list[Row]:
    """Adapts each model variant to each task; returns a row per task, variant and label budget.

    Rows hold the difference from the baseline variant; p-values are adjusted over all of them.
    """
    variants = ablation.variants(context)
    baseline = ablation.baseline or next(iter(variants))
    rows: list[Row] = []
    differences: list[tuple[np.ndarray, Design] | None] = []
    models = {name: variant.model for name, variant in variants.items() if variant.model}
    for task in context.tasks:
        cells = {
            name: run_cells(
                task,
                {name: context.build_head(task, model)},
                context.out_dir / "cells",
            )
            for name, model in models.items()
        }
        for name, variant in variants.items():
            pretrain_flops = sum((run.flops for run in models[name].runs), 0.0)
            for cell, other in zip(cells[name], cells[baseline], strict=True):
                row = variant_row(task, cell) | variant.fields
                rows.append(row | {"pretrain_flops": pretrain_flops})
                gap_SN = analysis.cell_scores(cell, task) - analysis.cell_scores(other, task)
                compared = cell.arm != other.arm and len(gap_SN) > 1
                # Every variant is pretrained once: all figures are for this checkpoint.
                differences.append((gap_SN, Design()) if compared else None)
    return with_differences(rows, differences)


def variant_row(task: Task, cell: Cell) -> Row:
    """Returns what an ablation row says of a variant's scores by themselves."""
    scores = analysis.cell_scores(cell, task)
    return {
        "task": task.name,
        "modality": task.modality,
        "num_labels": cell.num_labels,
        "metric": task.task_type.metric,
        "value": float(scores.mean()),
        "values": scores.mean(axis=1).tolist(),
        "items": scores.shape[1],
        "hparams": cell.hparams,
        "train_flops": cell.mean_train_flops,
        "cpu_seconds": cell.cpu_seconds,
    }


def _transfer_matrix(context: AblationContext) -> dict[str, Variant]:
    """Models pretrained on one modality alone, adapted to the tasks of every modality.

    All have the parameters of every modality, so that any can start any task. Each is trained on
    as many rows per step as its modality has in the joint mixture.
    """
    recipe = context.config.joint
    variants = {FRESH: Variant({"source": "nothing"}, context.models[FRESH])}
    for modality, rows in modality_batch_sizes(context.sources, recipe.batch_size).items():
        own = [source for source in context.sources if source.modality == modality]
        name = f"only_{modality}"
        model = context.pretrain(name, own, dataclasses.replace(recipe, batch_size=rows))
        variants[name] = Variant({"source": modality}, model)
    return variants | {JOINT: Variant({"source": "all"}, context.models[JOINT])}


def _mixture(context: AblationContext) -> dict[str, Variant]:
    """Models pretrained with the weight of one modality multiplied.

    An objective that would have no row of a smaller share of the batch keeps one.
    """
    recipe = context.config.joint

    def fields(modality: str | None, factor: float, sources: Sequence[Source]) -> Row:
        shares = modality_batch_shares(sources, recipe.batch_size)
        return {"changed_modality": modality, "factor": factor, "shares": shares}

    variants = {JOINT: Variant(fields(None, 1.0, context.sources), context.models[JOINT])}
    for modality in modality_batch_shares(context.sources, recipe.batch_size):
        for factor in WEIGHT_FACTORS:
            sources = reweight_sources(context.sources, modality, factor)
            name = f"{modality}_by_{factor:g}"
            rows = modality_batch_sizes(sources, recipe.batch_size)
            objectives = tuple(
                (each, with_a_row_each(objective, rows[each]) if each in rows else objective)
                for each, objective in recipe.objectives
            )
            own = dataclasses.replace(recipe, objectives=objectives)
            model = context.pretrain(name, sources, own)
            variants[name] = Variant(fields(modality, factor, sources), model)
    return variants


def _data_amount(context: AblationContext) -> dict[str, Variant]:
    """Models pretrained for as many steps on a share of the examples, with the same tokenizer."""
    variants = {FRESH: Variant({"share": 0.0, "examples": 0}, context.models[FRESH])}
    for share in DATA_SHARES:
        sources = subsample_sources(context.sources, share)
        name = f"share_{share.numerator}_{share.denominator}"
        model = context.pretrain(name, sources, context.config.joint)
        variants[name] = Variant({"share": float(share), "examples": _count(sources)}, model)
    whole = {"share": 1.0, "examples": _count(context.sources)}
    return variants | {JOINT: Variant(whole, context.models[JOINT])}


def reweight_sources(sources: Sequence[Source], modality: str, factor: float) -> list[Source]:
    """Returns the sources with the mixture weights of one modality multiplied by `factor`."""
    return [
        dataclasses.replace(each, weight=each.weight * factor)
        if each.modality == modality
        else each
        for each in sources
    ]


def modality_batch_shares(sources: Sequence[Source], batch_size: int) -> dict[str, float]:
    """Returns each modality's fraction of the rows of a batch, after rounding to whole rows."""
    sizes = modality_batch_sizes(sources, batch_size)
    return {modality: rows / batch_size for modality, rows in sizes.items()}


def subsample_sources(sources: Sequence[Source], share: Fraction) -> list[Source]:
    """Returns the sources cut to a random fraction of their examples (nested over fractions)."""
    subsampled = []
    for each in sources:
        count = max(_MIN_EXAMPLES, round(len(each.corpus) * share))
        idx = np.random.default_rng(0).permutation(len(each.corpus))[:count]
        subsampled.append(dataclasses.replace(each, corpus=subset(each.corpus, np.sort(idx))))
    return subsampled


def _count(sources: Sequence[Source]) -> int:
    return sum(len(each.corpus) for each in sources)


def field_ablation(field: str, values: Sequence[str]) -> Ablation:
    """Returns an ablation that sets one config field to several values; the first is the baseline.

    Args:
      field: dotted path in the recipe of every task (objective.mask_ratio), in every task
        (max_corpus_items), or in the study's config (pretrain_seeds); the first that exists.
      values: as text; the first is the baseline.

    Raises:
      UserError: (from `variants`) there is no such field, or a value is not of its type.
    """

    def variants(config: StudyConfig) -> dict[str, Variant]:
        return {text: Variant(config=with_field(config, field, text)) for text in values}

    return Ablation(field, field, variants, of_configs=True)


for _ablation in (
    Ablation(
        "transfer_matrix",
        "Pretrained on one modality, adapted to the tasks of every modality",
        _transfer_matrix,
        FRESH,
        {"kind": "grid", "field": "source"},
    ),
    Ablation(
        "mixture",
        "The weight of one modality in the mixture changed",
        _mixture,
        JOINT,
        {"kind": "grid", "field": "factor"},
    ),
    Ablation(
        "data_amount",
        "A share of the pretraining examples",
        _data_amount,
        FRESH,
        {"kind": "curve", "field": "share"},
    ),
):
    register_ablation(_ablation)
