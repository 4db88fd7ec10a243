"""Feature sets of classical models: what is read of an example alone, learned, and fitted.

Three steps, by what each may look at: `extract` reads one example at a time; `learn` looks at
unlabeled examples of the task's own data; `fit` looks at the labeled examples of one fit alone.
The first two are done once per task and shared by every fit.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from sklearn.preprocessing import StandardScaler

Inputs = Sequence[str] | np.ndarray
Rows = Any  # np.ndarray [N, ...] or sp.csr_array [N, D]
Transform = Callable[[Rows], Rows]
# Of texts or of arrays, and the sample rate of sounds.
Extract = Callable[[Any, float | None], Rows]
Learn = Callable[[Rows], Transform]
# Rows of the unlabeled examples are transformed in parts of this many.
_CHUNK = 2048
# Keys of what a store computes of the unlabeled examples alone.
_OF_CORPUS = ("learned", "corpus")


def scale_to_unit_variance(rows: Rows) -> Transform:
    """Returns a function that divides rows by one number: total variance 1 on `rows`.

    One range of penalties and kernel widths then fits every feature set.
    """
    square = rows.multiply(rows).sum() if sp.issparse(rows) else np.einsum("ij,ij->", rows, rows)
    mean = np.asarray(rows.mean(axis=0))
    variance = float(square) / rows.shape[0] - float(np.sum(mean * mean))
    scale = 1.0 / np.sqrt(variance) if variance > 1e-12 else 1.0
    return lambda others: others * scale


def standardize(rows: Rows) -> Transform:
    """Returns a function that standardizes every column as on `rows`, then divides by one number.

    The number makes the total variance 1, see `scale_to_unit_variance`.
    """
    scaler = StandardScaler().fit(rows)
    scale = scale_to_unit_variance(scaler.transform(rows))
    return lambda others: scale(scaler.transform(others))


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Features of an example that a classical model sees.

    Attributes:
      name: in hyper-parameters and results.
      extract: (inputs, sample rate) to rows, each of which depends on one input alone.
      learn: rows of unlabeled examples to a function from rows to rows; None if nothing is learned
        from unlabeled examples.
      fit: rows of the labeled examples of one fit to a function from rows to features.
      parts: feature sets that this one puts side by side; the rest is then unused.
      is_sparse: whether its rows are sparse.
    """

    name: str
    extract: Extract | None = None
    learn: Learn | None = None
    fit: Learn = scale_to_unit_variance
    parts: tuple[FeatureSet, ...] = ()
    is_sparse: bool = False

    @property
    def needs_unlabeled(self) -> bool:
        """Returns whether something is learned from unlabeled examples."""
        return self.learn is not None or any(part.needs_unlabeled for part in self.parts)


def beside(*parts: FeatureSet) -> FeatureSet:
    """Returns the feature set that puts others side by side, with equal weight."""
    name = " + ".join(part.name for part in parts)
    return FeatureSet(name, parts=parts, is_sparse=any(part.is_sparse for part in parts))


class Examples:
    """Inputs of a task with the rows of every feature set read of them, each computed once.

    Attributes:
      inputs: texts, or arrays [N, ...].
      sample_rate: of sounds, in Hz.
    """

    def __init__(self, inputs: Inputs, sample_rate: float | None = None):
        self.inputs = inputs
        self.sample_rate = sample_rate
        self._rows: dict[Extract, Rows] = {}
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, extract: Extract) -> Rows:
        """Returns the rows that `extract` reads of the inputs."""
        with self._lock:
            if extract not in self._rows:
                self._rows[extract] = extract(self.inputs, self.sample_rate)
            return self._rows[extract]


