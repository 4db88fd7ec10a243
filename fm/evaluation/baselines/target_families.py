"""Families of classical models whose labels are numbers, or sets of classes.

They have the feature sets, grids and search of `ClassicalFamily`. Of numbers the members are ridge
regression, support-vector regression and nearest neighbors; of label sets the classifiers of the
modality, one of each class.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.neighbors import KNeighborsRegressor
from sklearn.svm import SVR

from fm.evaluation.baselines.classifiers import (
    MAX_KERNEL_ROWS,
    Axis,
    Classifier,
    Config,
    Fold,
    NearestNeighbors,
    RelabeledFold,
    half_decades,
    rbf_scores,
)
from fm.evaluation.baselines.families import (
    ClassicalFamily,
    Member,
    class_family,
)
from fm.evaluation.baselines.features import FeatureSet, FeatureStore
from fm.evaluation.baselines.unlabeled import SelfTraining
from fm.evaluation.label_sets import best_threshold
from fm.evaluation.rank_correlation import r_squared

# Errors below this share of the labels' deviation cost a support-vector regression nothing.
_EPSILON = 0.1
# Larger C take the solver ever longer and only fit the noise of standardized labels.
_MAX_LOG10_C = 3.0
# An iteration changes two examples' weights.
_MAX_ITERATIONS = 100_000


def _penalties() -> Axis:
    exponents = tuple(n / 2 for n in range(-4, 4))
    return Axis("C", exponents, limits=(-5.0, _MAX_LOG10_C))


class Regressor(Classifier):
    """A kind of regression with the grid of its hyper-parameters; `scores` are numbers [M]."""

    weighs_classes: ClassVar[bool] = False


class Ridge(Regressor):
    """Ridge regression; C is the inverse penalty, as of logistic regression."""

    name = "ridge"
    axes = (half_decades("C", -1.0),)

    def scores(self, fold, configs):
        """Returns predicted numbers, by one decomposition for all settings."""
        mean, deviation, targets = _standardized(fold.labels)
        x_NR, _ = fold.coordinates
        center_R = np.asarray(x_NR.mean(axis=0)).ravel()
        centered = (x_NR.toarray() if hasattr(x_NR, "toarray") else x_NR) - center_R
        u, s, v = np.linalg.svd(centered, full_matrices=False)
        projected = u.T @ targets
        weights = np.stack(
            [(s / (s**2 + 1 / config["C"]) * projected) @ v for config in configs], axis=1
        )
        numbers = fold.apply(weights) - center_R @ weights
        return list((mean + deviation * numbers).T)


class _KernelRegressor(Regressor):
    def fit(self, fold: Fold, own_NN: np.ndarray, cross_MN: np.ndarray, config: Config):
        """Returns predicted numbers [M] of support-vector regression on kernels."""
        mean, deviation, targets = _standardized(fold.labels)
        options: dict[str, Any] = {"kernel": "precomputed", "cache_size": 500}
        model: Any = SVR(C=config["C"], epsilon=_EPSILON, max_iter=_MAX_ITERATIONS, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(own_NN, targets)
        return mean + deviation * model.predict(cross_MN)


class LinearSvr(_KernelRegressor):
    """Linear support-vector regression of standardized labels."""

    name = "linear SVR"
    axes = (_penalties(),)
    max_labels = MAX_KERNEL_ROWS

    def scores(self, fold, configs):
        """Returns predicted numbers."""
        return [self.fit(fold, fold.gram, fold.cross, config) for config in configs]


class RbfSvr(_KernelRegressor):
    """Support-vector regression with the kernel exp(-gamma ||x - y||^2)."""

    name = "RBF SVR"
    axes = (_penalties(), Axis("gamma", (-1.0, 0.0, 1.0), base=4.0, limits=(-6, 6)))
    max_labels = MAX_KERNEL_ROWS

    def scores(self, fold, configs):
        """Returns predicted numbers."""
        return rbf_scores(fold, configs, self.fit)


class NeighborMean(Regressor):
    """The mean of the k nearest labeled examples, weighted by inverse distance."""

    name = "nearest neighbors"
    axes = NearestNeighbors.axes
    max_labels = MAX_KERNEL_ROWS

    def scores(self, fold, configs):
        """Returns predicted numbers."""
        own, cross = (np.sqrt(each) for each in fold.square_distances)
        scores = []
        for config in configs:
            k = min(max(1, round(config["k"])), len(own))
            model: Any = KNeighborsRegressor(k, weights="distance", metric="precomputed")
            scores.append(model.fit(own, fold.labels).predict(cross))
        return scores


class ValueFamily(ClassicalFamily):
    """A family of regressions, chosen by R squared; `truths` are numbers [N]."""

    def rounded(self, figure, held_out):
        """Returns the figure to four digits."""
        return round(float(figure), 4)

    def validate(self, member, views, configs):
        """Returns each setting's R squared over all held-out examples."""
        truth = np.concatenate([held_out for _, held_out in views])
        by_fold = [member.classifier.scores(view, configs) for view, _ in views]
        return [
            (r_squared(np.concatenate([scores[n] for scores in by_fold]), truth), {})
            for n in range(len(configs))
        ]

    def predict(self, train_idx, labels, seed, config, idx):
        """Fits one setting to all labels; returns numbers [M] and None."""
        member, fold = self.fold(train_idx, labels, config, idx)
        (numbers,) = member.classifier.scores(fold, [config])
        return np.asarray(numbers, float), None


