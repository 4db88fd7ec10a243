"""Linear probes of numbers and of label sets: ridge regression, one-vs-rest logistic regression."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from fm.adaptation.linear_probe import SCALES, Rescaling, fit_scale, middle_of_best_first, widen
from fm.errors import UserError
from fm.evaluation.logistic import fit_path as fit_logistic_path

HParams = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """A fitted linear map of rescaled features; the base of the probes here.

    Attributes:
      scale: rescales features, as fitted to the training examples.
      kernel: [K, D].
      bias: [K].
      steps: iterations of the solver; 0 for a closed form.
    """

    scale: Rescaling
    kernel: np.ndarray
    bias: np.ndarray
    steps: int = 0

    @property
    def params(self) -> dict[str, np.ndarray]:
        """Returns the weights."""
        return {"kernel": self.kernel, "bias": self.bias}

    def logits(self, features_ND: np.ndarray) -> np.ndarray:
        """Returns the map's outputs, float64 [N, K]."""
        return self.scale(features_ND) @ self.kernel.T + self.bias

    def dump(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Returns the arrays and JSON that `restore` makes an equal probe of."""
        arrays = self.params | self.scale.arrays()
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        return arrays, {"scale": self.scale.kind, "steps": self.steps}

    @classmethod
    def restore(cls, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> Any:
        """Returns the probe that `dump` was called on."""
        scale = Rescaling.restore(state["scale"], arrays)
        return cls(scale, arrays["kernel"], arrays["bias"], state["steps"])


class RidgeProbe(LinearMap):
    """Ridge regression of a number from features."""

    def predict(self, features_ND: np.ndarray) -> np.ndarray:
        """Returns predicted numbers, float [N]."""
        return self.logits(features_ND)[:, 0]

    @classmethod
    def fit_path(
        cls, features_ND: np.ndarray, values: np.ndarray, grid: Sequence[HParams]
    ) -> list[RidgeProbe]:
        """Fits a probe for each setting of a grid that differs in "l2" alone.

        Minimizes sum_i (z_i - w x_i - b)^2 / 2 + l2 s / 2 ||w||^2, with z the standardized numbers
        and s the mean squared length of a rescaled feature vector, by one decomposition.

        Raises:
          UserError: unknown scale, or penalty not positive.
        """
        rescale = fit_scale(grid[0]["scale"], features_ND)
        scaled_ND, values = rescale(features_ND), np.asarray(values, float)
        square = _mean_square(scaled_ND)
        center_D, mean = scaled_ND.mean(axis=0), values.mean()
        u_NR, s_R, v_RD = np.linalg.svd(scaled_ND - center_D, full_matrices=False)
        projected_R = u_NR.T @ (values - mean)
        probes = []
        for hparams in grid:
            shrunk_R = s_R / (s_R**2 + _positive(hparams["l2"]) * square)
            kernel_D = (shrunk_R * projected_R) @ v_RD
            bias = np.array([mean - center_D @ kernel_D])
            probes.append(cls(rescale, kernel_D[None], bias))
        return probes


class OneVsRestProbe(LinearMap):
    """One logistic regression per class, for label sets."""

    def predict(self, features_ND: np.ndarray) -> np.ndarray:
        """Returns each class's probability, float [N, K]."""
        return expit(self.logits(features_ND))

    @classmethod
    def fit_path(
        cls, features_ND: np.ndarray, hot_NK: np.ndarray, grid: Sequence[HParams]
    ) -> list[OneVsRestProbe]:
        """Fits a probe for each setting of a grid that differs in "l2" alone.

        Each class's is that of `fm.adaptation.linear_probe.fit_probe`; a class that all or none of
        the examples have gets the share (count + 1/2) / (N + 1) whatever the features are.

        Raises:
          UserError: unknown scale, or penalty not positive.
        """
        rescale = fit_scale(grid[0]["scale"], features_ND)
        scaled_ND = rescale(features_ND)
        inverses = [1 / (_positive(each["l2"]) * _mean_square(scaled_ND)) for each in grid]
        (N, D), K = scaled_ND.shape, hot_NK.shape[1]
        count_K = hot_NK.sum(axis=0)
        kernels = np.zeros((len(grid), K, D))
        biases = np.tile(np.log((count_K + 0.5) / (N - count_K + 0.5)), (len(grid), 1))
        steps = np.zeros(len(grid), int)
        for k in np.flatnonzero((count_K > 0) & (count_K < N)):
            fitted = fit_logistic_path(scaled_ND, hot_NK[:, k].astype(int), inverses)
            for n, each in enumerate(fitted):
                kernels[n, k] = np.asarray(each.coef_)[0]
                biases[n, k] = np.asarray(each.intercept_)[0]
                steps[n] = max(steps[n], int(np.max(each.n_iter_)))
        return [
            OneVsRestProbe(rescale, kernel, bias, int(own))
            for kernel, bias, own in zip(kernels, biases, steps, strict=True)
        ]


def search_target_probe(
    fit_path: Callable[[np.ndarray, np.ndarray, Sequence[HParams]], list[Any]],
    tune: Callable[[np.ndarray, np.ndarray], tuple[float, HParams]],
    features_ND: np.ndarray,
    truths: np.ndarray,
    penalties: Sequence[float],
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[tuple[HParams, float]]:
    """Returns cross-validated (hyper-parameters, score) of probes of every scale.

    As `fm.adaptation.linear_probe.search_probe`, without class weights.

    Args:
      fit_path: fits probes to a grid of penalties.
      tune: (outputs, truths) of all held-out examples to the validation score and further
        hyper-parameters.
      features_ND: [N, D] features.
      truths: [N, ...].
      penalties: evenly spaced on a log scale, ascending.
      folds: (training, held-out) indices.
    """
    features_ND, truths = np.asarray(features_ND), np.asarray(truths)
    held_out = truths[np.concatenate([each for _, each in folds])]
    extra: dict[tuple[str, float], HParams] = {}

    def evaluate(scale: str, tried: Sequence[float]) -> dict[float, float]:
        grid = [{"scale": scale, "l2": l2} for l2 in tried]
        outputs = [
            [probe.predict(features_ND[validation]) for probe in fitted]
            for train, validation in folds
            for fitted in [fit_path(features_ND[train], truths[train], grid)]
        ]
        scores = {}
        for l2, own in zip(tried, zip(*outputs, strict=True), strict=True):
            scores[l2], extra[scale, l2] = tune(np.concatenate(own), held_out)
        return scores

    trials = []
    for scale in SCALES:
        found = widen(lambda tried, s=scale: evaluate(s, tried), penalties)
        trials += [
            ({"scale": scale, "l2": l2} | extra[scale, l2], found[l2])
            for l2 in middle_of_best_first(found)
        ]
    return trials


def _mean_square(scaled_ND: np.ndarray) -> float:
    return max(float(np.mean(np.sum(scaled_ND**2, axis=1))), 1e-12)


def _positive(l2: float) -> float:
    if not l2 > 0:
        raise UserError(f"l2 must be positive, got {l2}")
    return l2
