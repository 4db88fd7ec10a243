"""Linear probe: logistic regression on frozen features (Alain and Bengio 2016)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fm.errors import UserError
from fm.evaluation.logistic import fit_path
from fm.evaluation.model_selection import from_the_middle

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

SCALES = ("standardise", "l2")
CLASS_WEIGHTS = (None, "balanced")
# Penalties beyond these are not tried, however good the last one inside was.
MIN_L2, MAX_L2 = 1e-7, 1e4
# Factor by which a grid of a single penalty is widened.
_SINGLE_STEP = 10.0**0.5


@dataclasses.dataclass(frozen=True)
class Rescaling:
    """A rescaling of features, as fitted to training examples; call it with features [N, D].

    Attributes:
      kind: one of `SCALES`.
      scaler: the fitted transformer of scikit-learn.
    """

    kind: str
    scaler: Any

    def __call__(self, features_ND: np.ndarray) -> np.ndarray:
        """Returns rescaled features, float64 [N, D]."""
        return self.scaler.transform(np.asarray(features_ND, np.float64))

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns what was fitted: mean and deviation of each feature, or nothing."""
        if self.kind != "standardise":
            return {}
        return {"mean": self.scaler.mean_, "deviation": self.scaler.scale_}

    @classmethod
    def restore(cls, kind: str, arrays: dict[str, np.ndarray]) -> Rescaling:
        """Returns the rescaling of a kind that gave `arrays`."""
        scaler = _new_scaler(kind)
        if kind == "standardise":
            scaler.mean_, scaler.scale_ = arrays["mean"], arrays["deviation"]
            scaler.n_features_in_ = len(scaler.mean_)
        return cls(kind, scaler)


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """A fitted linear classifier of features, with the rescaling fitted to its training features.

    Attributes:
      scale: rescales features, as fitted to the training examples.
      classifier: reads the rescaled features.
    """

    scale: Rescaling
    classifier: LogisticRegression

    @property
    def params(self) -> dict[str, np.ndarray]:
        """Returns the classifier's weights."""
        weights = {"kernel": self.classifier.coef_, "bias": self.classifier.intercept_}
        return {name: np.asarray(value) for name, value in weights.items()}

    @property
    def steps(self) -> int:
        """Returns the number of solver iterations."""
        return int(np.max(self.classifier.n_iter_))

    def predict(self, features_ND: np.ndarray) -> np.ndarray:
        """Returns predicted classes, int [N]."""
        return np.asarray(self.classifier.predict(self.scale(features_ND)), int)

    def predict_proba(self, features_ND: np.ndarray) -> np.ndarray:
        """Returns probabilities [N, classes], columns in ascending order of the classes seen."""
        return self.classifier.predict_proba(self.scale(features_ND))

    def dump(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Returns the arrays and JSON that `restore` makes an equal probe of."""
        arrays = self.params | {"classes": self.classifier.classes_} | self.scale.arrays()
        # In one memory order: a product of matrices depends on it in the last bits.
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        return arrays, {"scale": self.scale.kind, "steps": self.steps}

    @classmethod
    def restore(cls, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> LinearProbe:
        """Returns the probe that `dump` was called on."""
        from sklearn.linear_model import LogisticRegression  # seconds to import

        classifier: Any = LogisticRegression()
        classifier.coef_, classifier.intercept_ = arrays["kernel"], arrays["bias"]
        classifier.classes_, classifier.n_iter_ = arrays["classes"], np.array([state["steps"]])
        classifier.n_features_in_ = arrays["kernel"].shape[1]
        return cls(Rescaling.restore(state["scale"], arrays), classifier)


def fit_probe(
    features_ND: np.ndarray, labels: np.ndarray, hparams: dict[str, Any], *, tol: float = 1e-4
) -> LinearProbe:
    """Fits multinomial logistic regression to features.

    Minimizes sum_i c_i NLL_i + l2 s / 2 ||w||^2, where s is the mean squared length of a rescaled
    feature vector, so that one grid of penalties serves every scale and number of features.

    Args:
      features_ND: [N, D] features.
      labels: [N] integer classes.
      hparams: "l2", the penalty on the weights (the bias is free); "scale", one of `SCALES`:
        "standardise" (each feature to mean 0 and deviation 1 over these N) or "l2" (each row to
        length 1); and perhaps "class_weight", one of `CLASS_WEIGHTS`: c_i is 1, or n / (classes *
        examples of i's class).
      tol: largest gradient component at which the solver stops.

    Raises:
      UserError: unknown scale, or penalty not positive.
      ValueError: fewer than two classes.
    """
    return _fit_path(features_ND, labels, [hparams], tol=tol)[0]


def search_probe(
    features_ND: np.ndarray,
    labels: np.ndarray,
    penalties: Sequence[float],
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    score: Callable[[np.ndarray, np.ndarray], float],
    *,
    class_weights: Sequence[str | None] = CLASS_WEIGHTS,
) -> list[tuple[dict[str, Any], float]]:
    """Returns cross-validated (hyper-parameters, score) of probes of every scale and class weight.

    Of each scale and class weight all `penalties` are tried, then as many beyond an end as it takes
    until the best lies inside, or `MIN_L2` or `MAX_L2` is reached. Features are rescaled by each
    fold's training part alone. Each path of penalties is ordered from its middle outwards, or,
    where several in a row are best, from the middle of these, so that the first of equal ones is
    no end of the grid.

    Args:
      features_ND: [N, D] features.
      labels: [N] integer classes.
      penalties: evenly spaced on a log scale, ascending.
      folds: (training, held-out) indices.
      score: (predictions, labels) -> the validation metric, over all held-out examples.
      class_weights: those to try.
    """
    features_ND, labels = np.asarray(features_ND), np.asarray(labels)
    held_out = labels[np.concatenate([each for _, each in folds])]

    def evaluate(scale, weight, tried):
        grid = [{"scale": scale, "class_weight": weight, "l2": l2} for l2 in tried]
        predictions = [
            [probe.predict(features_ND[validation]) for probe in fitted]
            for train, validation in folds
            for fitted in [_fit_path(features_ND[train], labels[train], grid)]
        ]
        of_each = [np.concatenate(each) for each in zip(*predictions, strict=True)]
        return {l2: score(each, held_out) for l2, each in zip(tried, of_each, strict=True)}

    trials = []
    for scale in SCALES:
        for weight in class_weights:
            found = widen(lambda tried, s=scale, w=weight: evaluate(s, w, tried), penalties)
            trials += [
                ({"scale": scale, "class_weight": weight, "l2": l2}, found[l2])
                for l2 in middle_of_best_first(found)
            ]
    return trials


def widen(
    evaluate: Callable[[Sequence[float]], dict[float, float]],
    values: Sequence[float],
    low: float = MIN_L2,
    high: float = MAX_L2,
) -> dict[float, float]:
    """Returns {value: score} of a grid, extended step by step until the best value lies inside.

    Args:
      evaluate: scores some values.
      values: evenly spaced on a log scale, ascending.
      low: nothing below it is tried.
      high: nothing above it is tried.
    """
    step = values[1] / values[0] if len(values) > 1 else _SINGLE_STEP
    found = evaluate(values)
    while True:
        best = max(found.values())
        beyond = [
            value
            for value, edge in ((min(found) / step, min(found)), (max(found) * step, max(found)))
            if found[edge] == best and low <= value <= high
        ]
        inside = [value for value in sorted(found)[1:-1] if found[value] == best]
        if not beyond or inside:
            return found
        found |= evaluate(beyond)


def middle_of_best_first(found: dict[float, float]) -> list[float]:
    """Returns the values, those of the best score first, from their middle; then the others."""
    best = max(found.values())
    first = [value for value in sorted(found) if found[value] == best]
    return from_the_middle(first) + [value for value in sorted(found) if found[value] < best]


def fit_scale(scale: str, features_ND: np.ndarray) -> Rescaling:
    """Returns the rescaling of features, one of `SCALES`, as fitted to these.

    Raises:
      UserError: unknown scale.
    """
    return Rescaling(scale, _new_scaler(scale).fit(np.asarray(features_ND, np.float64)))


def _new_scaler(scale: str) -> Any:
    if scale not in SCALES:
        raise UserError(f"unknown scale {scale!r}: one of {', '.join(SCALES)}")
    from sklearn.preprocessing import Normalizer, StandardScaler  # seconds to import

    return StandardScaler() if scale == "standardise" else Normalizer()


def _fit_path(
    features_ND: np.ndarray, labels: np.ndarray, grid: Sequence[dict[str, Any]], tol: float = 1e-4
) -> list[LinearProbe]:
    """Fits a probe for each setting of a grid that differs in "l2" alone."""
    rescale = fit_scale(grid[0]["scale"], features_ND)
    scaled_ND = rescale(features_ND)
    square = max(float(np.mean(np.sum(scaled_ND**2, axis=1))), 1e-12)
    inverses = [_inverse(hparams["l2"]) / square for hparams in grid]
    weight = grid[0].get("class_weight")
    fitted = fit_path(scaled_ND, np.asarray(labels), inverses, tol=tol, class_weight=weight)
    return [LinearProbe(rescale, classifier) for classifier in fitted]


def _inverse(l2: float) -> float:
    if not l2 > 0:
        raise UserError(f"l2 must be positive, got {l2}")
    return 1.0 / l2
