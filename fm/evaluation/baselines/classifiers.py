"""Classifiers of classical models, each fitted for a whole grid of hyper-parameters at once.

What the settings of a grid share is computed once in a `Fold`: the Gram matrix of the labeled
examples, one rotation of it, distances.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC, LinearSVC

from fm.evaluation.baselines.features import FeatureSet, FeatureStore, Rows
from fm.evaluation.logistic import MAX_ITERATIONS, row_space

Config = dict[str, Any]
# Up to so many labeled examples, linear models are fitted in the span of the examples.
MAX_GRAM_ROWS = 2000
# Kernels between all labeled examples: their memory grows with the square, their time faster.
MAX_KERNEL_ROWS = 10_000


class Fold:
    """Features of the examples that a fit learns from, and of those that it is asked about.

    Attributes:
      store: see `FeatureStore`.
      feature_set: the features.
      train_idx: labeled examples of the fit.
      idx: examples asked about.
      labels: class of each example of `train_idx`, or its number, or its set of classes, bool
        [N, K].
      parts: folds of the feature sets that this one puts side by side.
    """

    def __init__(
        self,
        store: FeatureStore,
        feature_set: FeatureSet,
        train_idx: np.ndarray,
        labels: np.ndarray,
        idx: np.ndarray,
        parts: Sequence[Fold] = (),
    ):
        self.store = store
        self.feature_set = feature_set
        self.train_idx = train_idx
        self.labels = labels
        self.idx = idx
        self.classes = np.unique(labels)
        self.parts = parts

    @functools.cached_property
    def _features(self) -> Callable[[np.ndarray], Rows]:
        return self.store.fit(self.feature_set, self.train_idx)

    @functools.cached_property
    def train(self) -> Rows:
        """Returns features of the labeled examples, [N, D]."""
        return self._features(self.train_idx)

    @functools.cached_property
    def asked(self) -> Rows:
        """Returns features of the examples asked about, [M, D]."""
        return self._features(self.idx)

    @functools.cached_property
    def gram(self) -> np.ndarray:
        """Returns inner products of the labeled examples, [N, N]."""
        if self.parts:
            return np.mean([part.gram for part in self.parts], axis=0)
        return _dense(self.train @ self.train.T)

    @functools.cached_property
    def cross(self) -> np.ndarray:
        """Returns inner products of the examples asked about with the labeled ones, [M, N]."""
        if self.parts:
            return np.mean([part.cross for part in self.parts], axis=0)
        return _dense(self.asked @ self.train.T)

    @functools.cached_property
    def coordinates(self) -> tuple[Rows, np.ndarray | None]:
        """Returns the labeled examples as fitted [N, R], and their `row_space` span, if rotated."""
        few = len(self.train_idx) <= MAX_GRAM_ROWS
        if few and len(self.train_idx) < sum(each.train.shape[1] for each in self.parts or [self]):
            return row_space(self.gram)
        return self.train, None

    def apply(self, weights_RK: np.ndarray) -> np.ndarray:
        """Returns scores [M, K] of weights fitted to `coordinates`."""
        _, span_NR = self.coordinates
        if span_NR is not None:
            return self.cross @ (span_NR @ weights_RK)
        return np.asarray(self.asked @ weights_RK)

    @functools.cached_property
    def square_distances(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns squared distances to the labeled examples: of themselves, of those asked about.

        Those among themselves [N, N], and to the others [M, N].
        """
        norms_N = np.diag(self.gram)
        norms_M = _square_norms(self.asked)
        among = np.maximum(norms_N[:, None] + norms_N - 2 * self.gram, 0.0)
        return among, np.maximum(norms_M[:, None] + norms_N - 2 * self.cross, 0.0)


