"""The arms of each task: a head or a text from distinct networks, and one network for all."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from fm.study import arms as heads
from fm.study.adaptation import Arm
from fm.study.summaries import TextClassical
from fm.study.tasks import Task
from fm.study.unify.asked import AskedTask, ask
from fm.study.unify.config import UnifyConfig
from fm.study.unify.follower import Followed, Follower
from fm.study.unify.pretraining import Ready
from fm.transfer.finetune import FinetuneConfig
from fm.transfer.instructions import Asker

_ROWS_ALONE = 16


def of_task(
    task: Task,
    config: UnifyConfig,
    models: dict[str, dict[str, Ready]],
    follower: Follower | None,
) -> dict[str, Arm]:
    """The arms of one task, in the order of the config's."""
    made: dict[str, Arm] = {}
    for arm in config.arms:
        if arm == "classical":
            made[arm] = _classical(task, config)
        elif arm == "instructed":
            assert follower is not None
            made[arm] = Followed(follower, task.name)
        else:
            made[arm] = distinct(task, config, models[arm][task.modality])
    return made


def follower_of(config: UnifyConfig, ready: Ready, tasks: dict[str, AskedTask]) -> Follower:
    """One network for these tasks."""
    assert ready.reads.tokenizer is not None, "what is asked in words takes a tokenizer"
    return Follower(
        checkpoint=None if ready.run is None else ready.run.params,
        asker=Asker(ready.reads.tokenizer, ready.reads.model, config.length),
        config=config.following,
        learning_rates=config.following_rates,
        tasks=tasks,
    )


def distinct(task: Task, config: UnifyConfig, ready: Ready) -> Arm:
    """A network of its own for the task: with a head, or trained to write its texts."""
    reads = ready.reads
    if task.kind == "text":
        alone = dataclasses.replace(config, following=_alone(config))
        return Followed(follower_of(alone, ready, {task.name: ask(task, reads)}), task.name)
    if task.kind == "entities":
        return heads.tagger(task, reads, ready.checkpoints, config.adapt)
    return heads.network(task, reads, ready.checkpoints, adapt=config.adapt)


def _alone(config: UnifyConfig) -> FinetuneConfig:
    """Tuning to one task, on its share of what the network of all tasks sees."""
    whole = config.following
    examples = whole.steps * whole.batch_size / len(config.tasks)
    return dataclasses.replace(
        whole, batch_size=_ROWS_ALONE, steps=math.ceil(examples / _ROWS_ALONE)
    )


def _classical(task: Task, config: UnifyConfig) -> Arm:
    if task.kind != "text":
        return heads.classical(task, config.adapt)
    train, test = task.dataset.train, task.test
    every = np.arange(len(test))
    texts = train.texts(task.touched) + test.texts(every)
    targets = train.targets(task.touched) + test.targets(every)
    return TextClassical(texts, targets, len(task.touched))
