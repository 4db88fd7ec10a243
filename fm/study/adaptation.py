"""Study arms: the protocol every arm follows, and the arm that adapts a model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fm.adaptation.methods import METHODS, AdaptationMethod, FittedModel, HParams, method_of
from fm.adaptation.task_model import TaskModel
from fm.data.tokenizer import Tokenizer
from fm.evaluation.model_selection import make_folds

# {"config": hyper-parameters, "validation": score, higher better, "flops": of the trial (0 if
# absent)}, of several methods {"standard_error": of the score}, and of trained models {"last_gain":
# what the last doubling of updates added to the score, "readings": [[epochs, score], ...]}.
Trial = dict[str, Any]
# The "method" of a classical model that is chosen among adaptation methods.
CLASSICAL = "classical"
# Seeds of an ensemble's members lie further apart than those of a study.
_MEMBER_STRIDE = 100_000


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """An arm's predictions of the test items, and its class probabilities.

    Attributes:
      values: [N, ...], see `fm.study.task.TaskType`.
      probabilities: float32 [N, classes], of label sets each class's own; None where the arm has
        none.
    """

    values: np.ndarray
    probabilities: np.ndarray | None = None


class Arm(Protocol):
    """Interface of an arm on one task: tunes hyperparameters, fits to labels, predicts test items.

    An arm of which one fit serves several tasks may also have `share_cpu_seconds(num_labels,
    cpu_seconds)`: a task's share of what was measured for the first of them. One that may have
    nothing to choose may have `only_setting(num_labels)`, which returns the hyper-parameters then,
    None otherwise; it is not searched then.
    """

    def prepare(self, seeds: int) -> float:
        """Extracts what all label budgets share; returns its CPU seconds of one starting point."""
        ...

    def search(self, train_idx: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Returns each setting tried with its score on validation parts of `train_idx`.

        Of equal trials the first is chosen, so the middle of a grid comes first. A single setting
        comes without a fit, its validation None.
        """
        ...

    def fit_predict(
        self, train_idx: np.ndarray, labels: np.ndarray, seed: int, hparams: HParams
    ) -> Predictions:
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
      tokenizer: of the model, if it reads text and has none of its own.
    """

    model: TaskModel
    methods: tuple[str, ...]
    tokenizer: Tokenizer | None = None

    def supported_methods(self) -> list[AdaptationMethod]:
        """Returns the methods that the model supports, the cheapest first."""
        own = [METHODS[name] for name in self.methods if METHODS[name].supports(self.model)]
        return sorted(own, key=lambda method: method.search_order)

    def prepare(self, seeds: int) -> float:
        """Extracts the frozen features of all examples; returns CPU seconds of one model."""
        if not any(method.reads_features for method in self.supported_methods()):
            return 0.0
        begun = time.process_time()
        for seed in range(seeds):
            self.model.features(seed, np.arange(self.model.num_examples))
        starts = len({self.model.start_key(seed) for seed in range(seeds)})
        return (time.process_time() - begun) / starts

    def search(self, train_idx: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Returns the trials of every supported method with their scores on `train_idx`.

        Of several methods each trial has the "standard_error" of its score, as of a share of the
        examples held out, see `select_trial`.
        """
        folds, methods = make_folds(labels, seed=seed), self.supported_methods()
        trials = [
            trial
            for method in methods
            for trial in method.search(self.model, train_idx, labels, seed, folds)
        ]
        if len(methods) == 1:
            return trials
        return with_standard_errors(trials, folds, self.model.standard_error)

    def only_setting(self, num_labels: int) -> HParams | None:
        """Returns the hyper-parameters if there is one method with one setting, else None."""
        methods = self.supported_methods()
        return methods[0].only_setting(self.model, num_labels) if len(methods) == 1 else None

    def fit(
        self, train_idx: np.ndarray, labels: np.ndarray, seed: int, hparams: HParams
    ) -> FittedModel:
        """Fits to all of `train_idx`."""
        return method_of(hparams).fit(self.model, train_idx, labels, seed, hparams)

    def predict(self, fitted: FittedModel, hparams: HParams) -> Predictions:
        """Returns predictions for the test items."""
        method, idx = method_of(hparams), self.model.test_idx
        probabilities = method.predict_proba(self.model, fitted, idx)
        if probabilities is None:
            outputs = method.predict(self.model, fitted, idx)
        else:
            outputs = self.model.head_target.outputs_of_probabilities(probabilities)
        return Predictions(self.model.decide(outputs, hparams), probabilities)

    def fit_predict(
        self, train_idx: np.ndarray, labels: np.ndarray, seed: int, hparams: HParams
    ) -> Predictions:
        """Fits to all of `train_idx`; returns predictions for the test items."""
        return self.predict(self.fit(train_idx, labels, seed, hparams), hparams)

    def fit_flops(self, num_labels: int, hparams: HParams) -> float:
        """Returns the FLOPs of a fit to `num_labels` labels by the method of `hparams`."""
        return method_of(hparams).flops(self.model, num_labels, hparams)


def chosen_arm(arm: Arm, hparams: HParams) -> tuple[Arm, HParams]:
    """Returns the arm among several that settings are of, and its own settings."""
    if isinstance(arm, RecipeChoiceArm | ClassicalOrNetworkArm):
        return chosen_arm(*arm.chosen(hparams))
    return arm, hparams


