"""Adaptation methods: the protocol and the registry."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fm.adaptation.finetune import MemoryFootprint
from fm.adaptation.search import Trial
from fm.adaptation.task_model import AdaptationRecipe, Fold, TaskModel
from fm.errors import UserError

HParams = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class FittedModel:
    """Result of `AdaptationMethod.fit`: parameters, training steps, and what `predict` needs.

    Attributes:
      params: parameters that predict; for a linear probe the probe's alone.
      steps: optimizer steps, or iterations of the probe's solver.
      state: what the method's `predict` needs.
    """

    params: dict
    steps: int
    state: Any = None


class AdaptationMethod(abc.ABC):
    """Base class of adaptation methods: hyper-parameter grid, fitting, prediction and cost.

    Attributes:
      name: value of `--adapt` and of the key "method" of its hyper-parameters.
      description: one line for help and reports.
      search_order: methods with a smaller number come first in an arm's grid; of trials with equal
        validation scores the first is chosen.
      published_models_only: whether it takes a language model larger than those a study pretrains.
      updates_model: whether it trains by gradient steps, so that it has a learning curve and the
        result is another network.
      reads_features: whether it reads frozen features, `TaskModel.features`.
      reads_unlabeled: whether it reads the unlabeled examples, `TaskModel.unlabeled_idx`.
      reads_initial_params: whether predictions need the parameters that the model started from, so
        that they are saved with what was fitted.
    """

    name: str
    description: str
    search_order: int = 10
    published_models_only: bool = False
    updates_model: bool = False
    reads_features: bool = False
    reads_unlabeled: bool = False
    reads_initial_params: bool = True

    @abc.abstractmethod
    def supports(self, model: TaskModel) -> bool:
        """Returns whether the method can adapt the model to its task."""

    @abc.abstractmethod
    def search_space(
        self, recipe: AdaptationRecipe, *, num_fewshot: Sequence[int] = (0,)
    ) -> list[HParams]:
        """Returns hyper-parameters to try, the middle of each grid first.

        A search may widen a grid. `num_fewshot` are the numbers of solved examples to try in
        prompts.
        """

    def only_setting(self, model: TaskModel, num_labels: int) -> HParams | None:
        """Returns the hyper-parameters if a search has nothing to choose, so that it needs no fit.

        None where there is a choice, or something has to be fitted to held-out outputs.
        """
        return None

    @abc.abstractmethod
    def fit(
        self,
        model: TaskModel,
        train_idx: np.ndarray,
        labels: np.ndarray,
        seed: int,
        hparams: HParams,
        *,
        num_steps: int | None = None,
    ) -> FittedModel:
        """Fits the method to the labeled examples `train_idx`, int [n].

        `labels`, int [n], are their classes, for NER their strata. `num_steps` shortens a run of a
        method that `updates_model`.
        """

    @abc.abstractmethod
    def predict(self, model: TaskModel, fitted: FittedModel, idx: np.ndarray) -> np.ndarray:
        """Returns outputs for the examples `idx`, [n, ...], of which `TaskModel.decide` decides."""

    @abc.abstractmethod
    def flops(self, model: TaskModel, num_labels: int, hparams: HParams) -> float:
        """Returns the FLOPs of a `fit`."""

    @abc.abstractmethod
    def footprint(
        self, model: TaskModel, train_idx: np.ndarray, labels: np.ndarray, hparams: HParams
    ) -> MemoryFootprint:
        """Returns the parameters trained and memory of a `fit`, without running it."""

    @abc.abstractmethod
    def num_task_params(self, model: TaskModel) -> int:
        """Returns the number of parameters kept per task, beside the shared network."""

    def search(
        self,
        model: TaskModel,
        train_idx: np.ndarray,
        labels: np.ndarray,
        seed: int,
        folds: Sequence[Fold],
    ) -> list[Trial]:
        """Returns the trials of a search on the examples `train_idx` alone.

        Each is {"config": hyper-parameters, "validation": score over the held-out examples of all
        folds, the best of its readings, "flops": of the trial}, and of a method that
        `updates_model` "last_gain": by how much the last doubling of its updates raised the best
        score. Of trials with equal scores the first is
        to be taken: no trial before an equal one lies nearer to an end of its grid.
        """
        grid = self.search_space(model.recipe, num_fewshot=model.num_fewshot)
        return cross_validated_trials(self, model, train_idx, labels, seed, folds, grid)

    def predict_proba(
        self, model: TaskModel, fitted: FittedModel, idx: np.ndarray
    ) -> np.ndarray | None:
        """Returns class probabilities of the examples `idx`, float32 [n, classes]; None if none.

        Where there are any, `predict` returns the most likely classes.
        """
        return None

    def dump(self, fitted: FittedModel) -> tuple[dict, Any]:
        """Returns what predicts again once it is saved: nested arrays, and JSON for `state`.

        The initial parameters are saved beside them if `reads_initial_params`.

        Raises:
          UserError: the method has a state and does not say how it is saved.
        """
        if fitted.state is not None:
            raise UserError(
                f"the adaptation method {self.name} cannot be saved: it has a state, and neither "
                "`dump` nor `restore` of its own"
            )
        return fitted.params, None

    def restore(self, model: TaskModel, arrays: dict, state: Any, hparams: HParams) -> FittedModel:
        """Returns what `dump` was given, to predict with a model that has a single start.

        Args:
          model: the model, whose initial parameters are those of every seed.
          arrays: of `dump`.
          state: of `dump`.
          hparams: of the fit.
        """
        return FittedModel(arrays, 0, state)


def cross_validated_trials(
    method: AdaptationMethod,
    model: TaskModel,
    train_idx: np.ndarray,
    labels: np.ndarray,
    seed: int,
    folds: Sequence[Fold],
    grid: Sequence[HParams],
) -> list[Trial]:
    """Returns a trial for each setting of `grid`, from a whole fit in each fold."""

    def fit_predict(fit_idx, labels, held_out_idx, hparams):
        fitted = method.fit(model, fit_idx, labels, seed, hparams)
        return method.predict(model, fitted, held_out_idx)

    return [
        {
            "config": hparams | fitted,
            "validation": score,
            "flops": sum(method.flops(model, len(fit), hparams) for fit, _ in folds),
        }
        for hparams in grid
        for score, fitted in [
            model.tuned_by_folds(
                functools.partial(fit_predict, hparams=hparams), train_idx, labels, folds
            )
        ]
    ]


METHODS: dict[str, AdaptationMethod] = {}


def register_method(method: AdaptationMethod) -> None:
    """Adds a method to `METHODS` under its name.

    Raises:
      ValueError: the name is taken.
    """
    if method.name in METHODS:
        raise ValueError(f"adaptation method {method.name!r} is registered already")
    METHODS[method.name] = method


def method_of(hparams: HParams) -> AdaptationMethod:
    """Returns the adaptation method named by the key "method" of hyper-parameters."""
    return METHODS[hparams["method"]]


def check_methods(names: Sequence[str]) -> None:
    """Raises UserError if a method name is unknown or repeated.

    Raises:
      UserError: otherwise.
    """
    for name in names:
        if name not in METHODS:
            raise UserError(f"--adapt: {name!r} is not known; accepted are {', '.join(METHODS)}")
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"--adapt={','.join(names)}: methods, at least one of {', '.join(METHODS)}, none twice"
        )


def num_entries(tree: Any) -> int:
    """Returns the number of entries of all arrays of a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def num_bytes(tree: Any) -> int:
    """Returns the bytes of all arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
