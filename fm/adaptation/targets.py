# ruff: noqa: D102 (methods inherit the docstrings of `Target`)
"""What an example's label is, for a head on an example's features: a class, a number or a set.

A `Target` is the one place that says how many outputs a head has, its loss, what its outputs mean,
which linear probe stands in for it, and the validation score. Everything it needs beyond its fields
(mean and deviation of the labels) is folded into the head's weights, or is a hyper-parameter
(`threshold`), so that a fitted model is plain arrays and JSON.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import expit, softmax

from fm.adaptation.finetune import LossFn, mean_cross_entropy
from fm.adaptation.linear_probe import LinearProbe, fit_probe, search_probe
from fm.adaptation.target_probes import OneVsRestProbe, RidgeProbe, search_target_probe
from fm.evaluation.label_sets import best_threshold
from fm.evaluation.rank_correlation import r_squared

HParams = dict[str, Any]
Fold = tuple[np.ndarray, np.ndarray]
# Hyper-parameters that a search fits to held-out outputs instead of trying a range of them.
FITTED_HPARAMS = ("threshold",)


def mean_squared_error(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the mean squared error of one output, [B, 1] against [B]."""
    return jnp.mean(weights[0] * (logits[:, 0] - targets) ** 2)


def mean_binary_cross_entropy(
    logits: jax.Array, targets: jax.Array, weights: jax.Array
) -> jax.Array:
    """Returns the sum over outputs of the binary cross-entropy in nats, its mean over examples."""
    nats = optax.sigmoid_binary_cross_entropy(logits, targets) * weights
    return jnp.mean(jnp.sum(nats, axis=-1))


