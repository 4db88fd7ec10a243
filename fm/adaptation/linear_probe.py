"""Logistic regression on frozen features: what a representation holds without fine-tuning it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import Normalizer, StandardScaler

from fm.errors import UserError
from fm.evaluation.logistic import fit_path, log_grid

SCALES = {"standardise": StandardScaler, "l2": Normalizer}
# Powers of ten. Rows of standardised features are sqrt(D) long, normalised rows 1 long.
L2_RANGE = {"standardise": (-1, 4), "l2": (-4, 1)}


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """A fitted probe."""

    scale: Callable[[np.ndarray], np.ndarray]
    classifier: LogisticRegression

    @property
    def params(self) -> dict[str, np.ndarray]:
        """What was fitted."""
        fitted = {"kernel": self.classifier.coef_, "bias": self.classifier.intercept_}
        return {name: np.asarray(each) for name, each in fitted.items()}

    @property
    def steps(self) -> int:
        """Iterations of the solver."""
        return int(np.max(self.classifier.n_iter_))

    def predict(self, features_ND: np.ndarray) -> np.ndarray:
        """[N] integer classes."""
        return np.asarray(self.classifier.predict(self.scale(features_ND)), int)

    def predict_proba(self, features_ND: np.ndarray) -> np.ndarray:
        """[N, classes] probabilities, columns in ascending order of the classes seen."""
        return self.classifier.predict_proba(self.scale(features_ND))


def fit_linear_probe(
    features_ND: np.ndarray,
    labels: np.ndarray,
    *,
    l2: float = 1.0,
    scale: str = "standardise",
    tol: float = 1e-4,
) -> LinearProbe:
    """Fits a linear classifier on features, minimising sum_i NLL_i + l2 / 2 ||w||^2.

    Args:
      features_ND: [N, D] features.
      labels: [N] integer classes.
      l2: penalty on the weights; the bias is free.
      scale: ``standardise`` (each feature to mean 0 and deviation 1 over these N) or ``l2``
        (each row to length 1).
      tol: largest gradient component at which the solver stops.

    Raises:
      UserError: unknown `scale`, or `l2` not positive.
      ValueError: fewer than two classes.
    """
    rescale = _fit_scale(scale, features_ND)
    (classifier,) = fit_path(rescale(features_ND), np.asarray(labels), [_inverse(l2)], tol=tol)
    return LinearProbe(rescale, classifier)


def fit_probe(features_ND: np.ndarray, labels: np.ndarray, config: dict[str, Any]) -> LinearProbe:
    """`logistic_probe` with the ``l2`` and ``scale`` of a configuration."""
    return fit_linear_probe(features_ND, labels, l2=config["l2"], scale=config["scale"])


def probe_grid(trials: int) -> list[dict[str, Any]]:
    """`trials` settings, half of each scale, each over its log-spaced range of penalties.

    Raises:
      UserError: no trials.
    """
    if trials < 1:
        raise UserError(f"trials must be at least 1, got {trials}")
    shares = {"standardise": (trials + 1) // 2, "l2": trials // 2}
    return [
        {"scale": scale, "l2": l2}
        for scale, share in shares.items()
        for l2 in log_grid(*L2_RANGE[scale], share)
    ]


def cross_validate_probe(
    features_ND: np.ndarray,
    labels: np.ndarray,
    configs: Sequence[dict[str, Any]],
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[dict[str, Any]]:
    """Accuracy of every setting over all the examples the folds hold out.

    Features are scaled by each fold's training part alone, once for all penalties of a scale.

    Returns:
      One ``{"config": …, "validation": accuracy}`` per setting, in the order given.
    """
    features_ND, labels = np.asarray(features_ND), np.asarray(labels)
    right = np.zeros(len(configs))
    for train, validation in folds:
        for scale in {config["scale"] for config in configs}:
            chosen = [i for i, config in enumerate(configs) if config["scale"] == scale]
            rescale = _fit_scale(scale, features_ND[train])
            penalties = [_inverse(configs[i]["l2"]) for i in chosen]
            fitted = fit_path(rescale(features_ND[train]), labels[train], penalties)
            held_out = rescale(features_ND[validation])
            right[chosen] += [
                np.sum(model.predict(held_out) == labels[validation]) for model in fitted
            ]
    tested = sum(len(validation) for _, validation in folds)
    return [
        {"config": config, "validation": float(count / tested)}
        for config, count in zip(configs, right, strict=True)
    ]


def _fit_scale(scale: str, features_ND: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    if scale not in SCALES:
        raise UserError(f"unknown scale {scale!r}: one of {', '.join(SCALES)}")
    transform = SCALES[scale]().fit(np.asarray(features_ND, np.float64)).transform
    return lambda features: transform(np.asarray(features, np.float64))


def _inverse(l2: float) -> float:
    if not l2 > 0:
        raise UserError(f"l2 must be positive, got {l2}")
    return 1.0 / l2