class LabelSetFamily(ClassicalFamily):
    """A family of classifiers of each class by itself; `truths` are sets of classes, bool [N, K].

    Chosen by micro F1 at the best threshold, which is one for all classes and part of the config.
    """

    def validate(self, member, views, configs):
        """Returns each setting's micro F1 at its best threshold over all held-out examples."""
        truth = np.concatenate([held_out for _, held_out in views])
        by_fold = [one_vs_rest(member.classifier, view, configs) for view, _ in views]
        found = []
        for n in range(len(configs)):
            threshold, score = best_threshold(np.concatenate([each[n] for each in by_fold]), truth)
            found.append((score, {"threshold": threshold}))
        return found

    def predict(self, train_idx, labels, seed, config, idx):
        """Fits one setting to all labels; returns sets, bool [M, K], and probabilities [M, K]."""
        member, fold = self.fold(train_idx, labels, config, idx)
        (probabilities,) = one_vs_rest(member.classifier, fold, [config])
        return probabilities >= config["threshold"], probabilities.astype(np.float32)

    def _class_weights(self, member: Member, labels: np.ndarray) -> list[str | None]:
        return [None]


def one_vs_rest(classifier: Classifier, fold: Fold, configs: Sequence[Config]) -> list[np.ndarray]:
    """Returns each class's probability [M, K] for each setting, of one classifier per class.

    They are the softmax of the classifier's two scores. A class that all or none of the labeled
    examples have gets the share (count + 1/2) / (N + 1).

    Args:
      classifier: of two classes.
      fold: whose labels are bool [N, K].
      configs: settings.
    """
    hot_NK = np.asarray(fold.labels, bool)
    N = len(hot_NK)
    count_K = hot_NK.sum(axis=0)
    found = [np.tile((count_K + 0.5) / (N + 1), (len(fold.idx), 1)) for _ in configs]
    for k in np.flatnonzero((count_K > 0) & (count_K < N)):
        own = RelabeledFold(fold, hot_NK[:, k].astype(int))
        for each, scores in zip(found, classifier.scores(own, configs), strict=True):
            each[:, k] = softmax(scores, axis=1)[:, 1]
    return found


def value_family(
    modality: str,
    store: FeatureStore,
    num_classes: int,
    network: FeatureSet | None = None,
    *,
    truths: np.ndarray,
) -> ValueFamily:
    """Returns the family of a modality's regressions, on the feature sets of its classifiers.

    Args:
      modality: see `fm.evaluation.baselines.families.class_family`, as the others.
      store: as above.
      num_classes: unused.
      network: as above.
      truths: the number of every example that is learned from.

    Raises:
      UserError: an unknown modality.
    """
    own = class_family(modality, store, num_classes, network).members
    feature_sets = list(
        dict.fromkeys(each.features for each in own if not each.classifier.uses_unlabeled)
    )
    members = [
        Member(features, each) for features in feature_sets for each in (Ridge(), LinearSvr())
    ]
    # Sparse rows are about equally far from each other.
    dense = [each for each in feature_sets if not each.is_sparse]
    members += [Member(each, kind) for each in dense for kind in (RbfSvr(), NeighborMean())]
    return ValueFamily(members, store, 1, truths)


def label_set_family(
    modality: str,
    store: FeatureStore,
    num_classes: int,
    network: FeatureSet | None = None,
    *,
    truths: np.ndarray,
) -> LabelSetFamily:
    """Returns the family of a modality's classifiers, one of each class.

    Without self-training, which would be slow with many classes.

    Args:
      modality: see `fm.evaluation.baselines.families.class_family`, as the others.
      store: as above.
      num_classes: K.
      network: as above.
      truths: bool [N, K], the set of every example that is learned from.

    Raises:
      UserError: an unknown modality.
    """
    own = class_family(modality, store, num_classes, network).members
    members = [each for each in own if not isinstance(each.classifier, SelfTraining)]
    return LabelSetFamily(members, store, num_classes, truths)


def _standardized(values: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Returns mean and deviation of numbers (1 if they are all equal), and the standardized."""
    values = np.asarray(values, float)
    mean, deviation = float(values.mean()), float(values.std()) or 1.0
    return mean, deviation, (values - mean) / deviation
