"""Families of classical models: choosing, widening, unequal classes, and members of one's own."""

import json

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from fm.errors import UserError
from fm.evaluation.baselines import (
    ClassicalFamily,
    Examples,
    FeatureSet,
    FeatureStore,
    Member,
    families,
    members_of,
    register_member,
)
from fm.evaluation.baselines.classifiers import (
    Axis,
    Fold,
    LinearSvc,
    Logistic,
    NearestNeighbors,
    RbfSvc,
)
from fm.evaluation.metrics import balanced_accuracy
from fm.evaluation.model_selection import make_folds, select_trial

ROWS = FeatureSet("rows", lambda inputs, rate: np.asarray(inputs, float), fit=lambda rows: _same)
CLASSIFIERS = [Logistic(), LinearSvc(), RbfSvc(), NearestNeighbors()]


def _same(rows):
    return rows


def blobs(count, seed=0, dims=5, classes=3, distance=2.0):
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    return random.normal(size=(count, dims)) + distance * np.eye(classes, dims)[labels], labels


def fold(x, labels, asked, features=ROWS):
    idx = np.arange(len(x))
    store = FeatureStore(Examples(np.concatenate([x, asked])))
    return Fold(store, features, idx, labels, len(x) + np.arange(len(asked)))


@pytest.mark.parametrize("dims", [5, 80], ids=["few features", "more than examples"])
@pytest.mark.parametrize("weight", [None, "balanced"])
def test_scores_are_scikit_learns(dims, weight):
    x, labels = blobs(40, dims=dims)
    labels[:12] = 0
    asked, _ = blobs(30, seed=1, dims=dims)
    each = fold(x, labels, asked)
    configs = [{"C": c, "class_weight": weight} for c in (1.0, 0.1)]
    for config, scores in zip(configs, Logistic().scores(each, configs), strict=True):
        theirs = LogisticRegression(**config, tol=1e-8, max_iter=9999).fit(x, labels)
        np.testing.assert_allclose(np.exp(scores), theirs.predict_proba(asked), atol=2e-2)
    for config, scores in zip(configs, LinearSvc().scores(each, configs), strict=True):
        theirs = SVC(**config, kernel="linear").fit(x, labels)
        np.testing.assert_allclose(scores, theirs.decision_function(asked), atol=1e-3)
    configs = [config | {"gamma": 0.3} for config in configs]
    for config, scores in zip(configs, RbfSvc().scores(each, configs), strict=True):
        theirs = SVC(**config).fit(x, labels)
        np.testing.assert_allclose(scores, theirs.decision_function(asked), atol=1e-3)


@pytest.mark.parametrize(
    ("best", "low", "high"), [(1.0, -1.0, 2.5), (1e-3, -3.0, 2.5), (1e5, -1.0, 5.5)]
)
def test_a_grid_widens_until_its_best_lies_inside(best, low, high):
    axis = Axis("C", tuple(n / 2 for n in range(-2, 6)))
    grid = families.search_grid(
        [axis],
        {"member": "m"},
        lambda configs: [-abs(np.log10(config["C"] / best)) for config in configs],
    )
    (config, at_edge), _ = grid.finalists() if best != 1.0 else (*grid.finalists(), None)[:2]
    assert config == {"member": "m", "C": best} and at_edge == []
    assert min(grid.exponents[0]) <= low and max(grid.exponents[0]) >= high
    assert len(grid.exponents[0]) >= 8


def test_a_grid_stops_widening_at_its_limits_and_says_so():
    axis = Axis("C", (0.0, 1.0), limits=(-1.0, 3.0))
    grid = families.search_grid([axis], {}, lambda configs: [each["C"] for each in configs])
    assert grid.exponents == [[0.0, 1.0, 2.0, 3.0]]
    assert grid.finalists()[0] == ({"C": 1000.0}, ["C"])


def test_ties_take_the_middle_of_the_grid():
    grid = families.search_grid(RbfSvc().axes, {}, lambda configs: [0.5] * len(configs))
    assert len(grid.found) == 24, "nothing to widen for"
    (config, at_edge), *others = grid.finalists()
    assert not others and at_edge == []
    assert config["gamma"] == 1.0 and config["C"] in (10**0.5 * 3.162 / 3.162, 10.0, 31.62)


def family(x, labels, members, num_classes=3):
    return ClassicalFamily(members, FeatureStore(Examples(x)), num_classes)


@pytest.mark.parametrize("classifier", CLASSIFIERS, ids=lambda each: each.name)
def test_every_classifier_learns_and_its_probabilities_fit(classifier):
    x, labels = blobs(400, distance=2.5)
    one = family(x, labels, [Member(ROWS, classifier)])
    train = np.arange(60)
    trials = one.search(train, labels[train], 0)
    config = select_trial(trials)["config"]
    assert json.loads(json.dumps(trials)) == trials
    assert all(trial["grid"] >= 8 for trial in trials)
    predicted, probabilities = one.predict(train, labels[train], 0, config, np.arange(60, 400))
    assert probabilities.shape == (340, 3) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    right = predicted == labels[60:]
    assert right.mean() > 0.8
    np.testing.assert_array_equal(probabilities.argmax(axis=1), predicted)
    assert abs(probabilities.max(axis=1).mean() - right.mean()) < 0.12, "confidence is accuracy"


