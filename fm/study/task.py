"""A task made ready for arms, and the base class of what kinds of task there are.

Predictions are arrays whatever the task type, so that every figure can be recomputed from them:
classes; numbers; sets of classes; for each sentence the entities correct, predicted and gold; the
chrF of a generated text.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fm.adaptation.targets import Target
from fm.adaptation.task_model import TaskModel
from fm.data.datasets import Dataset, Split
from fm.data.decontamination import DuplicateSearchResult
from fm.evaluation.model_selection import draw_train_idx
from fm.study.adaptation import Arm
from fm.study.built_arm import InitialModel
from fm.study.config import TaskConfig

# Unlabeled examples, the labeled pool included, that classical models and self-training read. Of
# texts as many as pretraining: the classical family of 26,000 film reviews is 1 to 2 points better
# than that of 5,000. Features of images and sounds cost more.
MAX_UNLABELED_TEXTS, MAX_UNLABELED = 30_000, 5_000


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A loaded task: test items, labeled examples of each seed, and decontaminated corpora.

    Attributes:
      name: of the task.
      config: as asked for.
      dataset: the data; `train` is without near-duplicates of test items.
      test: the test items scored.
      corpora: pretraining corpora by name, without near-duplicates of test items.
      decontamination: what the search for near-duplicates found in each corpus.
      task_type: see `fm.study.task_types`.
      strata: of `dataset.train`, by which labels are drawn and cut into folds, int [N].
      train_idx: per seed, indices into `dataset.train`; the first n are a budget of n labels.
    """

    name: str
    config: TaskConfig
    dataset: Dataset
    test: Split
    corpora: dict[str, Split]
    decontamination: dict[str, DuplicateSearchResult]
    task_type: TaskType
    strata: np.ndarray
    train_idx: tuple[np.ndarray, ...]

    @functools.cached_property
    def labeled_pool(self) -> np.ndarray:
        """Sorted indices of the training examples that any seed draws; arms hold these first."""
        return np.unique(np.concatenate(self.train_idx))

    @functools.cached_property
    def unlabeled_idx(self) -> np.ndarray:
        """Sorted indices of training examples whose labels no seed sees, drawn at random.

        With the labeled pool they are at most `MAX_UNLABELED_TEXTS` or `MAX_UNLABELED`.
        """
        others = np.setdiff1d(np.arange(len(self.dataset.train)), self.labeled_pool)
        most = MAX_UNLABELED_TEXTS if self.is_text else MAX_UNLABELED
        count = max(0, most - len(self.labeled_pool))
        return np.sort(np.random.default_rng(0).permutation(others)[:count])

    def pool_rows(self, train_idx: np.ndarray) -> np.ndarray:
        """Returns the places of drawn examples in `labeled_pool`."""
        return np.searchsorted(self.labeled_pool, train_idx)

    @functools.cached_property
    def item_groups(self) -> np.ndarray | None:
        """The group (e.g. speaker) of every test item scored, str [N]; None without groups."""
        test = self.test
        return np.array(test.groups(range(len(test)))) if test.is_grouped else None

    @functools.cached_property
    def by_recipe(self) -> dict[str, Task]:
        """The task with each of its recipes alone, by the recipe's name."""
        recipes = (self.config.recipe, *self.config.other_recipes)
        if len(recipes) == 1:
            return {recipes[0].name: self}
        return {
            recipe.name: dataclasses.replace(
                self, config=dataclasses.replace(self.config, recipe=recipe, other_recipes=())
            )
            for recipe in recipes
        }

    @property
    def modality(self) -> str:
        """Returns the modality of the inputs."""
        return self.dataset.modality

    @property
    def is_text(self) -> bool:
        """Returns whether the inputs are text."""
        return self.modality == "text"

    def texts(self) -> list[str]:
        """Returns the texts of the labeled pool, then of the test items."""
        return self.dataset.train.texts(self.labeled_pool) + self.test.texts(range(len(self.test)))

    def arrays(self) -> np.ndarray:
        """Returns images, sounds or clips of the labeled pool, then of the test items."""
        train = np.asarray(self.dataset.train.inputs(self.labeled_pool))
        return np.concatenate([train, np.asarray(self.test.inputs(range(len(self.test))))])

    def words_and_tags(self) -> tuple[list[list[str]], list[list[str]]]:
        """Returns words and tags of the labeled pool, then of the test items."""
        return self._words_and_tags

    @functools.cached_property
    def _words_and_tags(self) -> tuple[list[list[str]], list[list[str]]]:
        return self.column("words"), self.column("tags")

    def column(self, name: str) -> list:
        """Returns a column of the labeled pool, then of the test items."""
        parts = (self.dataset.train, self.labeled_pool), (self.test, np.arange(len(self.test)))
        return [value for split, idx in parts for value in getattr(split, name)(idx)]


