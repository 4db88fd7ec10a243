"""Other models to start from, adapted to the tasks as the study's own are: cells and rows of each.

Cells lie with the study's and are named after the model, so what is there is not run again.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from fm.evaluation.statistics import paired_difference
from fm.study import evidence, finished, joint, kinds
from fm.study.cells import Cell
from fm.study.cells import run as run_cells
from fm.study.joint import JointRecipe
from fm.study.mixture import Source
from fm.study.reading import Reader
from fm.study.tasks import Task
from fm.study.unify.arms import distinct
from fm.study.unify.config import UnifyConfig
from fm.study.unify.pretraining import Ready

Row = dict[str, Any]
# The models there are already: fresh, and of all formats. Fresh ones have the streams of all too.
FRESH, JOINT = "fresh", "joint"


@dataclasses.dataclass(frozen=True, eq=False)
class Ground:
    """What the studies of variants share.

    Attributes:
      config: of the whole study.
      tasks: with the smallest and the largest of their budgets.
      corpora: the joint model's.
      reads: the tokenizer and layouts of all formats.
      models: by name, those there are already.
      out: the study's folder.
      made: of each model pretrained here, its row of `fm.study.finished.pretrained`.
    """

    config: UnifyConfig
    tasks: list[Task]
    corpora: list[Source]
    reads: Reader
    models: dict[str, Ready]
    out: pathlib.Path
    made: list[Row] = dataclasses.field(default_factory=list)

    def pretrained(self, name: str, corpora: list[Source], recipe: JointRecipe) -> Ready:
        """A model that reads all formats, pretrained on these."""
        run = joint.pretrain(
            corpora,
            recipe,
            self.reads,
            seed=0,
            out=self.out / "pretrained" / name,
            label=f"pretraining {name}",
        )
        self.made.append(finished.pretrained(name, run))
        return Ready(self.reads, run)

    def cells(self, task: Task, name: str, ready: Ready) -> list[Cell]:
        """A task's cells from a model, one for each budget."""
        arm = distinct(task, self.config, ready)
        return run_cells(task, {name: arm}, self.config.search_seeds, self.out / "cells")

    def rows(self, variants: Mapping[str, tuple[Ready, Row]], baseline: str) -> list[Row]:
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
                    made.append(row(task, cell, other) | about | {"pretrain_flops": flops})
        return evidence.with_holm([r for r in made if r["p"] is not None]) + [
            r | {"p_adjusted": None} for r in made if r["p"] is None
        ]


def ground(
    config: UnifyConfig, tasks: list[Task], corpora: list[Source], ready: Ready, out: pathlib.Path
) -> Ground:
    """What is shared, beside a study whose joint model is `ready`."""
    ends = sorted({config.tasks[0].budgets[0], config.tasks[0].budgets[-1]})
    fewer = [
        dataclasses.replace(task, config=dataclasses.replace(task.config, budgets=tuple(ends)))
        for task in tasks
    ]
    models = {FRESH: Ready(ready.reads, None), JOINT: ready}
    return Ground(config, fewer, corpora, ready.reads, models, out)


def row(task: Task, cell: Cell, baseline: Cell) -> Row:
    """What one cell showed, and its difference to another's by the same seeds and items."""
    found: dict[str, Any] = dict.fromkeys(("difference", "low", "high", "p"))
    scores = evidence.scores(cell, task)
    if cell.arm != baseline.arm and len(scores) > 1:
        measured = paired_difference(scores, evidence.scores(baseline, task))
        found = {key: getattr(measured, key) for key in found}
    return {
        "task": task.name,
        "modality": task.modality,
        "labels": cell.labels,
        "metric": kinds.METRICS[task.kind],
        "value": float(scores.mean()),
        "values": scores.mean(axis=1).tolist(),
        "items": scores.shape[1],
        "setting": cell.setting,
        "train_flops": cell.flops,
        "seconds": cell.seconds,
        **found,
    }
