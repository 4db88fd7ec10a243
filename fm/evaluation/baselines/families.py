"""Families of classical models: per modality, the best member is chosen on validation folds.

A member is a feature set and a classifier with a grid of penalties; `register_member` adds one.
The grid is widened step by step until its best value lies inside, up to the limits of its axes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from fm.data.media import get_modality
from fm.evaluation.baselines import text, text_pairs
from fm.evaluation.baselines.classifiers import (
    Axis,
    Classifier,
    Config,
    Fold,
    LinearSvc,
    Logistic,
    NearestNeighbors,
    RbfSvc,
)
from fm.evaluation.baselines.features import (
    FeatureSet,
    FeatureStore,
    beside,
    scale_to_unit_variance,
)
from fm.evaluation.baselines.features import standardize as standardize_rows
from fm.evaluation.baselines.unlabeled import (
    LabelSpreading,
    SelfTraining,
    learn_whitened_pca,
)
from fm.evaluation.metrics import balanced_accuracy
from fm.evaluation.model_selection import make_folds

# Where one class has this many times the labels of another, classes are weighed too.
UNEQUAL_CLASSES = 2.0
# Further draws of the folds, on which the members are compared.
FRESH_DRAWS = 3
_FRESH_DRAW_SEED = 10_000
# A grid's best end is passed by so many values at a time.
_WIDEN_BY = 2
_MAX_LOG10_TEMPERATURE = 3.0


# Of every fold of a draw, what a fit sees and the truths of the examples held out.
Views = list[tuple[Fold, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Member:
    """A classical model: a feature set, and a classifier with the grid of its hyper-parameters."""

    features: FeatureSet
    classifier: Classifier

    @property
    def name(self) -> str:
        """Returns the name in hyper-parameters, such as "words, logistic regression"."""
        return f"{self.features.name}, {self.classifier.name}"

    @property
    def needs_unlabeled(self) -> bool:
        """Returns whether it learns from unlabeled examples too."""
        return self.features.needs_unlabeled or self.classifier.uses_unlabeled


def _text_members() -> list[Member]:
    feature_sets = (*text.LSA, text.WORDS_AND_CHARACTERS, text.CHARACTERS, text.WORDS)
    members = [Member(each, kind) for each in feature_sets for kind in (Logistic(), LinearSvc())]
    smallest = text.LSA[0]
    return [*members, Member(smallest, SelfTraining()), Member(smallest, LabelSpreading())]


def _text_pair_members() -> list[Member]:
    compared = (text_pairs.PAIR_LSA_AND_SIMILARITIES, text_pairs.PAIR_SIMILARITIES)
    members = [Member(each, kind) for each in compared for kind in (Logistic(), RbfSvc())]
    words = [Member(text_pairs.PAIR_WORDS, kind) for kind in (Logistic(), LinearSvc())]
    return [*members, *words, Member(text_pairs.PAIR_LSA_AND_SIMILARITIES, LabelSpreading())]


# Modality of pairs of texts, which the network reads joined; see `text_pairs.TextPair`.
TEXT_PAIR = "text_pair"
# By modality. A modality without an entry has `default_members`.
_MEMBERS: dict[str, list[Member]] = {"text": _text_members(), TEXT_PAIR: _text_pair_members()}


# Feature sets of texts that stand beside those of a network.
_BESIDE: dict[str, list[FeatureSet]] = {
    "text": [each for each in text.LSA if each.parts],
    TEXT_PAIR: [text_pairs.PAIR_LSA_AND_SIMILARITIES],
}


def register_member(modality: str, *members: Member) -> None:
    """Adds members to a modality's family, replacing those of the same names."""
    family = {member.name: member for member in members_of(modality)}
    _MEMBERS[modality] = list((family | {member.name: member for member in members}).values())


def members_of(modality: str, *, unlabeled: bool = True) -> list[Member]:
    """Returns the family of a modality; without those that need unlabeled data if there is none.

    Raises:
      UserError: an unknown modality.
    """
    family = _MEMBERS[modality] if modality in _MEMBERS else default_members(modality)
    return [member for member in family if unlabeled or not member.needs_unlabeled]


