"""Draws an arm's labeled examples and selects hyper-parameters on them, never on the test set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from fm.errors import UserError

T = TypeVar("T")
FOLDS = 4
CROSS_VALIDATE_UNDER = 100


def draw_train_idx(labels_N: np.ndarray, num_labels: int, seed: int) -> np.ndarray:
    """Returns the indices of `num_labels` examples drawn from a training pool, stratified.

    Stratified: one example of every class first, then a second of every class that has one,
    then in proportion to the pool. Nested: for one seed a smaller number is the beginning of a
    larger one, so that a label curve grows by adding labels.

    Args:
      labels_N: [N] class of every example of the pool; below 0 if unlabeled, and never drawn.
      num_labels: how many examples to draw.
      seed: the run's seed; another seed draws other examples.

    Returns:
      [num_labels] distinct indices into the pool.

    Raises:
      UserError: more labels than the pool has, or fewer than there are classes.
    """
    labeled_idx = np.flatnonzero(np.asarray(labels_N) >= 0)
    labels_N = np.asarray(labels_N)[labeled_idx]
    classes, class_N, size_K = np.unique(labels_N, return_inverse=True, return_counts=True)
    if num_labels > labels_N.size:
        raise UserError(f"a budget of {num_labels} labels exceeds the pool of {labels_N.size}")
    if num_labels < classes.size:
        raise UserError(
            f"a budget of {num_labels} labels cannot cover {classes.size} classes: at least one "
            "each"
        )
    random = np.random.default_rng(seed)
    shuffled_N = random.permutation(labels_N.size)
    class_of_shuffled_N = class_N[shuffled_N]
    rank_N = _rank_within_class(class_of_shuffled_N)
    tie_K = random.permutation(classes.size)
    share_N = (rank_N + 0.5) / size_K[class_of_shuffled_N]
    # lexsort sorts by its last key first: the first two of each class, then equal shares.
    order_N = np.lexsort((tie_K[class_of_shuffled_N], share_N, np.minimum(rank_N, 2)))
    return labeled_idx[shuffled_N[order_N][:num_labels]]


def draw_label_set_idx(hot_NK: np.ndarray, num_labels: int, seed: int) -> np.ndarray:
    """Returns the indices of examples drawn from a pool whose labels are sets of classes.

    Iterative stratification (Sechidis et al. 2011), nested as in `draw_train_idx`: the class that
    is shortest of its share comes next, and of its examples a random one. Classes without a drawn
    example come first, the rarest before all others, then those with one. Examples without any
    class are a class of their own.

    Args:
      hot_NK: [N, K] bool, the classes of every example of the pool.
      num_labels: how many examples to draw.
      seed: the run's seed.

    Returns:
      [num_labels] distinct indices into the pool. Every class that the pool has is drawn if
      `num_labels` is at least the number of such classes.

    Raises:
      UserError: more labels than the pool has.
    """
    if num_labels > len(hot_NK):
        raise UserError(f"a budget of {num_labels} labels exceeds the pool of {len(hot_NK)}")
    random = np.random.default_rng(seed)
    hot_NK = np.column_stack([hot_NK, ~hot_NK.any(axis=1)])
    hot_NK = hot_NK[:, hot_NK.any(axis=0)]
    shuffled = random.permutation(len(hot_NK))
    tie_K = random.permutation(hot_NK.shape[1])
    size_K, drawn_K = hot_NK.sum(axis=0), np.zeros(hot_NK.shape[1], int)
    waiting = [shuffled[hot_NK[shuffled, k]].tolist()[::-1] for k in range(hot_NK.shape[1])]
    is_drawn, order = np.zeros(len(hot_NK), bool), []
    while len(order) < num_labels:
        for own in waiting:
            while own and is_drawn[own[-1]]:
                own.pop()
        k = min(
            (k for k, own in enumerate(waiting) if own),
            key=lambda k: (
                *(min(drawn_K[k], 2), size_K[k] if drawn_K[k] < 2 else 0),
                *((drawn_K[k] + 0.5) / size_K[k], tie_K[k]),
            ),
        )
        n = waiting[k].pop()
        is_drawn[n] = True
        drawn_K += hot_NK[n]
        order.append(n)
    return np.array(order, int)


def quantile_strata(values: np.ndarray, count: int) -> np.ndarray:
    """Returns the quantile bin of each number, int [N]; -1 where it is NaN.

    Args:
      values: [N] numbers.
      count: bins of equal numbers of examples; equal numbers share one, so that there may be fewer.
    """
    values = np.asarray(values, float)
    known = ~np.isnan(values)
    strata = np.full(len(values), -1)
    if known.any():
        edges = np.quantile(values[known], np.arange(1, count) / count)
        strata[known] = np.unique(
            np.searchsorted(np.unique(edges), values[known], side="left"), return_inverse=True
        )[1]
    return strata


def make_folds(labels: np.ndarray, *, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Splits labeled examples into folds: (train, validation) pairs of index arrays.

    Under 100 labels stratified 4-fold cross-validation, from 100 on one stratified holdout of a
    quarter. Shuffled examples are dealt round the folds class by class, so a class's counts
    differ by at most one between folds however rare it is. A class's only example always
    trains: held out, no model could know its class.

    Raises:
      UserError: no class has two examples, so nothing can be held out.
    """
    labels = np.asarray(labels)
    _, class_N, size_K = np.unique(labels, return_inverse=True, return_counts=True)
    random = np.random.default_rng(seed)
    shuffled = random.permutation(labels.size)
    shuffled = shuffled[size_K[class_N[shuffled]] > 1]
    if not shuffled.size:
        raise UserError(f"none of the {labels.size} labels has a second example to validate on")
    class_order_K = random.permutation(size_K.size)
    dealt = shuffled[np.argsort(class_order_K[class_N[shuffled]], kind="stable")]
    parts = [np.sort(dealt[k::FOLDS]) for k in range(FOLDS)]
    if labels.size >= CROSS_VALIDATE_UNDER:
        parts = parts[:1]
    everything = np.arange(labels.size)
    return [(np.setdiff1d(everything, part), part) for part in parts if part.size]


