"""Study arms: the protocol every arm follows, and the arms of models and of classical baselines."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np

from fm.adaptation.methods import METHODS, AdaptationMethod, FittedModel, HParams, method_of
from fm.adaptation.task_model import TaskModel
from fm.evaluation import baselines
from fm.evaluation.model_selection import from_the_middle, make_folds

Trial = dict[str, Any]


class Arm(Protocol):
    """Interface of an arm on one task: tunes hyperparameters, fits to labels, predicts test items.

    An arm may also have `fit_seconds(num_labels, hparams)`, if a fit repeated would not show how
    long one takes, and `blas_threads`, see `fm.study.cells.parallel_map`.
    """

    def grid(self) -> list[HParams]:
        """Returns the hyper-parameters to try, equally many for every arm."""
        ...

    def validate(self, train_idx: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Returns each trial of the grid with its score on a validation part of `train_idx`."""
        ...

    def fit_predict(
        self, train_idx: np.ndarray, labels: np.ndarray, seed: int, hparams: HParams
    ) -> np.ndarray:
        """Fits to all of `train_idx`; returns predictions for the test items."""
        ...

    def fit_flops(self, num_labels: int, hparams: HParams) -> float:
        """Returns the FLOPs of a fit to `num_labels` labels."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class ModelArm:
    """An arm that adapts a transformer by the adaptation method that validates best.

    Attributes:
      model: the model with the task's examples.
      methods: names of the methods asked for; those the model does not support are left out.
      num_trials: size of the grid: the first method's is extended up to it. 0 to extend nothing.
    """

    model: TaskModel
    methods: tuple[str, ...]
    num_trials: int = 0

    def supported_methods(self) -> list[AdaptationMethod]:
        """Returns the methods that the model supports, in the order of the grid."""
        own = [METHODS[name] for name in self.methods if METHODS[name].supports(self.model)]
        return sorted(own, key=lambda method: method.search_order)

    def grids(self) -> list[tuple[AdaptationMethod, list[HParams]]]:
        """Returns each method's part of the grid."""
        recipe, num_fewshot = self.model.recipe, self.model.num_fewshot
        methods = self.supported_methods()
        grids = [method.search_space(recipe, num_fewshot=num_fewshot) for method in methods]
        others = sum(map(len, grids[1:]))
        if methods:
            grids[0] = methods[0].search_space(
                recipe, num_fewshot=num_fewshot, num_trials=self.num_trials - others
            )
        return list(zip(methods, grids, strict=True))

    def grid(self) -> list[HParams]:
        """Returns the hyper-parameters to try, of all supported adaptation methods."""
        return [hparams for _, grid in self.grids() for hparams in grid]

    def validate(self, train_idx: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Returns each trial of the grid with its cross-validated score on `train_idx`."""
        folds = make_folds(labels, seed=seed)
        return [
            {"config": hparams, "validation": value}
            for method, grid in self.grids()
            for hparams, value in zip(
                grid,
                method.cross_validate(self.model, train_idx, labels, seed, grid, folds),
                strict=True,
            )
        ]

    def fit(
        self, train_idx: np.ndarray, labels: np.ndarray, seed: int, hparams: HParams
    ) -> FittedModel:
        """Fits to all of `train_idx`."""
        return method_of(hparams).fit(self.model, train_idx, labels, seed, hparams)

    def predict(self, fitted: FittedModel, hparams: HParams) -> np.ndarray:
        """Returns predictions for the test items."""
        return method_of(hparams).predict(self.model, fitted, self.model.test_idx)

    def fit_predict(
        self, train_idx: np.ndarray, labels: np.ndarray, seed: int, hparams: HParams
    ) -> np.ndarray:
        """Fits to all of `train_idx`; returns predictions for the test items."""
        return self.predict(self.fit(train_idx, labels, seed, hparams), hparams)

    def fit_flops(self, num_labels: int, hparams: HParams) -> float:
        """Returns the FLOPs of a fit to `num_labels` labels by the method of `hparams`."""
        return method_of(hparams).flops(self.model, num_labels, hparams)


@dataclasses.dataclass(frozen=True, eq=False)
class ClassicalArm:
    """An arm that fits logistic regression to classical features, such as TF-IDF or pixels.

    Attributes:
      modality: modality of the task.
      inputs: labeled examples, then test items, by `baselines.fit_free_features`.
      test_from: index of the first test item.
      num_trials: size of the grid.
    """

    modality: str
    inputs: Any
    test_from: int
    num_trials: int

    def grid(self) -> list[HParams]:
        """Returns the settings of the inverse penalty C to try, a moderate one first."""
        return from_the_middle(baselines.hparam_grid(self.modality, self.num_trials))

    def validate(self, train_idx: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Returns each trial of the grid with its cross-validated accuracy on `train_idx`."""
        return baselines.cross_validate(
            self.modality,
            self.inputs[train_idx],
            labels,
            self.grid(),
            make_folds(labels, seed=seed),
        )

    def fit_predict(
        self, train_idx: np.ndarray, labels: np.ndarray, seed: int, hparams: HParams
    ) -> np.ndarray:
        """Fits to all of `train_idx`; returns predictions for the test items."""
        fitted = baselines.fit(self.modality, self.inputs[train_idx], labels, hparams)
        return fitted.predict(self.inputs[self.test_from :])

    def fit_flops(self, num_labels: int, hparams: HParams) -> float:
        """Zero: negligible beside a network's."""
        return 0.0
