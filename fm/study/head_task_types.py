# ruff: noqa: D102 (methods inherit the docstrings of `TaskType`)
"""Task types with one label per example: a class, a number or a set of classes."""

from __future__ import annotations

import abc
import functools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import f1_score

from fm.adaptation import token_classification
from fm.adaptation.targets import ClassTarget, LabelSetTarget, Target, ValueTarget
from fm.data.datasets import Dataset, Split, subset
from fm.evaluation.baselines import FeatureStore, class_family, label_set_family, value_family
from fm.evaluation.calibration import expected_calibration_error, negative_log_likelihood
from fm.evaluation.label_sets import f1_terms, macro_f1, multi_hot
from fm.evaluation.metrics import balanced_accuracy
from fm.evaluation.model_selection import draw_label_set_idx, quantile_strata
from fm.evaluation.rank_correlation import rank_correlation_scores
from fm.evaluation.statistics import linearized_ratio
from fm.study import task_models
from fm.study.adaptation import ModelArm
from fm.study.baseline_arms import (
    FamilyBuilder,
    build_classical_arm,
    build_network_beside_classical_arm,
)
from fm.study.processing import Processor
from fm.study.task import Task, TaskType
from fm.study.task_models import column

# Between the classes of a set in predictions.csv.
LABEL_SEPARATOR = ";"
# Equal parts of the numbers of a regression task, by which labels are drawn.
_VALUE_STRATA = 5
# Significant digits of a number that answers an instruction.
_ANSWER_DIGITS = 3
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


class HeadTaskType(TaskType):
    """Base class of task types with one label per example, which a head on its features predicts.

    What the label is says its `Target`: the head's outputs, loss, probe and validation score.
    """

    predicts_by_head = True

    @abc.abstractmethod
    def target(self, num_classes: int) -> Target:
        """Returns what an example's label is."""

    @abc.abstractmethod
    def truths(self, split: Split, dataset: Dataset) -> np.ndarray | None:
        """Returns the labels of all examples, [N, ...]; None if they are the strata."""

    @abc.abstractmethod
    def family_builder(self, truths: np.ndarray | None) -> FamilyBuilder:
        """Returns how the family of classical models is built, given the labels of examples."""

    def truth_texts(self, split, dataset):
        truths = self.truths(split, dataset)
        values = self.strata(split) if truths is None else truths
        return self.prediction_texts(values, self.names(dataset))

    def wrong_items(self, predictions: np.ndarray, truths: np.ndarray) -> np.ndarray:
        """Returns the indices of items whose prediction [N, ...] is not the truth."""
        wrong = np.asarray(predictions) != truths
        return np.flatnonzero(wrong.reshape(len(wrong), -1).any(axis=1))

    def short_texts(self, values: np.ndarray, classes: tuple[str, ...]) -> list[str]:
        """Returns predictions or truths as a report shows them."""
        return self.prediction_texts(values, classes)

    def build_model_arm(
        self, task: Task, processor: Processor, checkpoints: Sequence[dict], methods: Sequence[str]
    ) -> ModelArm:
        """Returns the arm that adapts a model, fresh if there are no checkpoints, to a task."""
        target = self.target(len(task.dataset.classes))
        return task_models.build_arm(
            task, processor, checkpoints, methods, target, self.task_truths(task)
        )

    def main_metrics(self, predictions: np.ndarray, split: Split) -> dict[str, float]:
        """Returns the metrics that a single run quotes beside `metric`, by name."""
        return {}

    def task_truths(self, task: Task) -> np.ndarray | None:
        """Returns the labels of the labeled pool, then of the test items; None if the strata."""
        pool = self.truths(subset(task.dataset.train, task.labeled_pool), task.dataset)
        test = self.truths(task.test, task.dataset)
        return None if pool is None or test is None else np.concatenate([pool, test])

    def known_truths(self, task: Task) -> np.ndarray:
        """Returns `task_truths` of a task type whose labels are more than strata."""
        truths = self.task_truths(task)
        assert truths is not None, "these labels are more than strata"
        return truths

    def build_head(self, task, initial, context, methods):
        return self.build_model_arm(task, initial.processor, initial.checkpoints, methods)

    def build_baseline(self, task):
        return build_classical_arm(
            task_models.baseline_modality(task),
            FeatureStore(task_models.baseline_examples(task)),
            len(task.labeled_pool),
            len(task.dataset.classes),
            self.family_builder(self.task_truths(task)),
        )

    def build_unlabeled_baseline(self, task, network=None):
        about = task_models.baseline_modality(task), task_models.store_with_unlabeled(task)
        about = (*about, len(task.labeled_pool), len(task.dataset.classes))
        build_family = self.family_builder(self.task_truths(task))
        if network is None:
            return build_classical_arm(*about, build_family)
        return build_network_beside_classical_arm(*about, network, build_family)