def from_the_middle(grid: Sequence[T]) -> list[T]:
    """Returns a grid of ascending values from its middle outwards, of two the larger first.

    `select_trial` takes the first of equal trials: no end of the range by default.
    """
    middle = (len(grid) - 1) / 2
    order = sorted(range(len(grid)), key=lambda n: (abs(n - middle), -n))
    return [grid[n] for n in order]


def select_trial(trials: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the trial with the highest `validation`, the first if tied; NaN never wins.

    A single trial need not have a figure. Where the best one has a `standard_error`, methods (the
    entry "method" of their configs) come in order of preference, and the first method with a trial
    within one standard error of the best gives its own best: the method with the most settings
    tried has the luckiest one (Breiman et al. 1984, sec. 3.4.3).

    Raises:
      ValueError: no trial has a validation figure.
    """
    if len(trials) == 1:
        return trials[0]
    finished = [trial for trial in trials if not np.isnan(trial["validation"])]
    if not finished:
        raise ValueError("no trial has a validation figure to choose by")
    best = max(finished, key=lambda trial: trial["validation"])
    if "standard_error" not in best:
        return best
    enough = best["validation"] - best["standard_error"]
    method = next(trial["config"]["method"] for trial in finished if trial["validation"] >= enough)
    own = [trial for trial in finished if trial["config"]["method"] == method]
    return max(own, key=lambda trial: trial["validation"])


def _rank_within_class(class_N: np.ndarray) -> np.ndarray:
    """[N] how many earlier examples share each example's class."""
    rank_N = np.empty(class_N.size, int)
    for k in np.unique(class_N):
        members = np.flatnonzero(class_N == k)
        rank_N[members] = np.arange(members.size)
    return rank_N
