"""Classical models of numbers, of sets of classes, and of pairs of texts."""

import functools
import json

import numpy as np
import pytest
import sklearn.linear_model
from scipy.stats import spearmanr
from sklearn.neighbors import KNeighborsRegressor
from sklearn.svm import SVR

from fm.evaluation.baselines import (
    TEXT_PAIR,
    Examples,
    FeatureSet,
    FeatureStore,
    Member,
    TextPair,
    class_family,
    label_set_family,
    value_family,
)
from fm.evaluation.baselines.classifiers import Fold, LinearSvc, Logistic, NearestNeighbors, RbfSvc
from fm.evaluation.baselines.target_families import (
    LabelSetFamily,
    LinearSvr,
    NeighborMean,
    RbfSvr,
    Ridge,
    ValueFamily,
    one_vs_rest,
)
from fm.evaluation.baselines.text_pairs import similarities
from fm.evaluation.label_sets import micro_f1
from fm.evaluation.model_selection import select_trial


def _same(rows):
    return rows


ROWS = FeatureSet("rows", lambda inputs, rate: np.asarray(inputs, float), fit=lambda rows: _same)
REGRESSORS = [Ridge(), LinearSvr(), RbfSvr(), NeighborMean()]


def slope(count=120, dims=5, seed=0):
    draws = np.random.default_rng(seed)
    x = draws.normal(size=(count, dims))
    return x, 1000 + 100 * (x[:, 0] - x[:, 1]) + 10 * draws.normal(size=count)


@pytest.mark.parametrize("dims", [5, 80], ids=["few features", "more than examples"])
def test_predicted_numbers_are_scikit_learns(dims):
    x, y = slope(60, dims)
    fold = Fold(FeatureStore(Examples(x)), ROWS, np.arange(40), y[:40], np.arange(40, 60))
    mean, deviation = y[:40].mean(), y[:40].std()
    z = (y[:40] - mean) / deviation
    for config, found in zip(
        [{"C": 0.3}, {"C": 10.0}], Ridge().scores(fold, [{"C": 0.3}, {"C": 10.0}]), strict=True
    ):
        theirs = sklearn.linear_model.Ridge(alpha=1 / config["C"]).fit(x[:40], z)
        np.testing.assert_allclose(found, mean + deviation * theirs.predict(x[40:]), rtol=1e-8)
    (found,) = LinearSvr().scores(fold, [{"C": 1.0}])
    theirs = SVR(kernel="linear", C=1.0, epsilon=0.1).fit(x[:40], z).predict(x[40:])
    np.testing.assert_allclose(found, mean + deviation * theirs, rtol=1e-6)
    (found,) = RbfSvr().scores(fold, [{"C": 1.0, "gamma": 0.1}])
    theirs = SVR(C=1.0, gamma=0.1, epsilon=0.1).fit(x[:40], z).predict(x[40:])
    np.testing.assert_allclose(found, mean + deviation * theirs, rtol=1e-6)
    (found,) = NeighborMean().scores(fold, [{"k": 3.0}])
    theirs = KNeighborsRegressor(3, weights="distance").fit(x[:40], y[:40]).predict(x[40:])
    np.testing.assert_allclose(found, theirs, rtol=1e-6)


@pytest.mark.parametrize("regressor", REGRESSORS, ids=lambda each: each.name)
def test_every_regressor_learns_from_these_labels_alone(regressor):
    x, y = slope()
    family = ValueFamily([Member(ROWS, regressor)], FeatureStore(Examples(x)), 1, y)
    train, strata = np.arange(60), np.arange(60) % 4
    trials = family.search(train, strata, 0)
    assert json.loads(json.dumps(trials)) == trials
    assert 0.5 < max(trial["validation"] for trial in trials) < 1
    config = select_trial(trials)["config"]
    predicted, probabilities = family.predict(train, strata, 0, config, np.arange(60, 120))
    assert probabilities is None and spearmanr(predicted, y[60:]).statistic > 0.8
    y[60:] = np.nan
    assert family.search(train, strata, 0) == trials


@pytest.mark.parametrize("regressor", REGRESSORS, ids=lambda each: each.name)
def test_equal_numbers_are_predicted_as_they_are(regressor):
    x, _ = slope(30)
    family = ValueFamily([Member(ROWS, regressor)], FeatureStore(Examples(x)), 1, np.full(30, 7.0))
    trials = family.search(np.arange(20), np.arange(20) % 4, 0)
    config = select_trial(trials)["config"]
    predicted, _ = family.predict(np.arange(20), np.arange(20) % 4, 0, config, np.arange(20, 30))
    np.testing.assert_allclose(predicted, 7.0)


def painted(count=160, seed=0):
    draws = np.random.default_rng(seed)
    hot = draws.random((count, 4)) < [0.5, 0.3, 0.15, 0.0]
    hot[0, 3] = True
    return draws.normal(size=(count, 6)) + 3.0 * (hot @ np.eye(4, 6)), hot


