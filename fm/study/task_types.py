# ruff: noqa: D102 (methods inherit the docstrings of `TaskType`)
"""Task types: what a task asks for, how predictions are scored, and what solves it.

Predictions are numbers whatever the task type, so that every figure can be recomputed from them:
classes; for each sentence the entities correct, predicted and gold; the chrF of a generated text.
To add a task type, subclass `TaskType` and call `register_task_type`.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fm.adaptation import token_classification
from fm.adaptation.batching import TokenizedExamples, continuous_examples, text_examples
from fm.adaptation.methods import METHODS
from fm.adaptation.task_model import TaskModel
from fm.adaptation.token_classification import (
    PER_TOKEN,
    TaggingTaskModel,
    WordExamples,
    tokenize_words,
)
from fm.data.datasets import Dataset, Split
from fm.errors import UserError
from fm.evaluation.baselines import Examples, FeatureStore
from fm.evaluation.metrics import chrf
from fm.evaluation.ner import entity_strata
from fm.evaluation.statistics import linearized_ratio
from fm.study.adaptation import Arm, ModelArm
from fm.study.baseline_arms import (
    ClassicalNerArm,
    UntrainedTextArm,
    build_classical_arm,
    build_network_beside_classical_arm,
    entity_count_predictions,
)
from fm.study.processing import Processor

if TYPE_CHECKING:
    from fm.study.arms import InitialModel
    from fm.study.tasks import Task


class TaskType(abc.ABC):
    """Base class of task types: its metric and scoring, and how its arms and baseline are built.

    Attributes:
      name: as in results.json.
      metric: name of the metric; higher is better.
      strata_noun: what `strata` tells apart, in messages.
      predicts_classes: whether predictions are classes, int [N].
      max_answer_tokens: of a generated answer; 0 if one of a fixed set of answers is chosen.
      experiments: the experiments that can run such tasks.
    """

    name: str
    metric: str
    strata_noun: str = "kinds of example"
    predicts_classes: bool = False
    max_answer_tokens: int = 0
    experiments: tuple[str, ...] = ("compare", "multitask")

    @abc.abstractmethod
    def matches(self, dataset: Dataset) -> bool:
        """Returns whether the data set has labels of this type."""

    @abc.abstractmethod
    def strata(self, split: Split) -> np.ndarray:
        """Returns strata by which labeled examples are drawn and cut into folds, int [N].

        Unlabeled examples have -1.
        """

    def min_labels(self, dataset: Dataset) -> int:
        """Returns the smallest label budget: one label of every stratum."""
        strata = self.strata(dataset.train)
        return len(np.unique(strata[strata >= 0]))

    def max_labels(self, dataset: Dataset) -> int:
        """Returns the largest label budget: all labeled training examples."""
        return int(np.count_nonzero(self.strata(dataset.train) >= 0))

    @abc.abstractmethod
    def scores(self, predictions: np.ndarray, split: Split) -> np.ndarray:
        """Returns scores of predictions [S, N, ...], float [S, N]; means over N are the metric."""

    @abc.abstractmethod
    def prediction_rows(self, predictions: np.ndarray, split: Split) -> Sequence[tuple[Any, Any]]:
        """Returns (truth, prediction) of every item as predictions.csv shows them."""

    def predictions_from_rows(
        self, rows: Sequence[tuple[str, str]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns (truths, predictions) [N, ...] from the texts of `prediction_rows`.

        `scores` of these predictions, and of a split whose labels are the truths, are the scores
        of the items. A type whose rows are not numbers overrides this.
        """
        truths, predictions = zip(*rows, strict=True)
        return np.array(list(map(float, truths))), np.array(list(map(float, predictions)))

    def names(self, dataset: Dataset) -> tuple[str, ...]:
        """Returns what the numbers of a prediction stand for: classes, or tags."""
        return dataset.classes

    def saved_fields(self, model: TaskModel) -> dict[str, Any]:
        """Returns what `restore_model` needs beside the names, JSON-able."""
        return {}

    def restore_model(
        self, names: tuple[str, ...], saved: dict[str, Any], **fields: Any
    ) -> TaskModel:
        """Returns a model of such a task without examples, to predict new ones.

        Args:
          names: see `names`.
          saved: see `saved_fields`.
          **fields: of `TaskModel`.
        """
        return TaskModel(**fields)

    def new_inputs(self, split: Split, idx: Sequence[int] | np.ndarray) -> Any:
        """Returns examples of a split as a saved model of such a task reads them."""
        return split.inputs(idx)

    def prediction_texts(self, values: np.ndarray, names: tuple[str, ...]) -> list[str]:
        """Returns predictions of new examples, [N, ...], as text."""
        return [names[value] for value in values]

    @abc.abstractmethod
    def build_head(
        self, task: Task, initial: InitialModel, context: Any, methods: Sequence[str]
    ) -> Arm:
        """Returns the arm that adapts a model to the task.

        Args:
          task: the task.
          initial: model to start from.
          context: see `fm.study.arms.ArmContext`.
          methods: names of the adaptation methods that the arm may use.
        """

    @abc.abstractmethod
    def build_baseline(self, task: Task) -> Arm:
        """Returns the classical arm of the task."""

    def build_unlabeled_baseline(self, task: Task, network: TaskModel | None = None) -> Arm | None:
        """Returns the classical arm that learns from unlabeled examples too; None if none does.

        Args:
          task: the task.
          network: a pretrained network whose features its models see beside their own, if given.
        """
        return None

    @abc.abstractmethod
    def answers(self, task: Task, class_answers: tuple[str, ...] | None) -> list[str]:
        """Returns the right answer in words to every labeled example, then to every test item."""

    @abc.abstractmethod
    def parse(self, task: Task, generated: Sequence[str], idx: np.ndarray) -> np.ndarray:
        """Returns predictions [N, ...] from answers generated for examples `idx`."""


