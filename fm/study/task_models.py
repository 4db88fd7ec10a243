"""A task's examples as networks and classical models read them, and the arm that adapts a model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fm.adaptation.batching import TokenizedExamples, continuous_examples, text_examples
from fm.adaptation.methods import METHODS
from fm.adaptation.targets import Target
from fm.adaptation.task_model import TaskModel
from fm.data.datasets import Split
from fm.evaluation.baselines import TEXT_PAIR, Examples, FeatureStore, TextPair
from fm.study.adaptation import ModelArm
from fm.study.processing import Processor
from fm.study.task import Task

# Column of the second text of each pair, whose `inputs` are both, with a blank line between.
SECOND_TEXTS = "second_texts"


def build_arm(
    task: Task,
    processor: Processor,
    checkpoints: Sequence[dict],
    methods: Sequence[str],
    target: Target,
    truths: np.ndarray | None,
) -> ModelArm:
    """Returns the arm that adapts a model to a task with one label per example.

    Args:
      task: the task.
      processor: of the model.
      checkpoints: pretrained parameters; empty for fresh ones.
      methods: names of the adaptation methods it may use.
      target: what a label is.
      truths: see `TaskModel`.
    """
    unlabeled = any(METHODS[name].reads_unlabeled for name in methods)
    examples = _tokenized_examples(task, processor, unlabeled=unlabeled)
    labeled_and_test = len(task.labeled_pool) + len(task.test)
    model = TaskModel(
        checkpoints=list(checkpoints),
        model_config=processor.model,
        recipe=task.config.recipe,
        examples=examples,
        test_from=len(task.labeled_pool),
        num_classes=target.num_outputs,
        pad_to=max(task.config.label_budgets),
        layout=processor.layouts.get(task.modality),
        unlabeled_idx=np.arange(labeled_and_test, len(examples["segments"])),
        target=target,
        truths=truths,
    )
    return ModelArm(model, tuple(methods), processor.tokenizer)


def column(split: Split, name: str, idx: Sequence[int] | np.ndarray | None = None) -> list:
    """Returns a column of a split, of all examples by default."""
    rows = split.source_idx if idx is None else split.source_idx[np.asarray(idx, np.int64)]
    return list(split.columns[name](rows))


def baseline_modality(task: Task) -> str:
    """Returns the modality whose classical models suit a task; pairs of texts have their own."""
    return TEXT_PAIR if SECOND_TEXTS in task.dataset.train.columns else task.modality


# The classical arms share the features of the labeled pool and the test items.
@functools.lru_cache(maxsize=1)
def baseline_examples(task: Task) -> Examples:
    """Returns the labeled pool, then the test items, as classical models read them."""
    inputs: Any = task.texts() if task.is_text else task.arrays()
    if baseline_modality(task) == TEXT_PAIR:
        parts = (task.dataset.train, task.labeled_pool), (task.test, range(len(task.test)))
        inputs = [pair for split, idx in parts for pair in _text_pairs(split, idx)]
    return Examples(inputs, task.dataset.info.get("rate"))


@functools.lru_cache(maxsize=1)
def store_with_unlabeled(task: Task) -> FeatureStore:
    """Returns the features of classical models that learn from the labeled pool and beyond."""
    train, idx = task.dataset.train, task.unlabeled_idx
    inputs: Any = train.texts(idx) if task.is_text else np.asarray(train.inputs(idx))
    if baseline_modality(task) == TEXT_PAIR:
        inputs = _text_pairs(train, idx)
    unlabeled = Examples(inputs, task.dataset.info.get("rate")) if len(idx) else None
    return FeatureStore(baseline_examples(task), unlabeled, len(task.labeled_pool))


def _text_pairs(split: Split, idx: Any) -> list[TextPair]:
    seconds = column(split, SECOND_TEXTS, np.asarray(idx, int))
    return [
        TextPair(both.removesuffix(f"\n\n{second}"), second)
        for both, second in zip(split.texts(idx), seconds, strict=True)
    ]


# Scratch and in-domain arms share a processor, and so the examples; a task may have some recipes.
@functools.lru_cache(maxsize=4)
def _tokenized_examples(task: Task, processor: Processor, *, unlabeled: bool) -> TokenizedExamples:
    """Returns labeled pool, test items and perhaps unlabeled examples, as the model reads them."""
    idx = task.unlabeled_idx if unlabeled else np.zeros(0, int)
    if not task.is_text:
        arrays = task.arrays()
        if len(idx):
            arrays = np.concatenate([arrays, np.asarray(task.dataset.train.inputs(idx))])
        return continuous_examples(arrays, processor.layouts[task.modality])
    assert processor.tokenizer is not None
    texts, recipe = task.texts() + task.dataset.train.texts(idx), task.config.recipe
    return text_examples(
        processor.tokenizer,
        texts,
        recipe.seq_len,
        recipe.num_windows,
        keep_eos=recipe.finetune.feature_config.plain_head,
    )
