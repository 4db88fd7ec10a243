import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from fm.adaptation.linear_probe import (
    MAX_L2,
    MIN_L2,
    fit_probe,
    middle_of_best_first,
    search_probe,
    widen,
)
from fm.errors import UserError
from fm.evaluation.model_selection import make_folds
from tests.evaluation.test_logistic import features


@pytest.mark.parametrize(("scale", "scaler"), [("standardise", StandardScaler), ("l2", Normalizer)])
@pytest.mark.parametrize("num_features", [8, 128])
def test_probe_equals_scikit_learn_on_scaled_features(scale, scaler, num_features):
    x, labels = features(examples=80, width=num_features)
    ours = fit_probe(x[:40], labels[:40], {"l2": 0.5, "scale": scale}, tol=1e-8)
    # The penalty is relative to the mean squared length of a row.
    square = np.mean(np.sum(scaler().fit_transform(x[:40]) ** 2, axis=1))
    theirs = make_pipeline(scaler(), LogisticRegression(C=2.0 / square, tol=1e-8, max_iter=5000))
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


def test_search_rescales_by_the_training_part_alone():
    x, labels = features(examples=60, width=20)
    x[:, 0] *= 1000
    x, folds, score = x.astype(np.float32), make_folds(labels, seed=1), accuracy
    found = search_probe(x, labels, (1e-3, 1e-1, 10.0), folds, score)
    assert len({(h["scale"], h["class_weight"]) for h, _ in found}) == 4
    for hparams, value in found[::4]:
        predicted = [
            fit_probe(x[train], labels[train], hparams).predict(x[held_out]) == labels[held_out]
            for train, held_out in folds
        ]
        assert value == np.mean(np.concatenate(predicted))
    assert len({value for _, value in found}) > 1, "the hyper-parameters make no difference"


def accuracy(predictions, labels):
    return float(np.mean(predictions == labels))


def scored(best, low=-99.0, high=99.0):
    """Evaluates penalties by their distance from `best` in decades, cut off at both ends."""
    return lambda tried: {v: -float(np.clip(np.log10(v) - best, low, high) ** 2) for v in tried}


@pytest.mark.parametrize("best", [-5, -1, 3])
def test_a_grid_is_widened_until_the_best_lies_inside(best):
    found = widen(scored(best), (0.01, 0.1, 1.0))
    assert max(found, key=lambda value: found[value]) == pytest.approx(10.0**best)
    assert min(found) < 10.0**best * 0.5 and max(found) > 10.0**best * 2
    assert len(found) == 3 if best == -1 else len(found) > 5


def test_widening_ends():
    for best in (-99, 99):
        found = widen(scored(best), (0.01, 0.1, 1.0))
        assert min(found) > MIN_L2 * 0.9 and max(found) < MAX_L2 * 1.1
    flat = widen(lambda tried: dict.fromkeys(tried, 0.5), (0.01, 0.1, 1.0))
    assert len(flat) == 3


def test_of_equal_penalties_the_middle_comes_first():
    found = {0.1: 0.7, 1.0: 0.9, 0.01: 0.7, 10.0: 0.9, 100.0: 0.9}
    assert middle_of_best_first(found) == [10.0, 100.0, 1.0, 0.01, 0.1]


def test_balanced_weights_answer_the_rare_class():
    x, _ = features(examples=80, width=6)
    labels = (np.arange(80) % 10 == 0).astype(int)
    x[:, 0] += labels
    hparams = {"scale": "standardise", "l2": 0.1}
    recalls = [
        np.mean(fit_probe(x, labels, hparams | {"class_weight": w}).predict(x)[labels == 1] == 1)
        for w in (None, "balanced")
    ]
    assert recalls[1] > recalls[0] + 0.3


def test_bad_hyper_parameters_are_named():
    x, labels = features()
    with pytest.raises(UserError, match="unknown scale 'whiten': one of standardise, l2"):
        fit_probe(x, labels, {"l2": 1.0, "scale": "whiten"})
    with pytest.raises(UserError, match="l2 must be positive"):
        fit_probe(x, labels, {"l2": 0, "scale": "l2"})