class FeatureStore:
    """Rows of the labeled and test examples of a task, and of its unlabeled ones.

    Attributes:
      examples: labeled and test examples.
      unlabeled: further unlabeled examples, or None.
      num_in_corpus: how many of `examples`, from the first, belong to the unlabeled data too.
    """

    def __init__(
        self, examples: Examples, unlabeled: Examples | None = None, num_in_corpus: int = 0
    ):
        self.examples = examples
        self.unlabeled = unlabeled
        self.num_in_corpus = num_in_corpus
        self._cache: dict[Any, Any] = {}
        self._lock = threading.RLock()
        self._parent: FeatureStore | None = None

    def with_examples(self, examples: Examples) -> FeatureStore:
        """Returns a store of other examples that shares what was learned without labels.

        The first `num_in_corpus` examples must be the same.
        """
        store = FeatureStore(examples, self.unlabeled, self.num_in_corpus)
        store._parent = self
        return store

    @property
    def num_unlabeled(self) -> int:
        """Returns the number of unlabeled examples that features are learned from."""
        return self.num_in_corpus + len(self.unlabeled or ())

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """Returns `compute()`, computed once per key."""
        with self._lock:
            if key not in self._cache:
                if self._parent is not None and key[0] in _OF_CORPUS:
                    self._cache[key] = self._parent.once(key, compute)
                else:
                    self._cache[key] = compute()
            return self._cache[key]

    def prepare(self, feature_sets: Sequence[FeatureSet]) -> None:
        """Computes what fits share: rows of all examples, and what is learned without labels."""
        for features in feature_sets:
            for part in features.parts or (features,):
                self.rows(part)

    def fit(self, features: FeatureSet, train_idx: np.ndarray) -> Callable[[np.ndarray], Rows]:
        """Fits features to examples `train_idx`; returns the function from indices to features."""
        if features.parts:
            fits = [self.fit(part, train_idx) for part in features.parts]
            return lambda idx: _beside([fit(idx) for fit in fits])
        key = "used columns", features.extract, features.learn
        # Columns that new examples alone use have no weight, and their number would change sums.
        known = None if self._parent is None else len(self._parent.examples)
        rows = self.once(key, lambda: _used_columns(self.rows(features), known))
        transform = features.fit(rows[train_idx])
        return lambda idx: transform(rows[idx])

    def fit_to_corpus(self, features: FeatureSet) -> tuple[Rows, Rows]:
        """Returns features of (labeled and test, unlabeled) examples, fitted to the latter."""
        if features.parts:
            both = [self.fit_to_corpus(part) for part in features.parts]
            own, corpus = zip(*both, strict=True)
            return _beside(own), _beside(corpus)
        rows = self.unlabeled_rows(features)
        transform = features.fit(rows)
        return transform(self.rows(features)), transform(rows)

    def rows(self, features: FeatureSet) -> Rows:
        """Returns rows of the labeled and test examples, before `FeatureSet.fit`."""
        key = "rows", features.extract, features.learn
        return self.once(
            key, lambda: self._learned(features)(self.examples.rows(_extract_of(features)))
        )

    def unlabeled_rows(self, features: FeatureSet) -> Rows:
        """Returns rows of the unlabeled examples, those of the labeled pool first."""
        key = "corpus", features.extract, features.learn
        return self.once(key, lambda: self._corpus(features))

    def _corpus(self, features: FeatureSet) -> Rows:
        own = self.rows(features)[: self.num_in_corpus]
        if self.unlabeled is None:
            return own
        return stack([own, self._learned(features)(self.unlabeled.rows(_extract_of(features)))])

    def _learned(self, features: FeatureSet) -> Transform:
        learn = features.learn
        if learn is None:
            return lambda rows: rows
        raw = dataclasses.replace(features, learn=None)
        transform = self.once(
            ("learned", features.extract, learn), lambda: learn(self.unlabeled_rows(raw))
        )
        return functools.partial(_in_chunks, transform)


def _used_columns(rows: Rows, known: int | None = None) -> Rows:
    """Returns sparse rows without the columns that none uses: every fit goes through them all.

    With `known` those are left out that none of so many first rows uses.
    """
    if not sp.issparse(rows):
        return rows
    if known is None:
        return sp.csr_array(rows[:, np.unique(rows.indices)])
    used = sp.csr_array(rows[:, np.unique(rows[:known].indices)])
    used.sort_indices()  # the order of a row's entries, and so of its sums, depends on the others
    return used


def _beside(parts: Sequence[Rows]) -> Rows:
    weight = len(parts) ** -0.5
    if sp.issparse(parts[0]):
        return sp.csr_array(sp.hstack(parts, format="csr")) * weight
    return np.concatenate(parts, axis=1) * weight


def stack(parts: Sequence[Rows]) -> Rows:
    """Returns rows of several parts, one below the other."""
    if sp.issparse(parts[0]):
        return sp.csr_array(sp.vstack(parts, format="csr"))
    return np.concatenate(parts)


def _in_chunks(transform: Transform, rows: Rows) -> Rows:
    starts = range(0, rows.shape[0], _CHUNK)
    return stack([transform(rows[start : start + _CHUNK]) for start in starts])


def _extract_of(features: FeatureSet) -> Extract:
    """Returns how the rows of a feature set are read, which one made of parts does not say."""
    assert features.extract is not None, "features made of parts are read part by part"
    return features.extract