def members_beside(modality: str, others: FeatureSet) -> list[Member]:
    """Returns classical models that see other features beside the modality's own.

    Of texts latent semantic analysis with linear classifiers, of other modalities every feature set
    of `Modality.baseline` with an RBF SVC, logistic regression and label spreading.

    Args:
      modality: of the examples.
      others: rows of which are arrays.

    Raises:
      UserError: an unknown modality.
    """
    classifiers: tuple[Classifier, ...]
    if modality in _BESIDE:
        feature_sets = _BESIDE[modality]
        classifiers = (Logistic(), LinearSvc())
    else:
        feature_sets = media_features(modality)
        classifiers = RbfSvc(), Logistic(), LabelSpreading()
    return [
        Member(beside(others, *(own.parts or (own,))), each)
        for own in feature_sets
        for each in classifiers
    ]


def reads_unlabeled_beside(modality: str) -> bool:
    """Returns whether any of `members_beside` reads the other features of unlabeled examples.

    Raises:
      UserError: an unknown modality.
    """
    others = FeatureSet("others")
    return any(member.classifier.uses_unlabeled for member in members_beside(modality, others))


def default_members(modality: str) -> list[Member]:
    """Returns every feature set of `Modality.baseline` with every classifier of arrays.

    With unlabeled examples also their whitened principal components, and label spreading and
    self-training on these.

    Raises:
      UserError: an unknown modality.
    """
    classifiers = (RbfSvc(), LinearSvc(), Logistic(), NearestNeighbors())
    members: list[Member] = []
    first: FeatureSet | None = None
    for features in media_features(modality):
        if features.learn is not None:
            members += [Member(features, each) for each in (LinearSvc(), Logistic())]
            continue
        members += [Member(features, each) for each in classifiers]
        components = dataclasses.replace(
            features, name=f"components of {features.name}", learn=learn_whitened_pca
        )
        members += [Member(components, RbfSvc()), Member(features, LabelSpreading())]
        first = first or components
    # Self-training takes longest, so it has one feature set.
    return [*members, Member(first, SelfTraining())] if first else members