TASK_TYPES: dict[str, TaskType] = {}


def register_task_type(task_type: TaskType) -> None:
    """Registers a task type, replacing any of its name; the last registered is matched first."""
    earlier = {name: other for name, other in TASK_TYPES.items() if name != task_type.name}
    TASK_TYPES.clear()
    TASK_TYPES.update({task_type.name: task_type} | earlier)


def task_type_of(dataset: Dataset) -> TaskType:
    """Returns the task type that matches the data set's labels; of several, the latest registered.

    Raises:
      UserError: there is none.
    """
    for task_type in TASK_TYPES.values():
        if task_type.matches(dataset):
            return task_type
    raise UserError(
        f"{dataset.name} has no labels to learn; a task needs at least 2 classes, words with "
        "entity tags, or target texts"
    )


class Classification(TaskType):
    """Task type with one class per example; predictions are classes, int [N]."""

    name, metric, strata_noun = "classification", "accuracy", "classes"
    predicts_classes = True

    def matches(self, dataset):
        return dataset.train.labels is not None and len(dataset.classes) > 1

    def strata(self, split):
        return np.asarray(split.labels)

    def min_labels(self, dataset):
        return len(dataset.classes)

    def max_labels(self, dataset):
        return int(np.count_nonzero(np.asarray(dataset.train.labels) >= 0))

    def scores(self, predictions, split):
        return (predictions == np.asarray(split.labels)).astype(float)

    def prediction_rows(self, predictions, split):
        return list(zip(np.asarray(split.labels).tolist(), predictions.tolist(), strict=True))

    def build_head(self, task, initial, context, methods):
        return build_classification_arm(task, initial.processor, initial.checkpoints, methods)

    def build_baseline(self, task):
        pool, classes = len(task.labeled_pool), len(task.dataset.classes)
        return build_classical_arm(task.modality, FeatureStore(_examples(task)), pool, classes)

    def build_unlabeled_baseline(self, task, network=None):
        about = task.modality, _store_with_unlabeled(task), len(task.labeled_pool)
        classes = len(task.dataset.classes)
        if network is None:
            return build_classical_arm(*about, classes)
        return build_network_beside_classical_arm(*about, classes, network)

    def answers(self, task, class_answers):
        assert class_answers is not None
        train_labels = np.asarray(task.dataset.train.labels)[task.labeled_pool]
        return [class_answers[label] for label in [*train_labels, *np.asarray(task.test.labels)]]

    def parse(self, task, generated, idx):
        raise NotImplementedError("classes are chosen by log-likelihood, not generated")