class TaskType(abc.ABC):
    """Base class of task types: its metric and scoring, and how its arms and baseline are built.

    Attributes:
      name: as in results.json.
      metric: name of the metric; higher is better.
      strata_noun: what `strata` tells apart, in messages.
      predicts_classes: whether predictions are classes, int [N].
      predicts_by_head: whether an example has one label that a head on its features predicts, see
        `HeadTaskType`.
      max_answer_tokens: of a generated answer; 0 if one of a fixed set of answers is chosen.
      experiments: the experiments that can run such tasks.
      reads_words: whether an example is a list of words.
    """

    name: str
    metric: str
    strata_noun: str = "kinds of example"
    predicts_classes: bool = False
    predicts_by_head: bool = False
    max_answer_tokens: int = 0
    experiments: tuple[str, ...] = ("compare", "multitask")
    reads_words: bool = False

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

    def draw(self, split: Split, num_labels: int, seed: int) -> np.ndarray:
        """Returns the indices of labeled examples drawn by a seed, int [num_labels].

        A smaller number is the beginning of a larger one.

        Raises:
          UserError: the split has too few labels, or the number is below `min_labels`.
        """
        return draw_train_idx(self.strata(split), num_labels, seed)

    @abc.abstractmethod
    def scores(self, predictions: np.ndarray, split: Split) -> np.ndarray:
        """Returns scores of predictions [S, N, ...], float [S, N]; means over N are the metric."""

    def other_metrics(
        self, predictions: np.ndarray, split: Split, confidences: np.ndarray | None
    ) -> dict[str, Any]:
        """Returns metrics of one seed beside `metric`, as fields of a cell in results.json.

        Args:
          predictions: [N, ...].
          split: the test items.
          confidences: see `fm.study.cells.Cell`, [N, 2].
        """
        return {}

    @abc.abstractmethod
    def prediction_rows(
        self, predictions: np.ndarray, split: Split, classes: Sequence[str]
    ) -> Sequence[tuple[Any, Any]]:
        """Returns (truth, prediction) of every item as predictions.csv shows them."""

    def class_names_of_rows(
        self, predictions: np.ndarray, split: Split, classes: tuple[str, ...]
    ) -> Sequence[tuple[str, str]]:
        """Returns the (true, predicted) class name of every item; empty where there are none."""
        return [("", "")] * len(split)

    def predictions_from_rows(
        self, rows: Sequence[tuple[str, str]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns (truths, predictions) [N, ...] from the texts of `prediction_rows`.

        `scores` of these predictions, and of a split whose labels are the truths, are the scores
        of the items. A type whose rows are not numbers overrides this.
        """
        truths, predictions = zip(*rows, strict=True)
        return np.array(list(map(float, truths))), np.array(list(map(float, predictions)))

    def scores_from_rows(self, seeds: Sequence[Sequence[tuple[str, str]]]) -> np.ndarray:
        """Returns scores [S, N] from the texts of `prediction_rows` of each seed."""
        read = [self.predictions_from_rows(rows) for rows in seeds]
        truths = read[0][0]
        split = Split(truths, ("",) * len(truths), np.arange(len(truths)), lambda idx: [])
        return self.scores(np.stack([predictions for _, predictions in read]), split)

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

    def target(self, num_classes: int) -> Target | None:
        """Returns what an example's label is; None where an example has no single label."""
        return None

    def new_inputs(self, split: Split, idx: Sequence[int] | np.ndarray) -> Any:
        """Returns examples of a split as a saved model of such a task reads them."""
        return split.inputs(idx)

    def prediction_texts(self, values: np.ndarray, names: tuple[str, ...]) -> list[str]:
        """Returns predictions of new examples, [N, ...], as text."""
        return [names[value] for value in values]

    def truth_texts(self, split: Split, dataset: Dataset) -> list[str]:
        """Returns the right answers of a split as `prediction_texts` would write them."""
        raise NotImplementedError(f"right answers of a {self.name} task are not written")

    def score_texts(self, truths: Sequence[str], predictions: Sequence[str]) -> float:
        """Returns the metric over predictions of new examples, as `prediction_texts` gives them."""
        rows = list(zip(truths, predictions, strict=True))
        return float(self.scores_from_rows([rows]).mean())

    @abc.abstractmethod
    def build_head(
        self, task: Task, initial: InitialModel, context: Any, methods: Sequence[str]
    ) -> Arm:
        """Returns the arm that adapts a model to the task.

        Args:
          task: the task.
          initial: model to start from.
          context: see `fm.study.arm_spec.ArmContext`.
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
