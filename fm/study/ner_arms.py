"""The arms of a task of named entities: a network that tags words, and the classical tagger.

They answer as `fm.study.adaptation.Arm` asks; an answer is a sentence's counts, see
`fm.study.task_types`. The labels given are the strata of the sentences drawn, by which they are folded.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from fm.evaluation import ner_baseline
from fm.evaluation.model_selection import make_folds
from fm.evaluation.ner import count_entities, cross_validate
from fm.study.adaptation import HParams, Trial
from fm.study.tasks import Task

Tags = list[list[str]]


@functools.lru_cache(maxsize=8)
def words_and_tags(task: Task) -> tuple[list[list[str]], Tags]:
    """Words and tags of the labelled sentences, then of the test items."""
    train, test = task.dataset.train, task.test
    every = range(len(test))
    words = train.words(task.labeled_pool) + test.words(every)
    return words, train.tags(task.labeled_pool) + test.tags(every)


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
