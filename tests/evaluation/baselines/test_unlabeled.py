"""Label spreading and self-training: against scikit-learn, and that unlabeled examples help."""

import numpy as np
import pytest
from sklearn.datasets import make_moons
from sklearn.semi_supervised import LabelSpreading as TheirSpreading

from fm.evaluation.baselines import Examples, FeatureSet, FeatureStore
from fm.evaluation.baselines.classifiers import Fold, Logistic
from fm.evaluation.baselines.unlabeled import (
    LabelSpreading,
    SelfTraining,
    build_graph,
    learn_whitened_pca,
)

ROWS = FeatureSet("rows", lambda inputs, rate: np.asarray(inputs, float))


def moons():
    x, labels = make_moons(500, noise=0.07, random_state=0)
    return x, labels, FeatureStore(Examples(x[:200]), Examples(x[200:]), 100)


def test_labels_spread_as_in_scikit_learn():
    _, labels, store = moons()
    train, asked = np.arange(8), np.arange(8, 100)
    graph, neighbors = build_graph(store, ROWS)
    assert graph.shape == (400, 400) and neighbors.shape == (200, 400)
    np.testing.assert_allclose(neighbors.sum(axis=1), 1)
    assert not neighbors[:100].diagonal().any()
    fold = Fold(store, ROWS, train, labels[:8], asked)
    (scores,) = LabelSpreading().scores(fold, [{"restart": 0.2}])
    # Theirs normalizes the same graph itself.
    weights = (graph > 0).toarray().astype(float)
    theirs = TheirSpreading(kernel=lambda a, b: weights, alpha=0.8, max_iter=9999, tol=1e-9)
    theirs.fit(np.arange(400)[:, None], np.where(np.arange(400) < 8, labels[:400], -1))
    alpha = 0.8
    spread = np.zeros((400, 2))
    spread[train, labels[:8]] = 1
    found = np.linalg.solve(np.eye(400) - alpha * graph.toarray(), spread)
    shares = found / found.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(theirs.label_distributions_, shares, atol=1e-6)
    expected = neighbors[asked] @ found
    expected = expected / expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(scores), expected, atol=1e-3)


@pytest.mark.parametrize(
    "classifier", [LabelSpreading(), SelfTraining()], ids=lambda each: each.name
)
def test_unlabeled_examples_help_or_do_no_harm(classifier):
    _, labels, store = moons()
    train, test = np.arange(6), np.arange(100, 200)
    fold = Fold(store, ROWS, train, labels[:6], test)
    config = {"C": 100.0, "restart": 2.0**-5}
    (scores,) = classifier.scores(fold, [config])
    (linear,) = Logistic().scores(fold, [config])
    own, plain = (np.mean(each.argmax(axis=1) == labels[test]) for each in (scores, linear))
    assert own > plain + 0.05 if isinstance(classifier, LabelSpreading) else own > plain - 0.05


def test_a_small_class_reaches_as_far_once_weighed():
    random = np.random.default_rng(0)
    labels = np.arange(500) % 2
    x = random.normal(size=(500, 2)) + 1.5 * labels[:, None]
    store = FeatureStore(Examples(x[:200]), Examples(x[200:]), 100)
    zero, one = (np.flatnonzero(labels[:100] == each) for each in (0, 1))
    train = np.concatenate([zero[:30], one[:3]])
    fold = Fold(store, ROWS, train, labels[train], np.arange(100, 200))
    plain, weighed = LabelSpreading().scores(
        fold, [{"restart": 0.01}, {"restart": 0.01, "class_weight": "balanced"}]
    )
    recall = [np.mean(each.argmax(1)[labels[100:200] == 1]) for each in (plain, weighed)]
    assert recall[1] > max(recall[0] + 0.1, 0.7)


def test_components_are_white_on_unlabeled_rows():
    rows = np.random.default_rng(0).normal(size=(300, 5)) * [1, 2, 3, 4, 5]
    white = learn_whitened_pca(rows)(rows)
    np.testing.assert_allclose(np.cov(white.T), np.eye(5), atol=1e-6)
