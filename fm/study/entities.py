"""The arms of a task of named entities: a network that tags words, and the classical tagger.

They answer as `fm.study.adaptation.Arm` asks; an answer is a sentence's counts, see
`fm.study.kinds`. The labels given are the strata of the sentences drawn, by which they are folded.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from fm.evaluation import word_features
from fm.evaluation.entities import counts, cross_validate
from fm.evaluation.validation import folds
from fm.study.adaptation import Network, Setting, Trial
from fm.study.tasks import Task
from fm.transfer import tagging
from fm.transfer.tagging import WordRows, fit_tag_probe, piece_labels, predict_tags

Tags = list[list[str]]


@functools.lru_cache(maxsize=8)
def sentences(task: Task) -> tuple[list[list[str]], Tags]:
    """Words and tags of the labelled sentences, then of the test items."""
    train, test = task.dataset.train, task.test
    every = range(len(test))
    words = train.words(task.touched) + test.words(every)
    return words, train.tags(task.touched) + test.tags(every)


@dataclasses.dataclass(eq=False)
class TagNetwork:
    """A transformer that tags words: fine-tuned whole, with adapters, or read by a probe.

    Attributes:
      network: of the rows of `sentences`; `classes` is the number of tags.
      sentences: those labelled, then the test items.
      tags: of every word of these.
      names: of the tags.
    """

    network: Network
    sentences: WordRows
    tags: Tags
    names: tuple[str, ...]
    _features: dict[int, list[np.ndarray]] = dataclasses.field(default_factory=dict)

    def grid(self) -> list[Setting]:
        """See `Network`."""
        return self.network.grid()

    def validate(self, drawn: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Each setting's F1 on validation cut from the drawn sentences."""
        cut = folds(labels, seed=seed)
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

    def fit_flops(self, labels: int, setting: Setting) -> float:
        """See `Network`."""
        return self.network.fit_flops(labels, setting)

    def tagged(self, drawn: np.ndarray, seed: int, setting: Setting, wanted: np.ndarray) -> Tags:
        """Tags of the wanted sentences after fitting on the drawn ones."""
        if setting["adapt"] == "probe":
            features = self._read(seed)
            own = [features[n] for n in drawn]
            probe = fit_tag_probe(own, [self.tags[n] for n in drawn], setting)
            return probe.predict([features[n] for n in wanted])
        labels = piece_labels(self.sentences.take(drawn), [self.tags[n] for n in drawn], self.names)
        tuned = self.network.tune(drawn, labels, seed, setting)
        reading = self.network.recipe.finetune.reading
        return predict_tags(
            tuned, self.sentences.take(wanted), self.network.model, self.names, reading=reading
        )

    def _read(self, seed: int) -> list[np.ndarray]:
        """Features of all words from the seed's starting parameters, computed once."""
        network = self.network
        key = seed % len(network.checkpoints) if network.checkpoints else seed
        with network.lock(key):
            if key not in self._features:
                self._features[key] = tagging.word_features(
                    network.start(seed),
                    self.sentences,
                    network.model,
                    reading=network.recipe.finetune.reading,
                )
        return self._features[key]


@dataclasses.dataclass(frozen=True, eq=False)
class TagClassical:
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

    def grid(self) -> list[Setting]:
        """Inverse penalties."""
        return word_features.grid(self.trials)

    def validate(self, drawn: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """See `TagNetwork`."""
        own = [self.words[n] for n in drawn], [self.tags[n] for n in drawn]
        return cross_validate(word_features.fit, *own, self.grid(), folds(labels, seed=seed))

    def fit_predict(self, drawn, labels, seed, setting) -> np.ndarray:
        """See `TagNetwork`."""
        test = np.arange(self.test_from, len(self.words))
        return _counted(self.tags, test, self.tagged(drawn, seed, setting, test))

    def fit_flops(self, labels: int, setting: Setting) -> float:
        """Too little to count beside a network's."""
        return 0.0

    def tagged(self, drawn: np.ndarray, seed: int, setting: Setting, wanted: np.ndarray) -> Tags:
        """Tags of the wanted sentences after fitting on the drawn ones."""
        own = [self.words[n] for n in drawn]
        fitted = word_features.fit(own, [self.tags[n] for n in drawn], setting)
        return fitted.predict([self.words[n] for n in wanted])


def _counted(tags: Tags, wanted: np.ndarray, guessed: Tags) -> np.ndarray:
    """Entities found rightly, predicted and there in each wanted sentence, int [N, 3]."""
    found = counts([tags[n] for n in wanted], guessed)
    return np.stack([found.right, found.predicted, found.gold], axis=-1)
