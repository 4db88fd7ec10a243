import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from fm.adaptation.linear_probe import cross_validate_probe, fit_probe
from fm.errors import UserError
from fm.evaluation.model_selection import make_folds
from tests.evaluation.test_logistic import features


@pytest.mark.parametrize(("scale", "scaler"), [("standardise", StandardScaler), ("l2", Normalizer)])
@pytest.mark.parametrize("num_features", [8, 128])
def test_probe_equals_scikit_learn_on_scaled_features(scale, scaler, num_features):
    x, labels = features(examples=80, width=num_features)
    ours = fit_probe(x[:40], labels[:40], {"l2": 0.5, "scale": scale}, tol=1e-8)
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


def test_cross_validation_rescales_by_the_training_part_alone():
    x, labels = features(examples=60, width=20)
    x[:, 0] *= 1000
    penalties = {"standardise": (0.1, 1e4), "l2": (1e-4, 10.0)}
    grid = [{"scale": scale, "l2": l2} for scale in penalties for l2 in penalties[scale]]
    folds = make_folds(labels, seed=1)
    found = cross_validate_probe(x.astype(np.float32), labels, grid, folds)
    for hparams, value in zip(grid, found, strict=True):
        correct = sum(
            np.sum(
                fit_probe(x[train].astype(np.float32), labels[train], hparams).predict(x[held_out])
                == labels[held_out]
            )
            for train, held_out in folds
        )
        assert value == correct / len(labels)
    assert len(set(found)) > 1, "the hyper-parameters make no difference"


def test_bad_hyper_parameters_are_named():
    x, labels = features()
    with pytest.raises(UserError, match="unknown scale 'whiten': one of standardise, l2"):
        fit_probe(x, labels, {"l2": 1.0, "scale": "whiten"})
    with pytest.raises(UserError, match="l2 must be positive"):
        fit_probe(x, labels, {"l2": 0, "scale": "l2"})