def media_features(modality: str) -> list[FeatureSet]:
    """Returns the feature sets in `Modality.baseline`.

    Raises:
      UserError: an unknown modality.
    """
    return [
        FeatureSet(
            spec.name,
            spec.extract,
            spec.learn,
            standardize_rows if spec.standardize else scale_to_unit_variance,
        )
        for spec in get_modality(modality).baseline
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class ClassicalFamily:
    """A family of classical models over the examples of one task.

    Attributes:
      members: of which one is chosen, in order of preference.
      store: rows of the task's examples.
      num_classes: columns of the probabilities.
      truths: labels of the examples that any fit learns from, [N, ...], where `search` and
        `predict` are given strata instead; None where they are given the labels.
    """

    members: Sequence[Member]
    store: FeatureStore
    num_classes: int
    truths: np.ndarray | None = None

    def prepare(self) -> None:
        """Computes what all fits share: features, and what is learned from unlabeled examples."""
        self.store.prepare([member.features for member in self.members])
        for member in self.members:
            member.classifier.prepare(self.store, member.features)

    def search(self, train_idx: np.ndarray, labels: np.ndarray, seed: int) -> list[dict[str, Any]]:
        """Returns the trials among which a setting is chosen, the preferred of equal ones first.

        Every member's grid is searched on one draw of the folds; `search_grid` widens it. Its best
        setting and its middle one are then compared with the other members' on fresh draws of the
        folds, so that a large grid has no advantage over a small one.

        Args:
          train_idx: labeled examples.
          labels: class of each, int [N], or its stratum.
          seed: of the folds.

        Returns:
          {"config", "validation", "grid", "at_edge"} of each finalist: its mean validation figure
          over the fresh draws, to a whole example held out of one, so that less is a tie; the
          number of settings that its member tried; and the names of its hyper-parameters that lie
          at the end of the widened grid.
        """
        first = self._views(train_idx, labels, make_folds(labels, seed=seed))
        fresh = [
            self._views(train_idx, labels, make_folds(labels, seed=seed + _FRESH_DRAW_SEED + draw))
            for draw in range(FRESH_DRAWS)
        ]
        held_out = sum(len(each) for _, each in make_folds(labels, seed=seed))
        trials = []
        for member in self.members:
            if len(train_idx) > member.classifier.max_labels:
                continue
            for weight in self._class_weights(member, labels):
                fixed: dict[str, Any] = {"member": member.name}
                if weight is not None:
                    fixed["class_weight"] = weight
                if member.needs_unlabeled:
                    fixed["unlabeled"] = self.store.num_unlabeled
                views = first(member)
                grid = search_grid(
                    member.classifier.axes,
                    fixed,
                    lambda configs, member=member, views=views: [
                        figure for figure, _ in self.validate(member, views, configs)
                    ],
                )
                finalists = grid.finalists()
                configs = [config for config, _ in finalists]
                # By fresh draw and finalist.
                found = [self.validate(member, each(member), configs) for each in fresh]
                trials += [
                    {
                        "config": config | _mean_of_each([fitted for _, fitted in draws]),
                        "validation": self.rounded(
                            float(np.mean([each for each, _ in draws])), held_out
                        ),
                        "grid": len(grid.found),
                        "at_edge": at_edge,
                    }
                    for (config, at_edge), draws in zip(
                        finalists, zip(*found, strict=True), strict=True
                    )
                ]
        return trials

    def rounded(self, figure: float, held_out: int) -> float:
        """Returns a validation figure, rounded so that differences below an example are ties."""
        return round(figure * held_out) / held_out

    def validate(
        self, member: Member, views: Views, configs: Sequence[Config]
    ) -> list[tuple[float, Config]]:
        """Returns each setting's balanced accuracy over all held-out examples.

        The second value of each are entries of its config that are fitted to the same examples.
        """
        truth = np.concatenate([held_out for _, held_out in views])
        by_fold = [member.classifier.scores(view, configs) for view, _ in views]
        predictions = [
            np.concatenate(
                [
                    view.classes[np.argmax(scores[n], axis=1)]
                    for (view, _), scores in zip(views, by_fold, strict=True)
                ]
            )
            for n in range(len(configs))
        ]
        return [(balanced_accuracy(each, truth), {}) for each in predictions]

    def _truths(self, idx: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return labels if self.truths is None else self.truths[idx]

    def _views(
        self,
        train_idx: np.ndarray,
        labels: np.ndarray,
        folds: Sequence[tuple[np.ndarray, np.ndarray]],
    ) -> Callable[[Member], Views]:
        """Returns the function from members to (fold, truths held out); features are shared."""
        truths = self._truths(train_idx, labels)

        def build(features: FeatureSet, n: int) -> Fold:
            fit, held_out = folds[n]
            parts = [views(part)[n] for part in features.parts]
            idx = train_idx[fit], truths[fit], train_idx[held_out]
            return Fold(self.store, features, *idx, parts)

        built: dict[str, list[Fold]] = {}

        def views(features: FeatureSet) -> list[Fold]:
            if features.name not in built:
                built[features.name] = [build(features, n) for n in range(len(folds))]
            return built[features.name]

        held_out_truths = [truths[held_out] for _, held_out in folds]
        return lambda member: list(zip(views(member.features), held_out_truths, strict=True))

    def predict(
        self, train_idx: np.ndarray, labels: np.ndarray, seed: int, config: Config, idx: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Fits one setting to all labels; returns classes [M] and probabilities [M, classes].

        Probabilities are the softmax of the classifier's scores. Where these are no log
        probabilities, they are divided by the temperature that fits the held-out scores of the
        folds best.

        Args:
          train_idx: labeled examples.
          labels: class of each, int [N], or its stratum.
          seed: of the folds.
          config: of a trial.
          idx: examples to predict.
        """
        member, fold = self.fold(train_idx, labels, config, idx)
        (scores,) = member.classifier.scores(fold, [config])
        if not member.classifier.gives_probabilities:
            scores = scores / self._temperature(member, train_idx, labels, seed, config)
        probabilities = np.zeros((len(idx), self.num_classes), np.float32)
        probabilities[:, fold.classes] = softmax(scores, axis=1)
        return fold.classes[np.argmax(scores, axis=1)], probabilities

    def fold(
        self, train_idx: np.ndarray, labels: np.ndarray, config: Config, idx: np.ndarray
    ) -> tuple[Member, Fold]:
        """Returns the member of a config and its fold of a fit that predicts examples `idx`."""
        member = next(each for each in self.members if each.name == config["member"])
        truths = self._truths(train_idx, labels)
        return member, Fold(self.store, member.features, train_idx, truths, idx)

    def _temperature(
        self, member: Member, train_idx: np.ndarray, labels: np.ndarray, seed: int, config: Config
    ) -> float:
        """Returns the temperature that minimizes cross-entropy on held-out scores."""
        parts = []
        views = self._views(train_idx, labels, make_folds(labels, seed=seed))(member)
        for view, truth in views:
            (scores,) = member.classifier.scores(view, [config])
            parts.append((scores, np.searchsorted(view.classes, truth)))

        def loss(log10_temperature: float) -> float:
            nats = 0.0
            for scores, truth in parts:
                log_shares = log_softmax(scores / 10**log10_temperature, axis=1)
                nats -= log_shares[np.arange(len(truth)), truth].sum()
            return nats

        bounds = (-_MAX_LOG10_TEMPERATURE, _MAX_LOG10_TEMPERATURE)
        found: Any = minimize_scalar(loss, bounds=bounds, method="bounded")
        return float(10**found.x)

    def _class_weights(self, member: Member, labels: np.ndarray) -> list[str | None]:
        _, counts = np.unique(labels, return_counts=True)
        unequal = counts.max() >= UNEQUAL_CLASSES * counts.min()
        return [None, "balanced"] if member.classifier.weighs_classes and unequal else [None]


def _mean_of_each(configs: Sequence[Config]) -> Config:
    """Returns the mean of each entry over configs with the same entries."""
    return {name: float(np.mean([each[name] for each in configs])) for name in configs[0]}


def class_family(
    modality: str, store: FeatureStore, num_classes: int, network: FeatureSet | None = None
) -> ClassicalFamily:
    """Returns the family of a modality's classifiers.

    Args:
      modality: of the examples.
      store: their rows; the members that learn from unlabeled examples need some.
      num_classes: of the task.
      network: features of a network that all members see beside their own.

    Raises:
      UserError: an unknown modality.
    """
    if network is None:
        members = members_of(modality, unlabeled=store.num_unlabeled > 0)
    else:
        members = members_beside(modality, network)
    return ClassicalFamily(members, store, num_classes)


@dataclasses.dataclass(frozen=True, eq=False)
class SearchedGrid:
    """Settings of a grid with their validation figures.

    Attributes:
      axes: of the grid.
      exponents: of each axis, after widening.
      found: by place in the grid, the setting and its figure.
    """

    axes: Sequence[Axis]
    exponents: Sequence[Sequence[float]]
    found: dict[tuple[float, ...], tuple[Config, float]]

    def best(self) -> tuple[float, ...]:
        """Returns the place of the highest figure, the nearest to the middle if tied."""
        return min(self.found, key=lambda place: (-self.found[place][1], self._distance(place)))

    def finalists(self) -> list[tuple[Config, list[str]]]:
        """Returns the best setting and the middle one, with the axes at whose end each is."""
        middle = min(self.found, key=self._distance)
        return [
            (
                self.found[place][0],
                [
                    axis.name
                    for axis, each, all_of in zip(self.axes, place, self.exponents, strict=True)
                    if each in (all_of[0], all_of[-1])
                ],
            )
            for place in dict.fromkeys([self.best(), middle])
        ]

    def _distance(self, place: tuple[float, ...]) -> float:
        """Returns the steps from the middle of the first grid, along the farthest axis."""
        return max(
            (
                abs(each - (axis.exponents[0] + axis.exponents[-1]) / 2) / axis.step
                for axis, each in zip(self.axes, place, strict=True)
            ),
            default=0.0,
        )


def search_grid(
    axes: Sequence[Axis], fixed: Config, validate: Callable[[list[Config]], list[float]]
) -> SearchedGrid:
    """Validates the grid of `axes`, widened until its best setting lies inside.

    An axis at whose end the best setting stands gets two values more, and all new settings are
    validated, up to the limits of the axis.

    Args:
      axes: of the grid; without any there is one setting.
      fixed: entries of all settings.
      validate: settings to their figures.
    """
    grid = SearchedGrid(axes, [list(axis.exponents) for axis in axes], {})
    while True:
        new = [each for each in itertools.product(*grid.exponents) if each not in grid.found]
        configs = [
            fixed | {axis.name: axis.value(each) for axis, each in zip(axes, place, strict=True)}
            for place in new
        ]
        for place, config, value in zip(new, configs, validate(configs), strict=True):
            grid.found[place] = config, value
        exponents = [
            _widened(axis, own, at)
            for axis, own, at in zip(axes, grid.exponents, grid.best(), strict=True)
        ]
        if exponents == grid.exponents:
            return grid
        grid = dataclasses.replace(grid, exponents=exponents)


def _widened(axis: Axis, exponents: Sequence[float], best: float) -> list[float]:
    """Returns an axis's exponents with more at the end where the best one stands, if it does."""
    low, high = axis.limits
    steps = [axis.step * (n + 1) for n in range(_WIDEN_BY)]
    if best == exponents[0]:
        return [best - step for step in reversed(steps) if best - step >= low] + list(exponents)
    if best == exponents[-1]:
        return list(exponents) + [best + step for step in steps if best + step <= high]
    return list(exponents)
