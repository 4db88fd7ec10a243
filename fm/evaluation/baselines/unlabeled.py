"""Classical models that learn from unlabeled examples of the task's own data too."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.special import log_softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors as NeighborSearch
from sklearn.semi_supervised import SelfTrainingClassifier

from fm.evaluation.baselines.classifiers import Axis, Classifier, half_decades
from fm.evaluation.baselines.features import FeatureSet, FeatureStore, Rows, Transform, stack

PCA_DIMS = 64
GRAPH_NEIGHBORS = 10
# Steps that labels spread along the graph; scikit-learn's default is 30.
_SPREADING_STEPS = 64
SELF_TRAINING_EXAMPLES = 300
SELF_TRAINING_THRESHOLD = 0.8
_SELF_TRAINING_ROUNDS = 2


def learn_whitened_pca(rows: Rows) -> Transform:
    """Returns the leading principal components of unlabeled rows, each of variance 1."""
    flat = rows.reshape(len(rows), -1)
    dims = min(PCA_DIMS, *flat.shape)
    pca = PCA(dims, whiten=True, svd_solver="randomized", random_state=0).fit(flat)
    return lambda others: pca.transform(others.reshape(len(others), -1))


class LabelSpreading(Classifier):
    """Spreads labels along a graph of the nearest unlabeled examples (Zhou et al. 2004).

    F = sum over t of (alpha S)^t Y, with S the normalized graph and Y the labels, and a new example
    takes the mean of its neighbors' F. The powers S^t Y serve every alpha; scikit-learn's
    `LabelSpreading` would build the graph and spread anew for each fit.
    """

    name = "label spreading"
    # 1 - alpha.
    axes = (Axis("restart", tuple(float(n) for n in range(-8, 0)), base=2.0, limits=(-8.0, -1.0)),)
    uses_unlabeled = True

    def prepare(self, store: FeatureStore, features: FeatureSet) -> None:
        """Builds the graph."""
        self._graph(store, features)

    def scores(self, fold, configs):
        """Returns log shares of what reaches an example from each class."""
        graph, neighbors = self._graph(fold.store, fold.feature_set)
        asked = neighbors[fold.idx]
        own = np.searchsorted(fold.classes, fold.labels)
        spread = np.zeros((graph.shape[0], len(fold.classes)))
        spread[fold.train_idx, own] = 1.0
        reached = np.empty((_SPREADING_STEPS, len(fold.idx), len(fold.classes)))
        for step in range(_SPREADING_STEPS):
            reached[step] = asked @ spread
            spread = graph @ spread
        scores = []
        for config in configs:
            alpha = 1.0 - config["restart"]
            masses = np.tensordot(alpha ** np.arange(_SPREADING_STEPS), reached, axes=1)
            if config.get("class_weight") == "balanced":
                masses = masses / np.bincount(own)
            shares = masses + 1e-15 * max(masses.max(), 1e-200) / len(fold.classes)
            scores.append(np.log(shares / shares.sum(axis=1, keepdims=True)))
        return scores

    def _graph(self, store: FeatureStore, features: FeatureSet) -> tuple[Any, Any]:
        return store.once(("graph", features), lambda: build_graph(store, features))


def build_graph(store: FeatureStore, features: FeatureSet) -> tuple[sp.csr_array, sp.csr_array]:
    """Returns the graph S [U, U] of unlabeled examples, and each example's neighbors [N, U].

    S = D^-1/2 W D^-1/2, where W joins two examples if one is among the 10 nearest of the other.
    A row of neighbors holds equal weights that sum to 1; nothing is its own neighbor.
    """
    own, corpus = store.fit_to_corpus(features)
    count = min(GRAPH_NEIGHBORS, len(corpus) - 1)
    search = NeighborSearch(n_neighbors=count, algorithm="brute").fit(corpus)
    joined = sp.csr_array(search.kneighbors_graph())
    symmetric = sp.csr_array(joined.maximum(joined.T))
    inverse_root = sp.diags_array(1 / np.sqrt(symmetric.sum(axis=1)))
    graph = sp.csr_array(inverse_root @ symmetric @ inverse_root)
    neighbors = [joined[: store.num_in_corpus]]
    if len(own) > store.num_in_corpus:
        neighbors.append(sp.csr_array(search.kneighbors_graph(own[store.num_in_corpus :])))
    return graph, stack(neighbors) / count


class SelfTraining(Classifier):
    """Logistic regression that labels unlabeled examples it is sure of (Yarowsky 1995).

    Two rounds take the labels of those predicted with probability 0.8 or more; from 300
    unlabeled examples, for its cost.
    """

    name = "self-trained logistic regression"
    axes = (half_decades("C", -1.0),)
    gives_probabilities = True
    uses_unlabeled = True

    def scores(self, fold, configs):
        """Returns log probabilities."""
        own, corpus = fold.store.once(
            ("fitted to corpus", fold.feature_set),
            lambda: fold.store.fit_to_corpus(fold.feature_set),
        )
        count = min(SELF_TRAINING_EXAMPLES, len(corpus))
        unlabeled = corpus[np.linspace(0, len(corpus) - 1, count).astype(int)]
        x = np.concatenate([own[fold.train_idx], unlabeled])
        y = np.concatenate([fold.labels, np.full(len(unlabeled), -1)])
        scores = []
        for config in configs:
            base: Any = LogisticRegression(
                C=config["C"], class_weight=config.get("class_weight"), max_iter=300, tol=1e-2
            )
            model: Any = SelfTrainingClassifier(
                base, threshold=SELF_TRAINING_THRESHOLD, max_iter=_SELF_TRAINING_ROUNDS
            )
            model.fit(x, y)
            decisions = model.decision_function(own[fold.idx])
            if decisions.ndim == 1:
                decisions = np.stack([-decisions / 2, decisions / 2], axis=1)
            scores.append(log_softmax(decisions, axis=1))
        return scores