class Target(abc.ABC):
    """Base class of targets: number of outputs, loss, predictions, probe and validation score.

    "Truths" are labels as the data has them, "outputs" what a fitted model says of an example, of
    which `decide` makes the predictions that a study scores.

    Attributes:
      kind: "class", "value" or "label_set", as in `Dataset.info["target"]`.
      predicts_classes: whether predictions are classes, int [N].
      loss: of a head's logits.
    """

    kind: ClassVar[str]
    predicts_classes: ClassVar[bool] = False
    loss: ClassVar[LossFn]

    @property
    @abc.abstractmethod
    def num_outputs(self) -> int:
        """Returns the number of a head's outputs (K)."""

    @property
    def num_probe_vectors(self) -> int:
        """Returns the number of weight vectors of a linear probe."""
        return self.num_outputs

    @abc.abstractmethod
    def encode(self, truths: np.ndarray) -> np.ndarray:
        """Returns the truths of one fit [n, ...] as the loss compares logits with them."""

    def in_label_units(self, head: dict, truths: np.ndarray) -> dict:
        """Returns a head trained on `encode(truths)` whose logits are in the units of the truths.

        Args:
          head: "kernel" [E, K] and "bias" [K].
          truths: of the fit.
        """
        return head

    @abc.abstractmethod
    def outputs(self, logits_NK: np.ndarray) -> np.ndarray:
        """Returns the outputs [N, ...] of a head in label units."""

    def probabilities(self, logits_NK: np.ndarray) -> np.ndarray | None:
        """Returns each class's probability, float32 [N, K]; None where there are no classes."""
        return None

    def outputs_of_probabilities(self, probability_NK: np.ndarray) -> np.ndarray:
        """Returns the outputs [N, ...] that go with probabilities."""
        return probability_NK

    def decide(self, outputs: np.ndarray, hparams: HParams) -> np.ndarray:
        """Returns the predictions that a study scores, [N, ...].

        Args:
          outputs: of a fitted model.
          hparams: of the fit, with what `tune` has added.
        """
        return outputs

    @abc.abstractmethod
    def tune(self, outputs: np.ndarray, truths: np.ndarray) -> tuple[float, HParams]:
        """Returns the validation score, higher better, and hyper-parameters fitted to it.

        Args:
          outputs: of held-out examples.
          truths: of the same.
        """

    def standard_error(self, score: float, count: int) -> float:
        """Returns the standard error of a validation score, as of a share of `count` examples."""
        share = min(max(score, 0.0), 1.0)
        return math.sqrt(share * (1 - share) / count)

    @abc.abstractmethod
    def fit_probe(self, features_ND: np.ndarray, truths: np.ndarray, hparams: HParams) -> Any:
        """Fits a linear probe of features; it has `params`, `steps`, `predict` and `dump`."""

    @abc.abstractmethod
    def probe_probabilities(self, probe: Any, features_ND: np.ndarray) -> np.ndarray | None:
        """Returns a probe's class probabilities, float32 [N, K]; None without classes."""

    @abc.abstractmethod
    def search_probe(
        self,
        features_ND: np.ndarray,
        truths: np.ndarray,
        penalties: Sequence[float],
        folds: Sequence[Fold],
    ) -> list[tuple[HParams, float]]:
        """Returns (hyper-parameters, validation score) of the probes tried."""

    @abc.abstractmethod
    def restore_probe(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> Any:
        """Returns the probe of `fit_probe` of whose `dump` these are."""


@dataclasses.dataclass(frozen=True)
class ClassTarget(Target):
    """One class per example: softmax, cross-entropy, logistic regression, balanced accuracy.

    Attributes:
      num_classes: K.
    """

    num_classes: int

    kind = "class"
    predicts_classes = True
    loss = staticmethod(mean_cross_entropy)

    @property
    def num_outputs(self):
        return self.num_classes

    @property
    def num_probe_vectors(self):
        # Logistic regression has one vector for two classes.
        return 1 if self.num_classes == 2 else self.num_classes

    def encode(self, truths):
        return np.asarray(truths, np.int32)

    def outputs(self, logits_NK):
        return self.probabilities(logits_NK).argmax(axis=1)

    def probabilities(self, logits_NK):
        return softmax(logits_NK.astype(np.float32), axis=-1)

    def outputs_of_probabilities(self, probability_NK):
        return probability_NK.argmax(axis=1)

    def tune(self, outputs, truths):
        """Returns balanced accuracy, the mean recall of the classes."""
        recalls = [np.mean(outputs[truths == k] == k) for k in np.unique(truths)]
        return float(np.mean(recalls)), {}

    def fit_probe(self, features_ND, truths, hparams):
        return fit_probe(features_ND, truths, hparams)

    def probe_probabilities(self, probe, features_ND):
        seen = probe.predict_proba(features_ND)
        probabilities = np.zeros((len(features_ND), self.num_classes), np.float32)
        probabilities[:, np.asarray(probe.classifier.classes_, int)] = seen
        return probabilities

    def search_probe(self, features_ND, truths, penalties, folds):
        return search_probe(
            features_ND,
            truths,
            penalties,
            folds,
            lambda outputs, truths: self.tune(outputs, truths)[0],
            class_weights=class_weight_choices(truths),
        )

    def restore_probe(self, arrays, state):
        return LinearProbe.restore(arrays, state)


@dataclasses.dataclass(frozen=True)
class ValueTarget(Target):
    """One number per example: squared error on standardized labels, ridge regression, R squared.

    Labels are standardized by mean and deviation of the labels of a fit, and the head is then
    rescaled to their units. Settings are chosen by R squared, which a constant of each fold does
    not distort as it does a rank correlation.
    """

    kind = "value"
    loss = staticmethod(mean_squared_error)

    @property
    def num_outputs(self):
        return 1

    def encode(self, truths):
        mean, deviation = mean_and_deviation(truths)
        return ((np.asarray(truths, float) - mean) / deviation).astype(np.float32)

    def in_label_units(self, head, truths):
        mean, deviation = mean_and_deviation(truths)
        scale = np.float32(deviation)
        return {
            "kernel": head["kernel"] * scale,
            "bias": head["bias"] * scale + np.float32(mean),
        }

    def outputs(self, logits_NK):
        """Returns the numbers, float [N]; zero where a diverged model has none."""
        return np.nan_to_num(logits_NK[:, 0].astype(float), posinf=0.0, neginf=0.0)

    def tune(self, outputs, truths):
        return r_squared(outputs, truths), {}

    def standard_error(self, score, count):
        """Returns the error of 1 - R squared as of a mean of `count` squared normal errors."""
        return min(1.0 - score, 1.0) * math.sqrt(2 / count)

    def fit_probe(self, features_ND, truths, hparams):
        return RidgeProbe.fit_path(features_ND, truths, [hparams])[0]

    def probe_probabilities(self, probe, features_ND):
        return None

    def search_probe(self, features_ND, truths, penalties, folds):
        return search_target_probe(
            RidgeProbe.fit_path, self.tune, features_ND, truths, penalties, folds
        )

    def restore_probe(self, arrays, state):
        return RidgeProbe.restore(arrays, state)


@dataclasses.dataclass(frozen=True)
class LabelSetTarget(Target):
    """A set of classes per example: sigmoids, binary cross-entropy, one-vs-rest, micro F1.

    Truths are bool [N, K], outputs the probabilities of the classes. One threshold for all classes
    is chosen on held-out outputs, see `fm.evaluation.label_sets.best_threshold`.

    Attributes:
      num_classes: K.
    """

    num_classes: int

    kind = "label_set"
    loss = staticmethod(mean_binary_cross_entropy)

    @property
    def num_outputs(self):
        return self.num_classes

    def encode(self, truths):
        return np.asarray(truths, np.float32)

    def outputs(self, logits_NK):
        return self.probabilities(logits_NK)

    def probabilities(self, logits_NK):
        return expit(logits_NK.astype(np.float32))

    def decide(self, outputs, hparams):
        """Returns which classes are at least as likely as the threshold, bool [N, K]."""
        return outputs >= hparams.get("threshold", 0.5)

    def tune(self, outputs, truths):
        threshold, score = best_threshold(outputs, truths)
        return score, {"threshold": threshold}

    def fit_probe(self, features_ND, truths, hparams):
        return OneVsRestProbe.fit_path(features_ND, truths, [hparams])[0]

    def probe_probabilities(self, probe, features_ND):
        return probe.predict(features_ND).astype(np.float32)

    def search_probe(self, features_ND, truths, penalties, folds):
        return search_target_probe(
            OneVsRestProbe.fit_path, self.tune, features_ND, truths, penalties, folds
        )

    def restore_probe(self, arrays, state):
        return OneVsRestProbe.restore(arrays, state)


def mean_and_deviation(values: np.ndarray) -> tuple[float, float]:
    """Returns mean and standard deviation of numbers; deviation 1 if they are all equal."""
    values = np.asarray(values, float)
    deviation = float(values.std())
    return float(values.mean()), deviation if deviation > 0 else 1.0


def class_weight_choices(labels: np.ndarray) -> tuple[str | None, ...]:
    """Returns the class weights to try, "balanced" if a class is at most half another's size."""
    counts = np.unique(labels, return_counts=True)[1]
    return (None, "balanced") if counts.max() >= 2 * counts.min() else (None,)
