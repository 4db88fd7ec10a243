"""Linear probe: logistic regression on frozen features (Alain and Bengio 2016)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fm.errors import UserError
from fm.evaluation.logistic import fit_path

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

SCALES = ("standardise", "l2")


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """A fitted linear classifier of features, with the rescaling fitted to its training features.

    Attributes:
      scale: rescales features, as fitted to the training examples.
      classifier: reads the rescaled features.
    """

    scale: Callable[[np.ndarray], np.ndarray]
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


def fit_probe(
    features_ND: np.ndarray, labels: np.ndarray, hparams: dict[str, Any], *, tol: float = 1e-4
) -> LinearProbe:
    """Fits multinomial logistic regression to features: minimizes sum_i NLL_i + l2 / 2 ||w||^2.

    Args:
      features_ND: [N, D] features.
      labels: [N] integer classes.
      hparams: "l2", the penalty on the weights (the bias is free), and "scale", one of `SCALES`:
        "standardise" (each feature to mean 0 and deviation 1 over these N) or "l2" (each row to
        length 1).
      tol: largest gradient component at which the solver stops.

    Raises:
      UserError: unknown scale, or penalty not positive.
      ValueError: fewer than two classes.
    """
    rescale = _fit_scale(hparams["scale"], features_ND)
    inverse = _inverse(hparams["l2"])
    (classifier,) = fit_path(rescale(features_ND), np.asarray(labels), [inverse], tol=tol)
    return LinearProbe(rescale, classifier)


def cross_validate_probe(
    features_ND: np.ndarray,
    labels: np.ndarray,
    grid: Sequence[dict[str, Any]],
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[float]:
    """Returns the cross-validated accuracy of each hyper-parameter setting of `grid`.

    Features are rescaled by each fold's training part alone, once for all penalties of a scale.
    """
    features_ND, labels = np.asarray(features_ND), np.asarray(labels)
    correct = np.zeros(len(grid))
    for train, validation in folds:
        for scale in {hparams["scale"] for hparams in grid}:
            chosen = [i for i, hparams in enumerate(grid) if hparams["scale"] == scale]
            rescale = _fit_scale(scale, features_ND[train])
            penalties = [_inverse(grid[i]["l2"]) for i in chosen]
            fitted = fit_path(rescale(features_ND[train]), labels[train], penalties)
            held_out = rescale(features_ND[validation])
            correct[chosen] += [
                np.sum(model.predict(held_out) == labels[validation]) for model in fitted
            ]
    tested = sum(len(validation) for _, validation in folds)
    return [float(count / tested) for count in correct]


def _fit_scale(scale: str, features_ND: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    if scale not in SCALES:
        raise UserError(f"unknown scale {scale!r}: one of {', '.join(SCALES)}")
    from sklearn.preprocessing import Normalizer, StandardScaler  # seconds to import

    scaler: Any = StandardScaler() if scale == "standardise" else Normalizer()
    transform = scaler.fit(np.asarray(features_ND, np.float64)).transform
    return lambda features: transform(np.asarray(features, np.float64))


def _inverse(l2: float) -> float:
    if not l2 > 0:
        raise UserError(f"l2 must be positive, got {l2}")
    return 1.0 / l2