class NamedEntityRecognition(TaskType):
    """Task type of word tagging; predictions are (correct, predicted, gold) counts, int [N, 3]."""

    name, metric = "ner", "entity F1"
    max_answer_tokens = 24

    def matches(self, dataset):
        return "tags" in dataset.train.columns and len(dataset.info["tags"]) > 1

    def names(self, dataset):
        return tuple(dataset.info["tags"])

    def restore_model(self, names, saved, **fields):
        nothing = WordExamples({}, np.zeros((0, 0), np.int32), np.zeros(0, int))
        return TaggingTaskModel(**fields, sentences=nothing, tags=None, tag_names=names)

    def new_inputs(self, split, idx):
        return split.words(idx)

    def prediction_texts(self, values, names):
        return [" ".join(tags) for tags in values]

    def strata(self, split):
        tags = split.tags(range(len(split)))
        return np.where([bool(own) for own in tags], entity_strata(tags), -1)

    def scores(self, predictions, split):
        correct, predicted, gold = np.moveaxis(predictions, -1, 0)
        return linearized_ratio(2 * correct, predicted + gold)

    def prediction_rows(self, predictions, split):
        return [
            (gold, f"{correct}/{predicted}") for correct, predicted, gold in predictions.tolist()
        ]

    def predictions_from_rows(self, rows):
        counts = [(*prediction.split("/"), gold) for gold, prediction in rows]
        return np.array([gold for gold, _ in rows], int), np.array(counts, int)

    def build_head(self, task, initial, context, methods):
        tokenizer = initial.processor.tokenizer
        assert tokenizer is not None, "named entities are recognized in text"
        recipe = task.config.recipe
        words, tags = task.words_and_tags()
        sentences = tokenize_words(tokenizer, words, recipe.seq_len)
        tag_names = tuple(task.dataset.info["tags"])
        finetune = dataclasses.replace(recipe.finetune, tokens_kept=0, feature_config=PER_TOKEN)
        model = TaggingTaskModel(
            checkpoints=initial.checkpoints,
            model_config=initial.processor.model,
            recipe=dataclasses.replace(recipe, finetune=finetune),
            examples=sentences.examples,
            test_from=len(task.labeled_pool),
            num_classes=len(tag_names),
            pad_to=max(task.config.label_budgets),
            sentences=sentences,
            tags=tags,
            tag_names=tag_names,
        )
        return ModelArm(model, tuple(methods))

    def build_baseline(self, task):
        return ClassicalNerArm(*task.words_and_tags(), len(task.labeled_pool))

    def answers(self, task, class_answers):
        return list(map(token_classification.format_entities, *task.words_and_tags()))

    def parse(self, task, generated, idx):
        words, tags = task.words_and_tags()
        entity_types = {tag[2:] for tag in task.dataset.info["tags"] if tag != "O"}
        predicted = [
            token_classification.entities_to_tags(
                words[n], token_classification.parse_entities(answer, entity_types)
            )
            for n, answer in zip(idx, generated, strict=True)
        ]
        return entity_count_predictions([tags[n] for n in idx], predicted)


class TextGeneration(TaskType):
    """Task type of generating a text; `predictions` are each example's chrF, 0 to 1, float [N]."""

    name, metric = "text_generation", "chrF"
    max_answer_tokens = 20
    experiments = ("multitask",)

    def matches(self, dataset):
        return "targets" in dataset.train.columns

    def strata(self, split):
        targets = split.targets(range(len(split)))
        return np.where([bool(target) for target in targets], 0, -1)

    def scores(self, predictions, split):
        return np.asarray(predictions, float)

    def prediction_rows(self, predictions, split):
        return [(1, round(float(score), 6)) for score in predictions]

    def build_head(self, task, initial, context, methods):
        return context.own_instruction_arm(task, initial)

    def build_baseline(self, task):
        return UntrainedTextArm(task.texts(), task.column("targets"), len(task.labeled_pool))

    def answers(self, task, class_answers):
        return task.column("targets")

    def parse(self, task, generated, idx):
        targets = task.column("targets")
        return chrf(generated, [targets[n] for n in idx])


def build_classification_arm(
    task: Task, processor: Processor, checkpoints: Sequence[dict], methods: Sequence[str]
) -> ModelArm:
    """Returns the arm that adapts a model (fresh if no checkpoints) to a classification task."""
    unlabeled = any(METHODS[name].reads_unlabeled for name in methods)
    examples = _tokenized_examples(task, processor, unlabeled=unlabeled)
    labeled_and_test = len(task.labeled_pool) + len(task.test)
    model = TaskModel(
        checkpoints=list(checkpoints),
        model_config=processor.model,
        recipe=task.config.recipe,
        examples=examples,
        test_from=len(task.labeled_pool),
        num_classes=len(task.dataset.classes),
        pad_to=max(task.config.label_budgets),
        layout=processor.layouts.get(task.modality),
        unlabeled_idx=np.arange(labeled_and_test, len(examples["segments"])),
    )
    return ModelArm(model, tuple(methods))


# The classical arms share the features of the labeled pool and the test items.
@functools.lru_cache(maxsize=1)
def _examples(task: Task) -> Examples:
    """Returns the labeled pool, then the test items, as classical models read them."""
    inputs = task.texts() if task.is_text else task.arrays()
    return Examples(inputs, task.dataset.info.get("rate"))


@functools.lru_cache(maxsize=1)
def _store_with_unlabeled(task: Task) -> FeatureStore:
    """Returns the features of classical models that learn from the labeled pool and beyond."""
    train, idx = task.dataset.train, task.unlabeled_idx
    inputs = train.texts(idx) if task.is_text else np.asarray(train.inputs(idx))
    unlabeled = Examples(inputs, task.dataset.info.get("rate")) if len(idx) else None
    return FeatureStore(_examples(task), unlabeled, len(task.labeled_pool))


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
    return text_examples(processor.tokenizer, texts, recipe.seq_len, recipe.num_windows)


for _task_type in (TextGeneration(), NamedEntityRecognition(), Classification()):
    register_task_type(_task_type)