class Classification(HeadTaskType):
    """Task type with one class per example; predictions are classes, int [N]."""

    name, metric, strata_noun = "classification", "accuracy", "classes"
    predicts_classes = True

    def matches(self, dataset):
        return dataset.train.labels is not None and len(dataset.classes) > 1

    def strata(self, split):
        return np.asarray(split.labels)

    def min_labels(self, dataset):
        return len(dataset.classes)

    def target(self, num_classes):
        return ClassTarget(num_classes)

    def truths(self, split, dataset):
        return None

    def family_builder(self, truths):
        return class_family

    def scores(self, predictions, split):
        return (predictions == np.asarray(split.labels)).astype(float)

    def other_metrics(self, predictions, split, confidences):
        truths = np.asarray(split.labels)
        # A class never predicted has an F1 of 0.
        macro_f1 = float(f1_score(truths, predictions, average="macro"))
        metrics: dict[str, Any] = {
            "balanced_accuracy": balanced_accuracy(predictions, truths),
            "macro_f1": macro_f1,
            "constant_prediction": bool((predictions == predictions[0]).all()),
        }
        if confidences is not None:
            confidence, truth_probability = confidences.T
            metrics["nll"] = negative_log_likelihood(truth_probability)
            metrics["ece"] = expected_calibration_error(confidence, predictions == truths)
        return metrics

    def prediction_rows(self, predictions, split, classes):
        return list(zip(np.asarray(split.labels).tolist(), predictions.tolist(), strict=True))

    def class_names_of_rows(self, predictions, split, classes):
        truths = np.asarray(split.labels)
        return [(classes[true], classes[n]) for true, n in zip(truths, predictions, strict=True)]

    def score_texts(self, truths, predictions):
        return float(np.mean([own == true for own, true in zip(predictions, truths, strict=True)]))

    def answers(self, task, class_answers):
        assert class_answers is not None
        train_labels = np.asarray(task.dataset.train.labels)[task.labeled_pool]
        return [class_answers[label] for label in [*train_labels, *np.asarray(task.test.labels)]]

    def parse(self, task, generated, idx):
        raise NotImplementedError("classes are chosen by log-likelihood, not generated")


class Regression(HeadTaskType):
    """Task type with one number per example; predictions are numbers, float [N].

    The metric is Spearman's rank correlation, which is comparable between tasks, higher better, and
    a mean over items (`rank_correlation_scores`), as intervals and tests need it; the mean absolute
    error in the units of the labels stands beside it. Labels are drawn, and cut into folds, by
    fifths of the numbers.
    """

    name, metric, strata_noun = "regression", "rank correlation", "fifths of the numbers"
    max_answer_tokens = 12

    def matches(self, dataset):
        return "values" in dataset.train.columns

    def strata(self, split):
        return quantile_strata(_values(split), _VALUE_STRATA)

    def target(self, num_classes):
        return ValueTarget()

    def prediction_texts(self, values, names):
        return [repr(float(value)) for value in values]

    def wrong_items(self, predictions, truths):
        """Returns all items, the largest error first."""
        return np.argsort(-np.abs(predictions - truths), kind="stable")

    def short_texts(self, values, classes):
        return [f"{value:.4g}" for value in values]

    def truths(self, split, dataset):
        return _values(split)

    def family_builder(self, truths):
        assert truths is not None
        return functools.partial(value_family, truths=truths)

    def scores(self, predictions, split):
        return rank_correlation_scores(predictions, _values(split))

    def main_metrics(self, predictions, split):
        return {"mean_absolute_error": float(np.mean(np.abs(predictions - _values(split))))}

    def other_metrics(self, predictions, split, confidences):
        return self.main_metrics(predictions, split) | {
            "constant_prediction": bool((predictions == predictions[0]).all()),
        }

    def prediction_rows(self, predictions, split, classes):
        return list(zip(_values(split).tolist(), predictions.tolist(), strict=True))

    def scores_from_rows(self, seeds):
        read = [self.predictions_from_rows(rows) for rows in seeds]
        return rank_correlation_scores(np.stack([own for _, own in read]), read[0][0])

    def answers(self, task, class_answers):
        return [f"{value:.{_ANSWER_DIGITS}g}" for value in self.known_truths(task)]

    def parse(self, task, generated, idx):
        """Returns the first number of each answer; the mean of the labeled ones if it has none."""
        mean = float(np.mean(self.known_truths(task)[: len(task.labeled_pool)]))
        found = [_NUMBER.search(answer) for answer in generated]
        return np.array([float(each[0]) if each else mean for each in found])


