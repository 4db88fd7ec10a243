"""Arms without a neural network, one for each task type; see `Arm`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.preprocessing import StandardScaler, normalize

from fm.adaptation.methods import HParams
from fm.adaptation.task_model import TaskModel
from fm.evaluation import ner_baseline
from fm.evaluation.baselines import (
    ClassicalFamily,
    FeatureSet,
    FeatureStore,
    class_family,
    first_sentences,
    nearest_neighbor_targets,
)
from fm.evaluation.metrics import chrf
from fm.evaluation.model_selection import make_folds
from fm.evaluation.ner import count_entities
from fm.study.adaptation import Predictions, Trial

Tags = list[list[str]]
# (modality, rows, number of classes, a network's features or None) to the family.
FamilyBuilder = Callable[[str, FeatureStore, int, FeatureSet | None], ClassicalFamily]
FIRST_SENTENCE, NEAREST_TARGET = "first sentence", "nearest target"


def entity_count_predictions(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> np.ndarray:
    """Returns counts of correct, predicted and gold entities per sentence, int [N, 3]."""
    counts = count_entities(gold, predicted)
    return np.stack([counts.correct, counts.predicted, counts.gold], axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class ClassicalArm:
    """An arm that fits the member of a family of classical models that validates best.

    Attributes:
      families: over the labeled examples, then the test items; one, or one of each checkpoint whose
        features its members read, shared out over the seeds.
      test_from: index of the first test item.
      feature_flops: FLOPs of the network's features of an example; 0 without a network.
      network: whose features its members read beside their own, if they do.
    """

    families: Sequence[ClassicalFamily]
    test_from: int
    feature_flops: float = 0.0
    network: TaskModel | None = None

    def prepare(self, seeds: int) -> float:
        """Extracts features, some learned without labels; returns CPU seconds of one family."""
        begun = time.process_time()
        first, *others = self.families[:seeds]
        first.prepare()
        cpu_seconds = time.process_time() - begun
        for family in others:
            family.prepare()
        return cpu_seconds

    def search(self, train_idx: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Returns the best and the middle setting of every member with their validation score."""
        return self._family(seed).search(train_idx, labels, seed)

    def fit_predict(
        self, train_idx: np.ndarray, labels: np.ndarray, seed: int, hparams: HParams
    ) -> Predictions:
        """Fits to all of `train_idx`; returns predictions for the test items."""
        family = self._family(seed)
        test_idx = np.arange(self.test_from, len(family.store.examples))
        return Predictions(*family.predict(train_idx, labels, seed, hparams, test_idx))

    def fit_flops(self, num_labels: int, hparams: HParams) -> float:
        """Returns the FLOPs of the network's features; a classical model's are negligible."""
        return num_labels * self.feature_flops

    def _family(self, seed: int) -> ClassicalFamily:
        return self.families[seed % len(self.families)]


def build_classical_arm(
    modality: str,
    store: FeatureStore,
    test_from: int,
    num_classes: int,
    build_family: FamilyBuilder = class_family,
) -> ClassicalArm:
    """Returns the arm of a modality's classical models.

    Args:
      modality: of the examples.
      store: the labeled pool, then the test items, and unlabeled examples if the family is to have
        the members that learn from such.
      test_from: index of the first test item.
      num_classes: of the task.
      build_family: of the kind of label, such as `class_family`.

    Raises:
      UserError: an unknown modality.
    """
    return ClassicalArm([build_family(modality, store, num_classes, None)], test_from)


def build_network_beside_classical_arm(
    modality: str,
    store: FeatureStore,
    test_from: int,
    num_classes: int,
    network: TaskModel,
    build_family: FamilyBuilder = class_family,
) -> ClassicalArm:
    """Returns the arm of classical models that also see the features of a pretrained network.

    Args:
      modality: of the examples.
      store: see `build_classical_arm`.
      test_from: index of the first test item.
      num_classes: of the task.
      network: with its checkpoints, of each of which a family reads the features, and with the
        unlabeled examples of `store`.
      build_family: see `build_classical_arm`.

    Raises:
      UserError: an unknown modality.
    """
    families = [
        build_family(modality, store, num_classes, _network_features(network, checkpoint, store))
        for checkpoint in range(len(network.checkpoints))
    ]
    return ClassicalArm(families, test_from, network.feature_flops(), network)


