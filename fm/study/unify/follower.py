"""A network that is asked in words: one for all tasks, or for one that is answered by a text."""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading

import jax
import numpy as np

from fm.data.splits import subset
from fm.evaluation.validation import folds
from fm.model import flops
from fm.model.config import ModelConfig
from fm.model.transformer import init
from fm.study import kinds
from fm.study.adaptation import Setting, Trial
from fm.study.unify.asked import AskedTask
from fm.transfer.finetune import FinetuneConfig
from fm.transfer.instructed import instruct, shares
from fm.transfer.instructions import Asker, prefix, rows

Key = tuple[int, int, bool, float]
_ROUND = 16


@dataclasses.dataclass(eq=False)
class Follower:
    """One set of weights a seed, tuned to as many labels of each of its tasks.

    Attributes:
      checkpoint: what it starts from; None to start afresh.
      asker: tokenizer, model and sizes.
      config: of tuning, but for the learning rate.
      learning_rates: settings to try.
      tasks: by name.
    """

    checkpoint: dict | None
    asker: Asker
    config: FinetuneConfig
    learning_rates: tuple[float, ...]
    tasks: dict[str, AskedTask]
    _tuned: dict[Key, dict] = dataclasses.field(default_factory=dict)
    _locks: dict[Key, threading.Lock] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(threading.Lock)
    )

    @property
    def model(self) -> ModelConfig:
        """Architecture."""
        return self.asker.model

    def start(self, seed: int) -> dict:
        """Parameters a seed starts from."""
        if self.checkpoint is not None:
            return self.checkpoint
        return init(jax.random.key(1000 + seed), self.model)

    def tuned(self, labels: int, seed: int, setting: Setting, *, part: bool = False) -> dict:
        """Parameters tuned to the first so many labels of every task, computed once.

        Args:
          labels: of each task.
          seed: whose labels.
          setting: the learning rate.
          part: on those alone that validation leaves.
        """
        key = labels, seed, part, setting["learning_rate"]
        with self._locks[key]:
            if key not in self._tuned:
                self._tuned[key] = self._tune(labels, seed, setting, part)
        return self._tuned[key]

    def places(self, name: str, labels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of a task's first so many labelled examples: to fit on, and to validate on."""
        task = self.tasks[name].task
        drawn = task.drawn[seed][:labels]
        fit, held = folds(task.strata[drawn], seed=seed)[0]
        at = task.rows_of(drawn)
        return at[fit], at[held]

    def _tune(self, labels: int, seed: int, setting: Setting, part: bool) -> dict:
        examples = collections.defaultdict(list)
        capacity = collections.Counter()
        for n, (name, asked) in enumerate(self.tasks.items()):
            if part:
                places = self.places(name, labels, seed)[0]
            else:
                places = asked.task.rows_of(asked.task.drawn[seed][:labels])
            modality = asked.task.modality
            wordings = asked.words.drawn(len(places), seed + 1000 * n)
            examples[modality] += asked.examples(self.asker, places, wordings)
            capacity[modality] += max(asked.task.config.budgets)
        made = {
            modality: rows(own, self.model, self.lengths[modality], share_rows=False)
            for modality, own in examples.items()
        }
        made = {modality: each | {"prefix": prefix(each)} for modality, each in made.items()}
        config = dataclasses.replace(self.config, learning_rate=setting["learning_rate"])
        return instruct(self.start(seed), made, self.model, config, seed=seed, capacity=capacity)

    @functools.cached_property
    def lengths(self) -> dict[str, int]:
        """Pieces in a row of each format: as its longest example, in any wording, rounded up."""
        longest = collections.Counter()
        for asked in self.tasks.values():
            modality, labelled = asked.task.modality, range(len(asked.task.touched))
            for wording in asked.words.trained:
                made = asked.examples(self.asker, labelled, [wording] * len(labelled))
                longest[modality] = max(longest[modality], *(len(row["answer"]) for row in made))
        return {
            modality: min(-(-length // _ROUND) * _ROUND, self.asker.length)
            for modality, length in longest.items()
        }

    def flops(self, labels: int) -> float:
        """Of tuning, shared out over the tasks."""
        formats = collections.Counter(asked.task.modality for asked in self.tasks.values())
        of_a_step = sum(
            share * flops.train_flops(self.model, self.lengths[modality], predictions=4)
            for modality, share in shares(formats, self.config.batch_size).items()
        )
        updates = self.config.updates(labels * len(self.tasks))
        return updates * of_a_step / len(self.tasks)


@dataclasses.dataclass(frozen=True, eq=False)
class Followed:
    """A follower's way with one of its tasks; see `fm.study.adaptation.Arm`."""

    follower: Follower
    name: str

    def grid(self) -> list[Setting]:
        """Learning rates."""
        rates = self.follower.learning_rates
        return [{"adapt": "instruct", "learning_rate": rate} for rate in rates]

    def validate(self, drawn: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Each setting's metric on the labels that one fold holds out of every task at once."""
        asked = self.follower.tasks[self.name]
        held = self.follower.places(self.name, len(drawn), seed)[1]
        trials = []
        for setting in self.grid():
            params = self.follower.tuned(len(drawn), seed, setting, part=True)
            answers = asked.answered(params, self.follower.asker, held)
            trials.append({"config": setting, "validation": self._metric(asked, answers, held)})
        return trials

    def fit_predict(self, drawn, labels, seed, setting) -> np.ndarray:
        """Answers to the test items, asked in words held out from training."""
        asked = self.follower.tasks[self.name]
        params = self.follower.tuned(len(drawn), seed, setting)
        return asked.answered(params, self.follower.asker, asked.test)

    def fit_flops(self, labels: int, setting: Setting) -> float:
        """Its share of tuning one network for all tasks."""
        return self.follower.flops(labels)

    def _metric(self, asked: AskedTask, answers: np.ndarray, held: np.ndarray) -> float:
        task = asked.task
        split = subset(task.dataset.train, task.touched[held])
        return float(kinds.scores(answers[None], split, task.kind).mean())
