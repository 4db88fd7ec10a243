"""The models of the study: one of each format alone, and one of all together."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from fm.data.groups import rows_of
from fm.data.layouts import layout_of
from fm.data.leakage import Leakage, find_duplicates
from fm.data.splits import Split, without
from fm.study import joint
from fm.study.mixture import Source
from fm.study.reading import Reader
from fm.study.tasks import Task
from fm.study.unify.config import UnifyConfig
from fm.training.run import Trained


@dataclasses.dataclass(frozen=True, eq=False)
class Ready:
    """A model to start from.

    Attributes:
      reads: tokenizer and layouts.
      run: its pretraining; None of a fresh one.
    """

    reads: Reader
    run: Trained | None

    @property
    def checkpoints(self) -> list[dict]:
        """Its parameters, if it was pretrained."""
        return [] if self.run is None else [self.run.params]


def sources(config: UnifyConfig, tasks: list[Task]) -> tuple[list[Source], dict[str, Leakage]]:
    """Each task's training inputs, less near-duplicates of test items of any task of its format.

    Returns:
      Corpora, and what the search found by name of the task.
    """
    weights = dict(config.weights)
    made, found = [], {}
    for task in tasks:
        alike = [other.test for other in tasks if other.modality == task.modality]
        found[task.name] = find_duplicates(task.dataset.train, joined(alike), task.modality)
        corpus = without(task.dataset.train, found[task.name].removed)
        layout = None
        if not task.text:
            info = task.dataset.info
            layout = layout_of(task.modality, info["shape"], info["rate"])
        weight = weights.get(task.name, 1.0)
        made.append(Source(task.name, task.modality, corpus, weight, layout))
    return made, found


def joined(splits: list[Split]) -> Split:
    """Several splits of one format as one, inputs alone."""
    starts = np.cumsum([0, *map(len, splits)])

    def read(rows: np.ndarray) -> list[str] | np.ndarray:
        order = np.argsort(rows, kind="stable")
        back = np.argsort(order, kind="stable")
        cut = np.searchsorted(rows[order], starts[1:-1])
        parts = [
            split.inputs(own - start)
            for split, own, start in zip(splits, np.split(rows[order], cut), starts, strict=False)
        ]
        if isinstance(parts[0], list):
            texts = [text for part in parts for text in part]
            return [texts[n] for n in back]
        return np.concatenate([np.asarray(part) for part in parts])[back]

    ids = tuple(each for split in splits for each in split.ids)
    return Split(None, ids, np.arange(len(ids)), read)


def pretrained(
    config: UnifyConfig, corpora: list[Source], out: pathlib.Path
) -> dict[str, dict[str, Ready]]:
    """Models by arm (`scratch`, `self`, `joint`) and format.

    A format alone is trained on exactly as many rows a step as it has in the joint mixture, for as
    many steps, so that the two have seen the same of it.
    """
    formats = list(dict.fromkeys(each.modality for each in corpora))
    weight = {name: sum(s.weight for s in corpora if s.modality == name) for name in formats}
    rows = rows_of(weight, config.joint.batch_size)
    models: dict[str, dict[str, Ready]] = {arm: {} for arm in ("scratch", "self", "joint")}
    for name in formats:
        own = [each for each in corpora if each.modality == name]
        recipe = dataclasses.replace(config.joint, batch_size=rows[name])
        folder = out / name
        reads = joint.reader(own, recipe, folder)
        models["scratch"][name] = Ready(reads, None)
        if "self" in config.arms:
            run = joint.pretrain(
                own, recipe, reads, seed=0, out=folder, label=f"pretraining {name}"
            )
            models["self"][name] = Ready(reads, run)
    if {"joint", "instructed"} & set(config.arms):
        reads = joint.reader(corpora, config.joint, out / "joint")
        run = joint.pretrain(
            corpora, config.joint, reads, seed=0, out=out / "joint", label="pretraining all"
        )
        models["joint"] = {name: Ready(reads, run) for name in formats}
    return models