@pytest.mark.parametrize(
    "classifier",
    [Logistic(), LinearSvc(), RbfSvc(), NearestNeighbors()],
    ids=lambda each: each.name,
)
def test_every_classifier_learns_sets(classifier):
    x, hot = painted()
    family = LabelSetFamily([Member(ROWS, classifier)], FeatureStore(Examples(x)), 4, hot)
    train, strata = np.arange(80), hot[:80].argmax(axis=1)
    trials = family.search(train, strata, 0)
    assert json.loads(json.dumps(trials)) == trials
    config = select_trial(trials)["config"]
    sets, probabilities = family.predict(train, strata, 0, config, np.arange(80, 160))
    assert sets.dtype == bool and probabilities.dtype == np.float32
    np.testing.assert_array_equal(sets, probabilities >= np.float32(config["threshold"]))
    assert micro_f1(sets, hot[80:]) > 0.65
    assert not sets[:, 3].any()


def test_a_class_of_all_or_none_has_its_share():
    x, hot = painted()
    hot = hot.copy()
    hot[:, 1], hot[:, 2] = True, False
    fold = Fold(FeatureStore(Examples(x)), ROWS, np.arange(19), hot[:19], np.arange(19, 25))
    for found in one_vs_rest(Logistic(), fold, [{"C": 1.0}, {"C": 10.0}]):
        np.testing.assert_allclose(found[:, 1], 19.5 / 20)
        np.testing.assert_allclose(found[:, 2], 0.5 / 20)
    alone = one_vs_rest(Logistic(), fold, [{"C": 1.0}])[0][:, 0]
    single = Fold(
        FeatureStore(Examples(x)), ROWS, np.arange(19), hot[:19, 0] * 1, np.arange(19, 25)
    )
    theirs = np.exp(Logistic().scores(single, [{"C": 1.0}])[0][:, 1])
    np.testing.assert_allclose(alone, theirs, rtol=1e-12)


def test_families_have_the_feature_sets_of_the_modality():
    store = FeatureStore(Examples(["a b", "c d"]))
    names = [member.name for member in value_family("text", store, 0, truths=np.zeros(2)).members]
    assert {"words, ridge", "characters, linear SVR"} <= set(names)
    assert not any("LSA" in name or "RBF" in name for name in names)
    unlabeled = FeatureStore(Examples(["a b", "c d"]), Examples(["e f"]), 2)
    more = [each.name for each in value_family("text", unlabeled, 0, truths=np.zeros(2)).members]
    assert "LSA-64 of words, RBF SVR" in more and len(set(more)) == len(more)
    network = FeatureSet("network")
    beside = value_family("image", unlabeled, 0, network, truths=np.zeros(2)).members
    assert all(member.name.startswith("network + ") for member in beside)
    hot = np.zeros((2, 3), bool)
    sets = [each.name for each in label_set_family("text", unlabeled, 3, truths=hot).members]
    assert "words, logistic regression" in sets and not any("self-trained" in n for n in sets)


def pairs(count, seed):
    draws = np.random.default_rng(seed)
    words = np.array([f"w{n}" for n in range(60)])
    same, found = np.arange(count) % 2, []
    for each in same:
        first = draws.choice(words, 8, replace=False)
        second = draws.permutation(first) if each else draws.choice(words, 8)
        found.append(TextPair(" ".join(first), " ".join(second)))
    return found, same


@pytest.mark.parametrize("kind", ["class", "value"])
@pytest.mark.parametrize("with_unlabeled", [False, True], ids=["labeled", "unlabeled"])
def test_pairs_are_told_apart_by_what_they_share(kind, with_unlabeled):
    inputs, same = pairs(120, 0)
    others = (Examples(pairs(40, 1)[0]), 60) if with_unlabeled else ()
    store = FeatureStore(Examples(inputs), *others)
    build = class_family if kind == "class" else functools.partial(value_family, truths=same * 1.0)
    family = build(TEXT_PAIR, store, 2)
    assert any("LSA" in member.name for member in family.members) == with_unlabeled
    family.prepare()
    trials = family.search(np.arange(60), same[:60], 0)
    predicted, _ = family.predict(
        np.arange(60), same[:60], 0, select_trial(trials)["config"], np.arange(60, 120)
    )
    assert np.mean((predicted > 0.5) == same[60:]) > 0.95
    by_member = {trial["config"]["member"]: trial["validation"] for trial in trials}
    words = [name for name in by_member if name.startswith("words of both")]
    assert words and min(by_member[name] for name in words) > 0.3


def test_similarities_of_equal_and_of_empty_texts():
    equal, empty, half = similarities(
        [TextPair("one two", "two one"), TextPair("", ""), TextPair("one two", "one three")]
    )
    np.testing.assert_allclose(equal[2:], [1 / 2, 2 / 3, 2 / 3, 0, np.log(16)])
    assert np.isfinite(empty).all() and 0 < half[0] < equal[0]
