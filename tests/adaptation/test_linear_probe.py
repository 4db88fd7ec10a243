import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from fm.adaptation.linear_probe import cross_validate_probe, fit_linear_probe, fit_probe, probe_grid
from fm.errors import UserError
from fm.evaluation.logistic import fit_path, log_grid
from fm.evaluation.model_selection import make_folds


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


@pytest.mark.parametrize(("scale", "scaler"), [("standardise", StandardScaler), ("l2", Normalizer)])
@pytest.mark.parametrize("width", [8, 128])
def test_probe_is_scikit_learn_on_scaled_features(scale, scaler, width):
    x, labels = features(examples=80, width=width)
    ours = fit_linear_probe(x[:40], labels[:40], l2=0.5, scale=scale, tol=1e-8)
    theirs = make_pipeline(scaler(), LogisticRegression(C=2.0, tol=1e-8, max_iter=5000))
    theirs.fit(x[:40], labels[:40])
    np.testing.assert_allclose(
        ours.predict_proba(x[40:]), theirs.predict_proba(x[40:]), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_array_equal(ours.predict(x[40:]), theirs.predict(x[40:]))


def test_stronger_penalty_shrinks_the_weights():
    x, labels = features()
    norms = [
        np.linalg.norm(fit_probe(x, labels, {"scale": "l2", "l2": l2}).classifier.coef_)
        for l2 in (0.01, 1, 100)
    ]
    assert norms[0] > norms[1] > norms[2]


def test_trials_scale_by_the_training_part_alone():
    x, labels = features(examples=60, width=20)
    x[:, 0] *= 1000
    configs = probe_grid(4)
    cut = make_folds(labels, seed=1)
    found = cross_validate_probe(x.astype(np.float32), labels, configs, cut)
    for config, trial in zip(configs, found, strict=True):
        right = sum(
            np.sum(
                fit_probe(x[train].astype(np.float32), labels[train], config).predict(x[part])
                == labels[part]
            )
            for train, part in cut
        )
        assert trial == {"config": config, "validation": right / len(labels)}
    assert len({trial["validation"] for trial in found}) > 1, "the settings do not differ"


@given(st.integers(1, 15))
def test_grid_has_exactly_the_trials_asked_for(trials):
    settings = probe_grid(trials)
    assert len({(config["scale"], config["l2"]) for config in settings}) == trials


def test_log_grid():
    assert log_grid(-1, 1, 3) == pytest.approx([0.1, 1, 10])
    assert log_grid(-2, 2, 1) == [1]
    assert log_grid(-2, 2, 0) == []


def test_bad_settings_are_named():
    x, labels = features()
    with pytest.raises(UserError, match="unknown scale 'whiten': one of standardise, l2"):
        fit_linear_probe(x, labels, scale="whiten")
    with pytest.raises(UserError, match="l2 must be positive"):
        fit_linear_probe(x, labels, l2=0)
    with pytest.raises(UserError, match="at least 1"):
        probe_grid(0)