def test_the_better_member_is_chosen_by_these_labels_alone():
    x, labels = blobs(60)
    noise = FeatureSet("noise", lambda inputs, rate: np.asarray(inputs)[:, 3:], fit=lambda r: _same)
    members = [Member(noise, Logistic()), Member(ROWS, Logistic())]
    trials = family(x, labels, members).search(np.arange(40), labels[:40], 0)
    assert select_trial(trials)["config"]["member"] == "rows, logistic regression"
    x[40:] = np.nan
    assert family(x, labels, members).search(np.arange(40), labels[:40], 0) == trials


def test_a_small_class_is_not_given_up():
    random = np.random.default_rng(0)
    labels = (random.random(600) < 0.14).astype(int)
    x = random.normal(size=(600, 6)) + 1.6 * labels[:, None] * (np.arange(6) < 3)
    store = FeatureStore(Examples(x.reshape(600, 1, 6, 1)))
    pixels = FeatureSet("pixels", lambda inputs, rate: np.asarray(inputs).reshape(len(inputs), -1))
    members = [Member(pixels, classifier) for classifier in (Logistic(), LinearSvc())]
    rare, common = np.flatnonzero(labels), np.flatnonzero(labels == 0)
    train = np.concatenate([rare[:4], common[:16]])
    test = np.concatenate([rare[4:], common[16:]])
    whole = ClassicalFamily(members, store, 2)
    trials = whole.search(train, labels[train], 0)
    assert {trial["config"].get("class_weight") for trial in trials} == {None, "balanced"}
    predicted, _ = whole.predict(train, labels[train], 0, select_trial(trials)["config"], test)
    assert balanced_accuracy(predicted, labels[test]) > 0.75


def test_classes_without_a_label_have_no_probability():
    x, labels = blobs(40, classes=2)
    one = family(x, labels, [Member(ROWS, Logistic())], num_classes=4)
    _, probabilities = one.predict(
        np.arange(20), 2 * labels[:20] + 1, 0, {"member": one.members[0].name, "C": 1.0}, [30, 31]
    )
    assert not probabilities[:, [0, 2]].any()


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(families, "_MEMBERS", dict(families._MEMBERS))


@pytest.mark.usefixtures("registry")
def test_a_member_is_added_in_one_place():
    own = Member(ROWS, NearestNeighbors())
    before = [member.name for member in members_of("image")]
    register_member("image", own)
    register_member("image", own)
    assert [member.name for member in members_of("image")] == [*before, own.name]
    assert members_of("image")[-1] is own
    with pytest.raises(UserError, match="unknown modality 'smell'"):
        members_of("smell")


@pytest.mark.parametrize("modality", ["text", "image", "audio", "video"])
def test_without_unlabeled_data_no_member_needs_any(modality):
    with_unlabeled = [member.name for member in members_of(modality)]
    without = [member.name for member in members_of(modality, unlabeled=False)]
    assert set(without) < set(with_unlabeled) and len(set(with_unlabeled)) == len(with_unlabeled)
    kinds = " ".join(set(with_unlabeled) - set(without))
    assert "label spreading" in kinds and "self-trained" in kinds
    assert any("SVC" in name for name in without) and any("logistic" in name for name in without)


@pytest.mark.slow
def test_digits_are_told_apart_with_and_without_unlabeled_ones():
    digits = load_digits()
    images = (digits.images[:500, ..., None] * 255 / 16).astype(np.uint8)
    labels, train = digits.target[:500], np.arange(60)
    for unlabeled, names in (
        (False, ("pixels, RBF SVC", "pixels, nearest neighbors")),
        (True, ("pixels, label spreading", "patch codes, logistic regression")),
    ):
        members = [each for each in members_of("image") if each.name in names]
        extra = Examples(images[300:]) if unlabeled else None
        store = FeatureStore(Examples(images[:300]), extra, 60 if unlabeled else 0)
        whole = ClassicalFamily(members, store, 10)
        whole.prepare()
        trials = whole.search(train, labels[:60], 0)
        assert {trial["config"].get("unlabeled") for trial in trials} == {
            260 if unlabeled else None
        }
        config = select_trial(trials)["config"]
        predicted, _ = whole.predict(train, labels[:60], 0, config, np.arange(60, 300))
        assert np.mean(predicted == labels[60:300]) > (0.9 if unlabeled else 0.85)


def test_the_folds_of_the_search_are_those_of_all_arms(monkeypatch):
    x, labels = blobs(40)
    seen = []
    monkeypatch.setattr(
        families, "make_folds", lambda own, seed: seen.append(seed) or make_folds(own, seed=seed)
    )
    family(x, labels, [Member(ROWS, Logistic())]).search(np.arange(40), labels, 3)
    assert seen[0] == 3 and len(set(seen)) == 4
