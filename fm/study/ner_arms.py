"""The arms of a task of named entities: a network that tags words, and the classical tagger.

They answer as `fm.study.adaptation.Arm` asks; an answer is a sentence's counts, see
`fm.study.task_types`. The labels given are the strata of the sentences drawn, by which they are folded.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from fm.adaptation import token_classification
from fm.adaptation.token_classification import (
    WordExamples,
    fit_tag_probe,
    predict_tags,
    token_labels,
)
from fm.evaluation import ner_baseline
from fm.evaluation.model_selection import make_folds
from fm.evaluation.ner import count_entities, cross_validate
from fm.study.adaptation import HParams, NetworkArm, Trial
from fm.study.tasks import Task

Tags = list[list[str]]


@functools.lru_cache(maxsize=8)
def words_and_tags(task: Task) -> tuple[list[list[str]], Tags]:
    """Words and tags of the labelled sentences, then of the test items."""
    train, test = task.dataset.train, task.test
    every = range(len(test))
    words = train.words(task.labeled_pool) + test.words(every)
    return words, train.tags(task.labeled_pool) + test.tags(every)


@dataclasses.dataclass(eq=False)
class TokenClassificationArm:
    """A transformer that tags words: fine-tuned whole, with adapters, or read by a probe.

    Attributes:
      network: of the rows of `sentences`; `classes` is the number of tags.
      sentences: those labelled, then the test items.
      tags: of every word of these.
      names: of the tags.
    """

    network: NetworkArm
    sentences: WordExamples
    tags: Tags
    names: tuple[str, ...]
    _features: dict[int, list[np.ndarray]] = dataclasses.field(default_factory=dict)

    def grid(self) -> list[HParams]:
        """See `Network`."""
        return self.network.grid()

    def validate(self, drawn: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Each setting's F1 on validation cut from the drawn sentences."""
        cut = make_folds(labels, seed=seed)
        trials: list[Trial] = []
        for setting in self.grid():
            held_out = [
                _counted(
                    self.tags, drawn[held], self.tagged(drawn[fit], seed, setting, drawn[held])
                )
                for fit, held in cut
            ]
            right, predicted, gold = np.concatenate(held_out).sum(axis=0)
            below = predicted + gold
            value = float(2 * right / below) if below else 0.0
            trials.append({"config": setting, "validation": value})
        return trials

    def fit_predict(self, drawn, labels, seed, setting) -> np.ndarray:
        """Counts of the test sentences, int [N, 3], after fitting on all drawn ones."""
        test = np.arange(self.network.test_from, len(self.sentences))
        return _counted(self.tags, test, self.tagged(drawn, seed, setting, test))

    def fit_flops(self, labels: int, setting: HParams) -> float:
        """See `Network`."""
        return self.network.fit_flops(labels, setting)

    def tagged(self, drawn: np.ndarray, seed: int, setting: HParams, wanted: np.ndarray) -> Tags:
        """Tags of the wanted sentences after fitting on the drawn ones."""
        if setting["adapt"] == "probe":
            features = self._read(seed)
            own = [features[n] for n in drawn]
            probe = fit_tag_probe(own, [self.tags[n] for n in drawn], setting)
            return probe.predict([features[n] for n in wanted])
        labels = token_labels(self.sentences.take(drawn), [self.tags[n] for n in drawn], self.names)
        tuned = self.network.tune(drawn, labels, seed, setting)
        reading = self.network.recipe.finetune.feature_config
        return predict_tags(
            tuned,
            self.sentences.take(wanted),
            self.network.model,
            self.names,
            feature_config=reading,
        )

    def _read(self, seed: int) -> list[np.ndarray]:
        """Features of all words from the seed's starting parameters, computed once."""
        network = self.network
        key = seed % len(network.checkpoints) if network.checkpoints else seed
        with network.lock(key):
            if key not in self._features:
                self._features[key] = token_classification.word_features(
                    network.initial_params(seed),
                    self.sentences,
                    network.model,
                    feature_config=network.recipe.finetune.feature_config,
                )
        return self._features[key]


@dataclasses.dataclass(frozen=True, eq=False)
class ClassicalNerArm:
    """Features of words and their neighbours, and logistic regression.

    Attributes:
      words: of the labelled sentences, then of the test items.
      tags: of every word of these.
      test_from: place of the first test item.
      trials: settings to try.
    """

    words: list[list[str]]
    tags: Tags
    test_from: int
    trials: int

    def grid(self) -> list[HParams]:
        """Inverse penalties."""
        return ner_baseline.hparam_grid(self.trials)

    def validate(self, drawn: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """See `TagNetwork`."""
        own = [self.words[n] for n in drawn], [self.tags[n] for n in drawn]
        return cross_validate(ner_baseline.fit, *own, self.grid(), make_folds(labels, seed=seed))

    def fit_predict(self, drawn, labels, seed, setting) -> np.ndarray:
        """See `TagNetwork`."""
        test = np.arange(self.test_from, len(self.words))
        return _counted(self.tags, test, self.tagged(drawn, seed, setting, test))

    def fit_flops(self, labels: int, setting: HParams) -> float:
        """Too little to count beside a network's."""
        return 0.0

    def tagged(self, drawn: np.ndarray, seed: int, setting: HParams, wanted: np.ndarray) -> Tags:
        """Tags of the wanted sentences after fitting on the drawn ones."""
        own = [self.words[n] for n in drawn]
        fitted = ner_baseline.fit(own, [self.tags[n] for n in drawn], setting)
        return fitted.predict([self.words[n] for n in wanted])


def _counted(tags: Tags, wanted: np.ndarray, guessed: Tags) -> np.ndarray:
    """Entities found rightly, predicted and there in each wanted sentence, int [N, 3]."""
    found = count_entities([tags[n] for n in wanted], guessed)
    return np.stack([found.correct, found.predicted, found.gold], axis=-1)
