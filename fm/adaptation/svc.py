"""RBF support-vector classifier of frozen features (Cortes and Vapnik 1995)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fm.adaptation.linear_probe import fit_scale

if TYPE_CHECKING:
    from sklearn.svm import SVC

# gamma is a multiple of 1 / (features * variance), scikit-learn's "scale".
PENALTIES, GAMMAS = (10.0, 1.0, 100.0, 0.1), (1.0, 0.25, 4.0)


@dataclasses.dataclass(frozen=True)
class SupportVectorProbe:
    """A fitted RBF classifier of features, with the rescaling fitted to its training features.

    Attributes:
      scale: rescales features, as fitted to the training examples.
      classifier: reads the rescaled features.
      features_ND: features it was fitted to, not rescaled.
      labels: their classes, int [N].
    """

    scale: Callable[[np.ndarray], np.ndarray]
    classifier: SVC
    features_ND: np.ndarray
    labels: np.ndarray

    def dump(self) -> tuple[dict[str, np.ndarray], None]:
        """Returns the features and labels that it was fitted to, which give it again, and None."""
        arrays = {"features": self.features_ND, "labels": self.labels}
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}, None

    @property
    def params(self) -> dict[str, np.ndarray]:
        """Returns the support vectors and their coefficients."""
        fitted: Any = self.classifier
        names = {"support_vectors": "support_vectors_", "dual": "dual_coef_", "bias": "intercept_"}
        return {name: np.asarray(getattr(fitted, field)) for name, field in names.items()}

    @property
    def steps(self) -> int:
        """Returns the number of solver iterations."""
        return int(np.max(self.classifier.n_iter_))

    def predict(self, features_ND: np.ndarray) -> np.ndarray:
        """Returns predicted classes, int [N]."""
        return np.asarray(self.classifier.predict(self.scale(features_ND)), int)


def fit_svc(
    features_ND: np.ndarray, labels: np.ndarray, hparams: dict[str, Any]
) -> SupportVectorProbe:
    """Fits an RBF support-vector classifier to features.

    Args:
      features_ND: [N, D] features.
      labels: [N] integer classes.
      hparams: "C"; "gamma", a multiple of 1 / (features * variance); "class_weight", None or
        "balanced"; "scale", see `fm.adaptation.linear_probe.SCALES`.

    Raises:
      UserError: unknown scale.
      ValueError: fewer than two classes.
    """
    from sklearn.svm import SVC  # seconds to import

    scale = fit_scale(hparams["scale"], features_ND)
    scaled = scale(features_ND)
    gamma = hparams["gamma"] / max(scaled.shape[1] * scaled.var(), 1e-12)
    classifier = SVC(C=hparams["C"], gamma=gamma, class_weight=hparams["class_weight"])
    return SupportVectorProbe(scale, classifier.fit(scaled, labels), features_ND, labels)


def svc_grid(scales: Sequence[str], class_weights: Sequence[str | None]) -> list[dict[str, Any]]:
    """Returns the hyper-parameters to try, C by gamma by scale by class weight, middle first."""
    return [
        {"scale": scale, "class_weight": weight, "C": penalty, "gamma": gamma}
        for scale in scales
        for weight in class_weights
        for penalty in PENALTIES
        for gamma in GAMMAS
    ]
