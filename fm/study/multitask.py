"""The models of the study: one of each format alone, and one of all together."""

from __future__ import annotations

import dataclasses
import math
import pathlib

import numpy as np

from fm.adaptation.finetune import FinetuneConfig
from fm.adaptation.instruction_tuning import InstructionEncoder
from fm.data.batches import batch_size_per_group
from fm.data.datasets import Split, without
from fm.data.decontamination import DuplicateSearch, find_duplicates
from fm.data.layouts import layout_of
from fm.study import arms as heads
from fm.study import joint_pretraining
from fm.study.adaptation import Arm
from fm.study.joint_pretraining import Source
from fm.study.multitask_config import MultitaskConfig
from fm.study.multitask_instructions import (
    InstructedTask,
    InstructionTunedArm,
    InstructionTunedModels,
    build_instructed_task,
)
from fm.study.processing import Processor
from fm.study.tasks import Task
from fm.study.text_baseline import ExtractiveTextArm
from fm.training.config import TrainResult


@dataclasses.dataclass(frozen=True, eq=False)
class InitialModel:
    """A model to start from.

    Attributes:
      processor: tokenizer and layouts.
      run: its pretraining; None of a fresh one.
    """

    processor: Processor
    run: TrainResult | None

    @property
    def checkpoints(self) -> list[dict]:
        """Its parameters, if it was pretrained."""
        return [] if self.run is None else [self.run.params]


def build_sources(
    config: MultitaskConfig, tasks: list[Task]
) -> tuple[list[Source], dict[str, DuplicateSearch]]:
    """Each task's training inputs, less near-duplicates of test items of any task of its format.

    Returns:
      Corpora, and what the search found by name of the task.
    """
    weights = dict(config.weights)
    made, found = [], {}
    for task in tasks:
        alike = [other.test for other in tasks if other.modality == task.modality]
        found[task.name] = find_duplicates(
            task.dataset.train, concatenate_splits(alike), task.modality
        )
        corpus = without(task.dataset.train, found[task.name].removed)
        layout = None
        if not task.is_text:
            info = task.dataset.info
            layout = layout_of(task.modality, info["shape"], info["rate"])
        weight = weights.get(task.name, 1.0)
        made.append(Source(task.name, task.modality, corpus, weight, layout))
    return made, found


def concatenate_splits(splits: list[Split]) -> Split:
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


def pretrain_models(
    config: MultitaskConfig, corpora: list[Source], out_dir: pathlib.Path
) -> dict[str, dict[str, InitialModel]]:
    """Models by arm (`scratch`, `self`, `joint`) and format.

    A format alone is trained on exactly as many rows a step as it has in the joint mixture, for as
    many steps, so that the two have seen the same of it.
    """
    formats = list(dict.fromkeys(each.modality for each in corpora))
    weight = {name: sum(s.weight for s in corpora if s.modality == name) for name in formats}
    rows = batch_size_per_group(weight, config.joint.batch_size)
    models: dict[str, dict[str, InitialModel]] = {
        arm: {} for arm in ("scratch", "in_domain", "joint")
    }
    for name in formats:
        own = [each for each in corpora if each.modality == name]
        recipe = dataclasses.replace(config.joint, batch_size=rows[name])
        folder = out_dir / name
        reads = joint_pretraining.build_joint_processor(own, recipe, folder)
        models["scratch"][name] = InitialModel(reads, None)
        if "in_domain" in config.arms:
            run = joint_pretraining.pretrain_joint(
                own, recipe, reads, seed=0, out_dir=folder, run_name=f"pretraining {name}"
            )
            models["in_domain"][name] = InitialModel(reads, run)
    if {"joint", "instruction_tuned"} & set(config.arms):
        reads = joint_pretraining.build_joint_processor(corpora, config.joint, out_dir / "joint")
        run = joint_pretraining.pretrain_joint(
            corpora,
            config.joint,
            reads,
            seed=0,
            out_dir=out_dir / "joint",
            run_name="pretraining all",
        )
        models["joint"] = {name: InitialModel(reads, run) for name in formats}
    return models


_ROWS_ALONE = 16


def build_multitask_arms(
    task: Task,
    config: MultitaskConfig,
    models: dict[str, dict[str, InitialModel]],
    follower: InstructionTunedModels | None,
) -> dict[str, Arm]:
    """The arms of one task, in the order of the config's."""
    made: dict[str, Arm] = {}
    for arm in config.arms:
        if arm == "classical":
            made[arm] = _classical(task, config)
        elif arm == "instruction_tuned":
            assert follower is not None
            made[arm] = InstructionTunedArm(follower, task.name)
        else:
            made[arm] = build_single_task_arm(task, config, models[arm][task.modality])
    return made


def build_instruction_tuned_models(
    config: MultitaskConfig, ready: InitialModel, tasks: dict[str, InstructedTask]
) -> InstructionTunedModels:
    """One network for these tasks."""
    assert ready.processor.tokenizer is not None, "what is asked in words takes a tokenizer"
    return InstructionTunedModels(
        checkpoint=None if ready.run is None else ready.run.params,
        encoder=InstructionEncoder(
            ready.processor.tokenizer, ready.processor.model, config.max_instruction_length
        ),
        config=config.instruction_tuning,
        learning_rates=config.instruction_learning_rates,
        tasks=tasks,
    )


def build_single_task_arm(task: Task, config: MultitaskConfig, ready: InitialModel) -> Arm:
    """A network of its own for the task: with a head, or trained to write its texts."""
    reads = ready.processor
    if task.task_type == "text":
        alone = dataclasses.replace(config, instruction_tuning=_alone(config))
        return InstructionTunedArm(
            build_instruction_tuned_models(
                alone, ready, {task.name: build_instructed_task(task, reads)}
            ),
            task.name,
        )
    if task.task_type == "entities":
        return heads.build_token_classification_arm(task, reads, ready.checkpoints, config.methods)
    return heads.build_network_arm(task, reads, ready.checkpoints, methods=config.methods)


def _alone(config: MultitaskConfig) -> FinetuneConfig:
    """Tuning to one task, on its share of what the network of all tasks sees."""
    whole = config.instruction_tuning
    examples = whole.min_steps * whole.batch_size / len(config.tasks)
    return dataclasses.replace(
        whole, batch_size=_ROWS_ALONE, min_steps=math.ceil(examples / _ROWS_ALONE)
    )


def _classical(task: Task, config: MultitaskConfig) -> Arm:
    if task.task_type != "text":
        return heads.build_classical_arm(task, config.methods)
    train, test = task.dataset.train, task.test
    every = np.arange(len(test))
    texts = train.texts(task.labeled_pool) + test.texts(every)
    targets = train.targets(task.labeled_pool) + test.targets(every)
    return ExtractiveTextArm(texts, targets, len(task.labeled_pool))