class MultiLabel(HeadTaskType):
    """Task type with a set of classes per example; predictions are bool [N, K].

    The metric is micro F1, linearized as entity F1 is; macro F1 stands beside it. Labels are drawn
    by iterative stratification, and cut into folds by each example's rarest class.
    """

    name, metric, strata_noun = "multi_label", "micro F1", "classes (examples of none are one)"
    max_answer_tokens = 24

    def matches(self, dataset):
        return "label_sets" in dataset.train.columns and len(dataset.classes) > 0

    def strata(self, split):
        sets = column(split, "label_sets")
        counts = Counter(label for each in sets for label in each or ())
        # Without any class: one more than the last.
        none = max(counts, default=-1) + 1
        return np.array(
            [
                -1 if each is None else min(each, key=lambda k: (counts[k], k), default=none)
                for each in sets
            ],
            int,
        )

    def min_labels(self, dataset):
        sets = [each for each in column(dataset.train, "label_sets") if each is not None]
        return len({label for each in sets for label in each}) + any(not each for each in sets)

    def draw(self, split, num_labels, seed):
        sets = column(split, "label_sets")
        labeled = np.array([n for n, each in enumerate(sets) if each is not None], int)
        count = max((label for n in labeled for label in sets[n]), default=-1) + 1
        drawn = draw_label_set_idx(multi_hot([sets[n] for n in labeled], count), num_labels, seed)
        return labeled[drawn]

    def target(self, num_classes):
        return LabelSetTarget(num_classes)

    def prediction_texts(self, values, names):
        return [LABEL_SEPARATOR.join(names[k] for k in np.flatnonzero(own)) for own in values]

    def short_texts(self, values, classes):
        return [
            text.replace(LABEL_SEPARATOR, ", ") or "none"
            for text in super().short_texts(values, classes)
        ]

    def truths(self, split, dataset):
        return multi_hot(column(split, "label_sets"), len(dataset.classes))

    def family_builder(self, truths):
        assert truths is not None
        return functools.partial(label_set_family, truths=truths)

    def scores(self, predictions, split):
        gold = multi_hot(column(split, "label_sets"), predictions.shape[-1])
        return linearized_ratio(*f1_terms(predictions, gold))

    def main_metrics(self, predictions, split):
        gold = multi_hot(column(split, "label_sets"), predictions.shape[-1])
        return {"macro_f1": macro_f1(predictions, gold)}

    def other_metrics(self, predictions, split, confidences):
        return self.main_metrics(predictions, split) | {
            "constant_prediction": bool((predictions == predictions[0]).all()),
        }

    def prediction_rows(self, predictions, split, classes):
        gold = multi_hot(column(split, "label_sets"), len(classes))
        texts = [self.prediction_texts(each, tuple(classes)) for each in (gold, predictions)]
        return list(zip(*texts, strict=True))

    def scores_from_rows(self, seeds):
        numerators, denominators = [], []
        for rows in seeds:
            pairs = [(_names_of(truth), _names_of(own)) for truth, own in rows]
            numerators.append([2 * len(truth & own) for truth, own in pairs])
            denominators.append([len(truth) + len(own) for truth, own in pairs])
        return linearized_ratio(np.array(numerators), np.array(denominators))

    def answers(self, task, class_answers):
        classes = task.dataset.classes
        return [
            "; ".join(classes[k] for k in np.flatnonzero(own)) or token_classification.NO_ENTITIES
            for own in self.known_truths(task)
        ]

    def parse(self, task, generated, idx):
        """Returns the classes that each answer names; case and spaces do not matter."""
        plain = token_classification.normalize_surface
        place = {plain(name): k for k, name in enumerate(task.dataset.classes)}
        hot_NK = np.zeros((len(idx), len(place)), bool)
        for own, answer in zip(hot_NK, generated, strict=True):
            named = map(plain, answer.replace("\n", ";").split(LABEL_SEPARATOR))
            own[[place[name] for name in named if name in place]] = True
        return hot_NK


def _names_of(cell: str) -> set[str]:
    """Returns the classes of a set as predictions.csv shows it."""
    return set(filter(None, cell.split(LABEL_SEPARATOR)))


def _values(split: Split) -> np.ndarray:
    return np.asarray(column(split, "values"), float)