def _network_features(network: TaskModel, checkpoint: int, store: FeatureStore) -> FeatureSet:
    """Returns frozen features, standardized on the labeled pool, each row of length 1."""
    own = len(store.examples)

    def extract(inputs: Any, sample_rate: float | None) -> np.ndarray:
        idx = np.arange(own)
        scaler = StandardScaler().fit(network.features(checkpoint, idx[: network.test_from]))
        if inputs is not store.examples.inputs:
            idx = network.unlabeled_idx
        return np.asarray(normalize(scaler.transform(network.features(checkpoint, idx))))

    return FeatureSet("network", extract)


@dataclasses.dataclass(frozen=True, eq=False)
class ClassicalNerArm:
    """An arm for NER: a conditional random field on features of each word and its neighbors.

    Attributes:
      words: of the labeled sentences, then of the test items.
      tags: of every word of these.
      test_from: index of the first test item.
    """

    words: list[list[str]]
    tags: Tags
    test_from: int

    def prepare(self, seeds: int) -> float:
        """Returns 0: nothing is shared by the label budgets."""
        return 0.0

    def search(self, train_idx: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Returns each trial with its cross-validated F1; `labels` are the sentences' strata."""
        words, tags = [self.words[n] for n in train_idx], [self.tags[n] for n in train_idx]
        return ner_baseline.search(words, tags, make_folds(labels, seed=seed))

    def fit_predict(
        self, train_idx: np.ndarray, labels: np.ndarray, seed: int, hparams: HParams
    ) -> Predictions:
        """Fits to all of `train_idx`; returns counts for the test sentences, int [N, 3]."""
        words, tags = [self.words[n] for n in train_idx], [self.tags[n] for n in train_idx]
        tagger = ner_baseline.fit(words, tags, hparams)
        predicted = tagger.predict(self.words[self.test_from :])
        return Predictions(entity_count_predictions(self.tags[self.test_from :], predicted))

    def fit_flops(self, num_labels: int, hparams: HParams) -> float:
        """Zero: negligible beside a network's."""
        return 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class UntrainedTextArm:
    """Text generation without training: the first sentence, or the nearest neighbor's target.

    Attributes:
      texts: labeled ones, then the test items.
      targets: of each.
      test_from: index of the first test item.
    """

    texts: list[str]
    targets: list[str]
    test_from: int

    def grid(self) -> list[HParams]:
        """Returns the two ways to choose a text: the first sentence, or the nearest target."""
        return [
            {"method": "extract", "text": choice} for choice in (FIRST_SENTENCE, NEAREST_TARGET)
        ]

    def prepare(self, seeds: int) -> float:
        """Returns 0: nothing is shared by the label budgets."""
        return 0.0

    def search(self, train_idx: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Returns each of the two choices with its cross-validated mean chrF."""
        trials = []
        for hparams in self.grid():
            scores = [
                self._scores(train_idx[fit_idx], train_idx[held_out], hparams)
                for fit_idx, held_out in make_folds(labels, seed=seed)
            ]
            validation = float(np.concatenate(scores).mean())
            trials.append({"config": hparams, "validation": validation})
        return trials

    def fit_predict(
        self, train_idx: np.ndarray, labels: np.ndarray, seed: int, hparams: HParams
    ) -> Predictions:
        """Returns the chrF of the chosen text for each test item, float [N]."""
        idx = np.arange(self.test_from, len(self.texts))
        return Predictions(self._scores(train_idx, idx, hparams))

    def fit_flops(self, num_labels: int, hparams: HParams) -> float:
        """Zero: negligible beside a network's."""
        return 0.0

    def _scores(self, train_idx: np.ndarray, idx: np.ndarray, hparams: HParams) -> np.ndarray:
        texts = [self.texts[n] for n in idx]
        if hparams["text"] == FIRST_SENTENCE:
            extracted = first_sentences(texts)
        else:
            extracted = nearest_neighbor_targets(
                [self.texts[n] for n in train_idx], [self.targets[n] for n in train_idx], texts
            )
        return chrf(extracted, [self.targets[n] for n in idx])