def with_standard_errors(
    trials: Sequence[Trial],
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    standard_error: Callable[[float, int], float],
) -> list[Trial]:
    """Returns trials with the "standard_error" of their score over the examples held out."""
    num_held_out = sum(len(held_out) for _, held_out in folds)
    return [
        trial | {"standard_error": standard_error(trial["validation"], num_held_out)}
        for trial in trials
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class ClassicalOrNetworkArm:
    """An arm that takes a classical model or an adapted network, by their validation scores.

    The network has to be more than one standard error ahead, see `select_trial`.

    Attributes:
      classical: its hyper-parameters get the method `CLASSICAL`.
      network: adapts the network.
      min_labels: with fewer labels the network is not tried: validation cannot tell them apart.
    """

    classical: Arm
    network: ModelArm
    min_labels: int

    def prepare(self, seeds: int) -> float:
        """Prepares both; returns the sum of their CPU seconds."""
        return self.classical.prepare(seeds) + self.network.prepare(seeds)

    def search(self, train_idx: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Returns the trials of the classical model, then those of the network if it is tried."""
        trials = [
            trial | {"config": {"method": CLASSICAL, **trial["config"]}}
            for trial in self.classical.search(train_idx, labels, seed)
        ]
        if len(labels) < self.min_labels:
            return trials
        trials += self.network.search(train_idx, labels, seed)
        folds = make_folds(labels, seed=seed)
        return with_standard_errors(trials, folds, self.network.model.standard_error)

    def fit_predict(
        self, train_idx: np.ndarray, labels: np.ndarray, seed: int, hparams: HParams
    ) -> Predictions:
        """Fits the model chosen to all of `train_idx`; returns predictions for the test items."""
        arm, hparams = self.chosen(hparams)
        return arm.fit_predict(train_idx, labels, seed, hparams)

    def fit_flops(self, num_labels: int, hparams: HParams) -> float:
        """Returns the FLOPs of a fit of the model chosen."""
        arm, hparams = self.chosen(hparams)
        return arm.fit_flops(num_labels, hparams)

    def chosen(self, hparams: HParams) -> tuple[Arm, HParams]:
        """Returns the arm that settings are of, and the settings."""
        return self.classical if hparams["method"] == CLASSICAL else self.network, hparams


@dataclasses.dataclass(frozen=True, eq=False)
class EnsembleArm:
    """An arm whose answer is the mean probability of several models fitted to the same labels.

    The members differ in their initial parameters and the order of examples (Lakshminarayanan et
    al. 2017). The settings are those that one member's search finds best.

    Attributes:
      member: fits one model.
      flops: spent on further members beside the first, as far as `max_members` allows.
      max_members: most members.
    """

    member: ModelArm
    flops: float
    max_members: int

    def prepare(self, seeds: int) -> float:
        """Prepares the members; returns the CPU seconds of one."""
        return self.member.prepare(seeds)

    def search(self, train_idx: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Returns the trials of one member."""
        return self.member.search(train_idx, labels, seed)

    def num_members(self, num_labels: int, hparams: HParams) -> int:
        """Returns the number of models fitted to `num_labels` labels."""
        further = int(self.flops // self.member.fit_flops(num_labels, hparams))
        return max(1, min(1 + further, self.max_members))

    def fit_predict(
        self, train_idx: np.ndarray, labels: np.ndarray, seed: int, hparams: HParams
    ) -> Predictions:
        """Fits every member to all of `train_idx`; returns their joint predictions."""
        probabilities = []
        for n in range(self.num_members(len(train_idx), hparams)):
            found = self.member.fit_predict(train_idx, labels, seed + n * _MEMBER_STRIDE, hparams)
            assert found.probabilities is not None, "an ensemble averages class probabilities"
            probabilities.append(found.probabilities)
        mean = np.mean(probabilities, axis=0)
        return Predictions(mean.argmax(axis=1), mean)

    def fit_flops(self, num_labels: int, hparams: HParams) -> float:
        """Returns the FLOPs of fitting all members."""
        count = self.num_members(num_labels, hparams)
        return count * self.member.fit_flops(num_labels, hparams)


@dataclasses.dataclass(frozen=True, eq=False)
class RecipeChoiceArm:
    """An arm that adapts models of several recipes and takes the one that validates best.

    The key "recipe" of its hyper-parameters names the recipe.

    Attributes:
      arms: by the name of the recipe.
    """

    arms: Mapping[str, Arm]

    def prepare(self, seeds: int) -> float:
        """Prepares every recipe's arm; returns the sum of their CPU seconds."""
        return sum(arm.prepare(seeds) for arm in self.arms.values())

    def search(self, train_idx: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Returns the trials of every recipe."""
        return [
            trial | {"config": {"recipe": name, **trial["config"]}}
            for name, arm in self.arms.items()
            for trial in arm.search(train_idx, labels, seed)
        ]

    def fit_predict(
        self, train_idx: np.ndarray, labels: np.ndarray, seed: int, hparams: HParams
    ) -> Predictions:
        """Fits the model of the recipe chosen; returns predictions for the test items."""
        arm, hparams = self.chosen(hparams)
        return arm.fit_predict(train_idx, labels, seed, hparams)

    def fit_flops(self, num_labels: int, hparams: HParams) -> float:
        """Returns the FLOPs of a fit of the recipe chosen."""
        arm, hparams = self.chosen(hparams)
        return arm.fit_flops(num_labels, hparams)

    def chosen(self, hparams: HParams) -> tuple[Arm, HParams]:
        """Returns the arm of the recipe that settings name, and the other settings."""
        own = {name: value for name, value in hparams.items() if name != "recipe"}
        return self.arms[hparams["recipe"]], own
