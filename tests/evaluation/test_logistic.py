import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression

from fm.evaluation.logistic import fit_path


def features(examples=40, width=128, classes=3, seed=0):
    random = np.random.default_rng(seed)
    labels = np.arange(examples) % classes
    return random.normal(size=(examples, width)) + 2 * np.eye(classes, width)[labels], labels


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("sparse", [False, True])
def test_rotation_into_the_row_space_is_exact(classes, sparse):
    x, labels = features(classes=classes)
    x = sp.csr_array(x * (np.abs(x) > 1)) if sparse else x
    penalties = [0.01, 1.0, 100.0]
    for inverse_penalty, ours in zip(
        penalties, fit_path(x, labels, penalties, tol=1e-8), strict=True
    ):
        theirs = LogisticRegression(C=inverse_penalty, tol=1e-8, max_iter=5000).fit(x, labels)
        assert ours.coef_.shape == theirs.coef_.shape
        np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-3, atol=1e-5)


def test_rotation_copes_with_repeated_and_empty_examples():
    x, labels = features(examples=20)
    x = np.concatenate([x, x, np.zeros((2, x.shape[1]))])
    labels = np.concatenate([labels, labels, [0, 1]])
    (ours,) = fit_path(x, labels, [1.0], tol=1e-8)
    theirs = LogisticRegression(tol=1e-8, max_iter=5000).fit(x, labels)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-3, atol=1e-5)
    (nothing,) = fit_path(np.zeros((4, 9)), np.array([0, 1, 1, 1]), [1.0])
    np.testing.assert_array_equal(nothing.predict(np.ones((2, 9))), [1, 1])
