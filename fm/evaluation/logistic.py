"""Logistic regression on few examples of many features, at a cost that depends on the few.

With N examples and D > N features, the L2-penalized solution lies in the span of the examples
(the representer theorem), so it is found among N rotated coordinates and rotated back. Exact,
and one rotation serves every penalty tried.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

# Few labels of many classes are intended here. For the whole process, since fits run in parallel.
warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")

# Nearly unpenalized fits of separable labels converge slowly: enough to stop by tolerance.
MAX_ITERATIONS = 5000

Matrix = np.ndarray | sp.csr_array


def fit_path(
    x_ND: Matrix,
    labels: np.ndarray,
    inverse_penalties: Sequence[float],
    *,
    tol: float = 1e-4,
    class_weight: str | None = None,
) -> list[LogisticRegression]:
    """Fits one logistic regression to the same examples for each inverse penalty C.

    Minimizes sum_i NLL_i + ||w||^2 / (2 C), the bias unpenalized (scikit-learn's convention);
    softmax over the classes when there are more than two.

    Args:
      x_ND: [N, D] features, dense or sparse.
      labels: [N] integer classes, at least two different ones.
      inverse_penalties: the values of C.
      tol: largest gradient component at which L-BFGS stops.
      class_weight: "balanced" multiplies NLL_i by N / (classes * examples of i's class).

    Raises:
      ValueError: a single class (scikit-learn's message).
    """
    from sklearn.linear_model import LogisticRegression  # seconds to import

    examples, features = x_ND.shape  # pyright: ignore[reportGeneralTypeIssues]
    z_NR, span_NR = row_space(_gram(x_ND)) if examples < features else (x_ND, None)
    fitted = []
    for inverse_penalty in inverse_penalties:
        options = {"max_iter": MAX_ITERATIONS, "tol": tol, "class_weight": class_weight}
        model: Any = LogisticRegression(C=inverse_penalty, **options)
        model.fit(z_NR, labels)
        if span_NR is not None:
            # w_D = X^T (span w_R): the classifier now takes the features themselves.
            model.coef_ = (x_ND.T @ (span_NR @ model.coef_.T)).T
            model.n_features_in_ = features
        fitted.append(model)
    return fitted


def row_space(gram_NN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns examples in coordinates of their own span, z_NR, and span_NR: X^T span orthonormal.

    From the Gram matrix X X^T = U diag(s^2) U^T: z = U s, span = U / s, over the s that are not
    rounding error.
    """
    square_N, u_NN = np.linalg.eigh(gram_NN)
    noise = square_N[-1] * square_N.size * np.finfo(square_N.dtype).eps
    kept = square_N > noise
    kept[-1] = True
    s_R = np.sqrt(np.maximum(square_N[kept], np.finfo(square_N.dtype).tiny))
    return u_NN[:, kept] * s_R, u_NN[:, kept] / s_R


def _gram(x_ND: Matrix) -> np.ndarray:
    return x_ND @ x_ND.T if isinstance(x_ND, np.ndarray) else (x_ND @ x_ND.T).toarray()
