"""Other models to start from, adapted to the tasks as the study's own are: cells and rows of each.

Cells lie with the study's and are named after the model, so what is there is not run again.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from fm.data.batches import batch_size_per_group
from fm.data.datasets import subset
from fm.evaluation.statistics import paired_difference
from fm.study import analysis, joint_pretraining, run_dir, task_types
from fm.study.cells import Cell
from fm.study.cells import run_cells as run_cells
from fm.study.joint_pretraining import JointRecipe, Source
from fm.study.multitask import InitialModel, build_single_task_arm
from fm.study.multitask_config import MultitaskConfig
from fm.study.processing import Processor
from fm.study.tasks import Task

Row = dict[str, Any]
# The models there are already: fresh, and of all formats. Fresh ones have the streams of all too.
FRESH, JOINT = "fresh", "joint"


@dataclasses.dataclass(frozen=True, eq=False)
class AblationContext:
    """What the studies of variants share.

    Attributes:
      config: of the whole study.
      tasks: with the smallest and the largest of their budgets.
      corpora: the joint model's.
      processor: the tokenizer and layouts of all formats.
      models: by name, those there are already.
      out_dir: the study's folder.
      pretrained_rows: of each model pretrained here, its row of `fm.study.run_dir.pretrained_model_row`.
    """

    config: MultitaskConfig
    tasks: list[Task]
    corpora: list[Source]
    processor: Processor
    models: dict[str, InitialModel]
    out_dir: pathlib.Path
    pretrained_rows: list[Row] = dataclasses.field(default_factory=list)

    def pretrained(self, name: str, corpora: list[Source], recipe: JointRecipe) -> InitialModel:
        """A model that reads all formats, pretrained on these."""
        run = joint_pretraining.pretrain_joint(
            corpora,
            recipe,
            self.processor,
            seed=0,
            out_dir=self.out_dir / "pretrained" / name,
            run_name=f"pretraining {name}",
        )
        self.pretrained_rows.append(run_dir.pretrained_model_row(name, run))
        return InitialModel(self.processor, run)

    def cells(self, task: Task, name: str, ready: InitialModel) -> list[Cell]:
        """A task's cells from a model, one for each budget."""
        arm = build_single_task_arm(task, self.config, ready)
        return run_cells(task, {name: arm}, self.config.search_seeds, self.out_dir / "cells")

    def rows(self, variants: Mapping[str, tuple[InitialModel, Row]], baseline: str) -> list[Row]:
        """A row for each task, budget and model, the baseline's with the others'.

        Args:
          variants: models by name, and what their rows say of them.
          baseline: that of them which differences are to; its own have none.
        """
        made = []
        for task in self.tasks:
            found = {name: self.cells(task, name, each) for name, (each, _) in variants.items()}
            for name, (ready, about) in variants.items():
                flops = 0.0 if ready.run is None else ready.run.flops
                for cell, other in zip(found[name], found[baseline], strict=True):
                    made.append(variant_row(task, cell, other) | about | {"pretrain_flops": flops})
        return analysis.add_holm([r for r in made if r["p"] is not None]) + [
            r | {"p_adjusted": None} for r in made if r["p"] is None
        ]


def build_context(
    config: MultitaskConfig,
    tasks: list[Task],
    corpora: list[Source],
    ready: InitialModel,
    out: pathlib.Path,
) -> AblationContext:
    """What is shared, beside a study whose joint model is `ready`."""
    ends = sorted({config.tasks[0].label_budgets[0], config.tasks[0].label_budgets[-1]})
    fewer = [
        dataclasses.replace(
            task, config=dataclasses.replace(task.config, label_budgets=tuple(ends))
        )
        for task in tasks
    ]
    models = {FRESH: InitialModel(ready.processor, None), JOINT: ready}
    return AblationContext(config, fewer, corpora, ready.processor, models, out)


def variant_row(task: Task, cell: Cell, baseline: Cell) -> Row:
    """What one cell showed, and its difference to another's by the same seeds and items."""
    found: dict[str, Any] = dict.fromkeys(("difference", "low", "high", "p"))
    scores = analysis.cell_scores(cell, task)
    if cell.arm != baseline.arm and len(scores) > 1:
        measured = paired_difference(scores, analysis.cell_scores(baseline, task))
        found = {key: getattr(measured, key) for key in found}
    return {
        "task": task.name,
        "modality": task.modality,
        "labels": cell.num_labels,
        "metric": task_types.METRICS[task.task_type],
        "value": float(scores.mean()),
        "values": scores.mean(axis=1).tolist(),
        "items": scores.shape[1],
        "setting": cell.hparams,
        "train_flops": cell.train_flops,
        "seconds": cell.seconds,
        **found,
    }


