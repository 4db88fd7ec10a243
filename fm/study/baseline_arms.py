"""Arms without a neural network, one for each task type; see `Arm`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from fm.adaptation.methods import HParams
from fm.evaluation import baselines, ner_baseline
from fm.evaluation.baselines import first_sentences, nearest_neighbor_targets
from fm.evaluation.metrics import chrf
from fm.evaluation.model_selection import from_the_middle, make_folds
from fm.evaluation.ner import count_entities, cross_validate
from fm.study.adaptation import Predictions, Trial

Tags = list[list[str]]
FIRST_SENTENCE, NEAREST_TARGET = "first sentence", "nearest target"


def entity_count_predictions(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> np.ndarray:
    """Returns counts of correct, predicted and gold entities per sentence, int [N, 3]."""
    counts = count_entities(gold, predicted)
    return np.stack([counts.correct, counts.predicted, counts.gold], axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class ClassicalNerArm:
    """An arm for NER: logistic regression on features of each word and its neighbors.

    Attributes:
      words: of the labeled sentences, then of the test items.
      tags: of every word of these.
      test_from: index of the first test item.
      num_trials: size of the grid.
      blas_threads: see `fm.study.cells.parallel_map`; a fit sets the same.
    """

    blas_threads: ClassVar[int] = 1

    words: list[list[str]]
    tags: Tags
    test_from: int
    num_trials: int

    def grid(self) -> list[HParams]:
        """Returns the settings of the inverse penalty C to try, a moderate one first."""
        return from_the_middle(ner_baseline.hparam_grid(self.num_trials))

    def prepare(self, seeds: int) -> float:
        """Returns 0: nothing is shared by the label budgets."""
        return 0.0

    def search(self, train_idx: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Returns each trial with its cross-validated score; `labels` are the sentences' strata."""
        words, tags = [self.words[n] for n in train_idx], [self.tags[n] for n in train_idx]
        folds = make_folds(labels, seed=seed)
        return cross_validate(ner_baseline.fit, words, tags, self.grid(), folds)

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


@dataclasses.dataclass(frozen=True, eq=False)
class ClassicalArm:
    """An arm that fits logistic regression to classical features, such as TF-IDF or pixels.

    Attributes:
      modality: modality of the task.
      inputs: labeled examples, then test items, by `baselines.fit_free_features`.
      test_from: index of the first test item.
      num_trials: size of the grid.
    """

    modality: str
    inputs: Any
    test_from: int
    num_trials: int

    def grid(self) -> list[HParams]:
        """Returns the settings of the inverse penalty C to try, a moderate one first."""
        return from_the_middle(baselines.hparam_grid(self.modality, self.num_trials))

    def prepare(self, seeds: int) -> float:
        """Returns 0: the inputs are features already."""
        return 0.0

    def search(self, train_idx: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Returns each trial of the grid with its cross-validated accuracy on `train_idx`."""
        return baselines.cross_validate(
            self.modality,
            self.inputs[train_idx],
            labels,
            self.grid(),
            make_folds(labels, seed=seed),
        )

    def fit_predict(
        self, train_idx: np.ndarray, labels: np.ndarray, seed: int, hparams: HParams
    ) -> Predictions:
        """Fits to all of `train_idx`; returns predictions for the test items."""
        fitted = baselines.fit(self.modality, self.inputs[train_idx], labels, hparams)
        return Predictions(fitted.predict(self.inputs[self.test_from :]))

    def fit_flops(self, num_labels: int, hparams: HParams) -> float:
        """Zero: negligible beside a network's."""
        return 0.0