class RelabeledFold(Fold):
    """A fold with other labels, which shares the features of the first and all that follows."""

    def __init__(self, fold: Fold, labels: np.ndarray):
        super().__init__(fold.store, fold.feature_set, fold.train_idx, labels, fold.idx, fold.parts)
        self._fold = fold

    @property
    def train(self) -> Rows:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Returns features of the labeled examples, [N, D]."""
        return self._fold.train

    @property
    def asked(self) -> Rows:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Returns features of the examples asked about, [M, D]."""
        return self._fold.asked

    @property
    def gram(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Returns inner products of the labeled examples, [N, N]."""
        return self._fold.gram

    @property
    def cross(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Returns inner products of the examples asked about with the labeled ones, [M, N]."""
        return self._fold.cross

    @property
    def coordinates(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """Returns what `Fold.coordinates` does."""
        return self._fold.coordinates

    @property
    def square_distances(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """Returns what `Fold.square_distances` does."""
        return self._fold.square_distances


@dataclasses.dataclass(frozen=True)
class Axis:
    """Values of a hyper-parameter on a log scale; it widens until the best value lies inside.

    Attributes:
      name: of the hyper-parameter.
      exponents: of the grid to begin with, evenly spaced.
      base: of the powers.
      limits: smallest and largest exponent that widening reaches.
    """

    name: str
    exponents: tuple[float, ...]
    base: float = 10.0
    limits: tuple[float, float] = (-6.0, 8.0)

    @property
    def step(self) -> float:
        """Returns the distance between neighboring exponents."""
        return self.exponents[1] - self.exponents[0]

    def value(self, exponent: float) -> float:
        """Returns the value of an exponent, rounded as it is reported."""
        return float(f"{self.base**exponent:.4g}")


def half_decades(name: str, low: float, count: int = 8) -> Axis:
    """Returns the axis with `count` values from 10**low on, half a decade apart."""
    return Axis(name, tuple(low + n / 2 for n in range(count)))


class Classifier(abc.ABC):
    """A kind of classifier with the grid of its hyper-parameters.

    Attributes:
      name: in hyper-parameters and results.
      axes: of the grid.
      weighs_classes: whether it takes `class_weight`.
      gives_probabilities: whether the softmax of its scores is a probability as it is; if not, one
        temperature is fitted to held-out scores (Guo et al. 2017).
      uses_unlabeled: whether it looks at unlabeled examples.
      max_labels: number of labels above which it is left out, for its cost.
    """

    name: ClassVar[str]
    axes: tuple[Axis, ...] = ()
    weighs_classes: ClassVar[bool] = True
    gives_probabilities: ClassVar[bool] = False
    uses_unlabeled: ClassVar[bool] = False
    max_labels: int = 10**9

    def prepare(self, store: FeatureStore, features: FeatureSet) -> None:  # noqa: B027
        """Computes what all fits to these features share, if anything."""

    @abc.abstractmethod
    def scores(self, fold: Fold, configs: Sequence[Config]) -> list[np.ndarray]:
        """Returns scores [M, K] over `fold.classes` for each setting; the highest is predicted."""


class Logistic(Classifier):
    """L2-penalized multinomial logistic regression; C is the inverse penalty."""

    name = "logistic regression"
    axes = (half_decades("C", -1.0),)
    gives_probabilities = True

    def scores(self, fold, configs):
        """Returns log probabilities, by one rotation for all settings."""
        x_NR, _ = fold.coordinates
        fitted: dict[int, np.ndarray] = {}
        biases: dict[int, np.ndarray] = {}
        for weight in {config.get("class_weight") for config in configs}:
            model: Any = LogisticRegression(
                class_weight=weight, max_iter=MAX_ITERATIONS, warm_start=True
            )
            own = [n for n, config in enumerate(configs) if config.get("class_weight") == weight]
            for n in sorted(own, key=lambda n: configs[n]["C"]):
                model.set_params(C=configs[n]["C"]).fit(x_NR, fold.labels)
                fitted[n], biases[n] = model.coef_.T.copy(), model.intercept_.copy()
        return [
            log_softmax(_two_sided(scores + biases[n]), axis=1)
            for n, scores in enumerate(_apply_all(fold, [fitted[n] for n in range(len(configs))]))
        ]


class LinearSvc(Classifier):
    """Linear support vector machine (hinge loss; squared hinge above `MAX_GRAM_ROWS` labels)."""

    name = "linear SVC"
    axes = (half_decades("C", -1.0),)

    def scores(self, fold, configs):
        """Returns decision values."""
        if len(fold.train_idx) <= MAX_GRAM_ROWS:
            return [_kernel_svc(fold, fold.gram, fold.cross, config) for config in configs]
        scores = []
        for config in configs:
            model: Any = LinearSVC(C=config["C"], class_weight=config.get("class_weight"))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(fold.train, fold.labels)
            scores.append(_two_sided(np.asarray(fold.asked @ model.coef_.T) + model.intercept_))
        return scores


class RbfSvc(Classifier):
    """Support vector machine with the kernel exp(-gamma ||x - y||^2)."""

    name = "RBF SVC"
    axes = (half_decades("C", -0.5), Axis("gamma", (-1.0, 0.0, 1.0), base=4.0, limits=(-6, 6)))
    max_labels = MAX_KERNEL_ROWS

    def scores(self, fold, configs):
        """Returns decision values."""
        return rbf_scores(fold, configs, _kernel_svc)


class NearestNeighbors(Classifier):
    """The classes of the k nearest labeled examples, weighted by inverse distance."""

    name = "nearest neighbors"
    axes = (Axis("k", tuple(n / 2 for n in range(8)), base=2.0, limits=(0.0, 7.0)),)
    weighs_classes = False
    max_labels = MAX_KERNEL_ROWS

    def scores(self, fold, configs):
        """Returns log shares of the votes, one vote spread over all classes."""
        own, cross = (np.sqrt(each) for each in fold.square_distances)
        scores = []
        for config in configs:
            k = min(max(1, round(config["k"])), len(own))
            model: Any = KNeighborsClassifier(k, weights="distance", metric="precomputed")
            shares = model.fit(own, fold.labels).predict_proba(cross)
            scores.append(np.log((shares * k + 1 / shares.shape[1]) / (k + 1)))
        return scores


def rbf_scores(
    fold: Fold,
    configs: Sequence[Config],
    fit: Callable[[Fold, np.ndarray, np.ndarray, Config], np.ndarray],
) -> list[np.ndarray]:
    """Returns what `fit` makes of the kernel exp(-gamma ||x - y||^2), for each config in order.

    The kernel of each gamma, among the labeled examples [N, N] and to the others [M, N], is
    computed once.
    """
    scores: dict[int, np.ndarray] = {}
    for gamma in {config["gamma"] for config in configs}:
        own_NN, cross_MN = (np.exp(-gamma * each) for each in fold.square_distances)
        for n, config in enumerate(configs):
            if config["gamma"] == gamma:
                scores[n] = fit(fold, own_NN, cross_MN, config)
    return [scores[n] for n in range(len(configs))]


def _kernel_svc(
    fold: Fold, kernel_NN: np.ndarray, kernel_MN: np.ndarray, config: Config
) -> np.ndarray:
    options: dict[str, Any] = {"kernel": "precomputed", "cache_size": 500}
    model: Any = SVC(C=config["C"], class_weight=config.get("class_weight"), **options)
    model.fit(kernel_NN, fold.labels)
    return _two_sided(model.decision_function(kernel_MN))


def _apply_all(fold: Fold, weights: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the scores of several models' weights [R, K] by one product."""
    together = fold.apply(np.concatenate(weights, axis=1))
    return np.split(together, np.cumsum([each.shape[1] for each in weights])[:-1], axis=1)


def _two_sided(scores: np.ndarray) -> np.ndarray:
    """Returns scores [M, K] of K classes; of two classes there may be only the second's, [M]."""
    scores = scores.reshape(len(scores), -1)
    return np.concatenate([-scores / 2, scores / 2], axis=1) if scores.shape[1] == 1 else scores


def _dense(products: Any) -> np.ndarray:
    return products.toarray() if sp.issparse(products) else np.asarray(products)


def _square_norms(rows: Rows) -> np.ndarray:
    if sp.issparse(rows):
        return np.asarray(rows.multiply(rows).sum(axis=1)).ravel()
    return np.einsum("ij,ij->i", rows, rows)