Row = dict[str, Any]
SHARES = (Fraction(1, 64), Fraction(1, 16), Fraction(1, 4))
# One is held out for validation, and one is to learn from.
_LEAST = 2


def data_amount_rows(ground: AblationContext) -> list[Row]:
    """A row for each task, budget and share of the examples; 0 is a fresh model, the baseline.

    The tokenizer stays that of all text.
    """
    variants = {FRESH: (ground.models[FRESH], {"share": 0.0, "examples": 0})}
    for share in SHARES:
        corpora = subsample_sources(ground.corpora, share)
        called = f"share_{share.numerator}_{share.denominator}"
        ready = ground.pretrained(called, corpora, ground.config.joint)
        variants[called] = ready, {"share": float(share), "examples": _count(corpora)}
    whole = {"share": 1.0, "examples": _count(ground.corpora)}
    variants[JOINT] = ground.models[JOINT], whole
    return ground.rows(variants, FRESH)


def subsample_sources(corpora: Sequence[Source], share: Fraction) -> list[Source]:
    """So much of every source, drawn at random; what is in a smaller part is in a larger one."""
    made = []
    for each in corpora:
        count = max(_LEAST, round(len(each.corpus) * share))
        drawn = np.random.default_rng(0).permutation(len(each.corpus))[:count]
        made.append(dataclasses.replace(each, corpus=subset(each.corpus, np.sort(drawn))))
    return made


def _count(corpora: Sequence[Source]) -> int:
    return sum(len(each.corpus) for each in corpora)


Row = dict[str, Any]
FACTORS = (0.25, 4.0)


def mixture_rows(ground: AblationContext) -> list[Row]:
    """A row for each task, budget, format and factor of its weight; the study's own is factor 1.

    `shares` are the formats' shares of rows in the mixture, as they came out in whole rows.
    """
    batch = ground.config.joint.batch_size
    about: Row = {"format": None, "factor": 1.0, "shares": batch_shares(ground.corpora, batch)}
    variants = {JOINT: (ground.models[JOINT], about)}
    for name in about["shares"]:
        for factor in FACTORS:
            mixed = reweight_sources(ground.corpora, name, factor)
            called = f"{name}_by_{factor:g}"
            about = {"format": name, "factor": factor, "shares": batch_shares(mixed, batch)}
            variants[called] = ground.pretrained(called, mixed, ground.config.joint), about
    return ground.rows(variants, JOINT)


def reweight_sources(corpora: Sequence[Source], modality: str, factor: float) -> list[Source]:
    """The mixture with the weight of one format's sources multiplied."""
    return [
        dataclasses.replace(each, weight=each.weight * factor)
        if each.modality == modality
        else each
        for each in corpora
    ]


def batch_shares(corpora: Sequence[Source], batch_size: int) -> dict[str, float]:
    """Share of a batch's rows that each format gets."""
    weight: dict[str, float] = {}
    for each in corpora:
        weight[each.modality] = weight.get(each.modality, 0.0) + each.weight
    return {
        name: rows / batch_size for name, rows in batch_size_per_group(weight, batch_size).items()
    }


Row = dict[str, Any]


def transfer_matrix_rows(ground: AblationContext) -> list[Row]:
    """A row for each task, budget and source: a format, `all` or, the baseline, `nothing`."""
    recipe = ground.config.joint
    weight: dict[str, float] = {}
    for each in ground.corpora:
        weight[each.modality] = weight.get(each.modality, 0.0) + each.weight
    share = batch_size_per_group(weight, recipe.batch_size)
    variants = {FRESH: (ground.models[FRESH], {"source": "nothing"})}
    for name in weight:
        own = [each for each in ground.corpora if each.modality == name]
        alone = dataclasses.replace(recipe, batch_size=share[name])
        ready = ground.pretrained(f"only_{name}", own, alone)
        variants[f"only_{name}"] = ready, {"source": name}
    variants[JOINT] = ground.models[JOINT], {"source": "all"}
    return ground.rows(variants, FRESH)
