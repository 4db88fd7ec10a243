"""A task put in words: every example as an instruction, an input and an answer."""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fm.adaptation import instruction_tuning, token_classification
from fm.adaptation.finetune import FinetuneConfig
from fm.adaptation.instruction_tuning import (
    Instruction,
    InstructionEncoder,
    continuous_segments,
    instruction_tune,
    pack_examples,
    prefix_lengths,
    rows_per_group,
)
from fm.data.datasets import subset
from fm.data.packing import Row
from fm.evaluation.metrics import chrf
from fm.evaluation.model_selection import make_folds
from fm.evaluation.ner import count_entities
from fm.model import flops
from fm.model.config import ModelConfig
from fm.model.transformer import init
from fm.study import task_types
from fm.study.adaptation import HParams, Trial
from fm.study.ner_arms import words_and_tags
from fm.study.processing import Processor
from fm.study.task_registry import task_instruction
from fm.study.tasks import Task

# Tokens written at most: of a list of names, and of a summary.
_MOST = {"entities": 24, "text": 20}


@dataclasses.dataclass(frozen=True, eq=False)
class InstructedTask:
    """A task whose examples are those labelled, then the test items.

    Attributes:
      task: the task.
      instruction: how it is asked.
      inputs: texts or segments of pieces.
      answers: what is right.
    """

    task: Task
    instruction: Instruction
    inputs: list[Any]
    answers: list[str]

    @property
    def test(self) -> np.ndarray:
        """Places of the test items."""
        return np.arange(len(self.task.labeled_pool), len(self.inputs))

    def examples(
        self, asker: InstructionEncoder, places: Sequence[int] | np.ndarray, wordings: Sequence[str]
    ) -> list[Row]:
        """Examples to learn from, each asked in its wording."""
        return asker.encode_examples(
            wordings,
            [self.inputs[n] for n in places],
            [self.answers[n] for n in places],
        )

    def predict(
        self,
        params: dict,
        asker: InstructionEncoder,
        places: np.ndarray,
        wording: str | None = None,
    ) -> np.ndarray:
        """Answers of a model as `fm.study.task_types` has them, int or float [N, ...].

        Args:
          params: of the model.
          asker: its tokenizer and sizes.
          places: of the examples.
          wording: how they are asked; the one held out from training unless given.
        """
        wordings = [self.instruction.held_out_phrasing if wording is None else wording] * len(
            places
        )
        inputs = [self.inputs[n] for n in places]
        if self.instruction.answers is not None:
            found = instruction_tuning.loglikelihood(
                params, asker, wordings, inputs, self.instruction.answers, bidirectional_prefix=True
            )
            return found.argmax(axis=1)
        most = _MOST[self.task.task_type]
        written = instruction_tuning.generate_until(
            params, asker, wordings, inputs, max_new_tokens=most, bidirectional_prefix=True
        )
        return self.score_answers(written, places)

    def score_answers(self, written: Sequence[str], places: np.ndarray) -> np.ndarray:
        """Free answers as numbers: counts of entities, int [N, 3], or chrF, float [N]."""
        if self.task.task_type == "text":
            return chrf(written, [self.answers[n] for n in places])
        words, gold = words_and_tags(self.task)
        kinds = {tag[2:] for tag in self.task.dataset.info["tags"] if tag != "O"}
        guessed = [
            token_classification.entities_to_tags(
                words[n], token_classification.parse_entities(answer, kinds)
            )
            for n, answer in zip(places, written, strict=True)
        ]
        found = count_entities([gold[n] for n in places], guessed)
        return np.stack([found.correct, found.predicted, found.gold], axis=-1)


def build_instructed_task(task: Task, processor: Processor) -> InstructedTask:
    """A task in words, its inputs cut as a model reads them."""
    words = task_instruction(task.name, task.task_type, task.dataset.classes)
    train, test = task.dataset.train, task.test
    every = range(len(test))
    if task.is_text:
        inputs: list[Any] = train.texts(task.labeled_pool) + test.texts(every)
    else:
        layout = processor.layouts[task.modality]
        arrays = [np.asarray(train.inputs(task.labeled_pool)), np.asarray(test.inputs(every))]
        pieces = layout.to_patches(np.concatenate(arrays))
        inputs = list(continuous_segments(task.modality, pieces, layout.positions()))
    if words.answers is not None:
        labels = [*np.asarray(train.labels)[task.labeled_pool], *np.asarray(test.labels)]
        return InstructedTask(task, words, inputs, [words.answers[label] for label in labels])
    if task.task_type == "text":
        return InstructedTask(
            task, words, inputs, train.targets(task.labeled_pool) + test.targets(every)
        )
    answers = list(map(token_classification.format_entities, *words_and_tags(task)))
    return InstructedTask(task, words, inputs, answers)


Key = tuple[int, int, bool, float]
_ROUND = 16


@dataclasses.dataclass(eq=False)
class InstructionTunedModels:
    """One set of weights a seed, tuned to as many labels of each of its tasks.

    Attributes:
      checkpoint: what it starts from; None to start afresh.
      encoder: tokenizer, model and sizes.
      config: of tuning, but for the learning rate.
      learning_rates: settings to try.
      tasks: by name.
    """

    checkpoint: dict | None
    encoder: InstructionEncoder
    config: FinetuneConfig
    learning_rates: tuple[float, ...]
    tasks: dict[str, InstructedTask]
    _tuned: dict[Key, dict] = dataclasses.field(default_factory=dict)
    _locks: dict[Key, threading.Lock] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(threading.Lock)
    )

    @property
    def model(self) -> ModelConfig:
        """Architecture."""
        return self.encoder.model_config

    def start(self, seed: int) -> dict:
        """Parameters a seed starts from."""
        if self.checkpoint is not None:
            return self.checkpoint
        return init(jax.random.key(1000 + seed), self.model)

    def tuned_params(self, labels: int, seed: int, setting: HParams, *, part: bool = False) -> dict:
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
        drawn = task.train_idx[seed][:labels]
        fit, held = make_folds(task.strata[drawn], seed=seed)[0]
        at = task.pool_rows(drawn)
        return at[fit], at[held]

    def _tune(self, labels: int, seed: int, setting: HParams, part: bool) -> dict:
        examples = collections.defaultdict(list)
        capacity = collections.Counter()
        for n, (name, asked) in enumerate(self.tasks.items()):
            if part:
                places = self.places(name, labels, seed)[0]
            else:
                places = asked.task.pool_rows(asked.task.train_idx[seed][:labels])
            modality = asked.task.modality
            wordings = asked.instruction.sample_phrasings(len(places), seed + 1000 * n)
            examples[modality] += asked.examples(self.encoder, places, wordings)
            capacity[modality] += max(asked.task.config.label_budgets)
        made = {
            modality: pack_examples(own, self.model, self.lengths[modality], share_rows=False)
            for modality, own in examples.items()
        }
        made = {
            modality: each | {"prefix": prefix_lengths(each)} for modality, each in made.items()
        }
        config = dataclasses.replace(self.config, learning_rate=setting["learning_rate"])
        return instruction_tune(
            self.start(seed), made, self.model, config, seed=seed, pad_to=capacity
        )

    @functools.cached_property
    def lengths(self) -> dict[str, int]:
        """Pieces in a row of each format: as its longest example, in any wording, rounded up."""
        longest = collections.Counter()
        for asked in self.tasks.values():
            modality, labelled = asked.task.modality, range(len(asked.task.labeled_pool))
            for wording in asked.instruction.train_phrasings:
                made = asked.examples(self.encoder, labelled, [wording] * len(labelled))
                longest[modality] = max(longest[modality], *(len(row["answer"]) for row in made))
        return {
            modality: min(-(-length // _ROUND) * _ROUND, self.encoder.max_length)
            for modality, length in longest.items()
        }

    def flops(self, labels: int) -> float:
        """Of tuning, shared out over the tasks."""
        formats = collections.Counter(asked.task.modality for asked in self.tasks.values())
        of_a_step = sum(
            share * flops.train_flops(self.model, self.lengths[modality], num_predictions=4)
            for modality, share in rows_per_group(formats, self.config.batch_size).items()
        )
        updates = self.config.num_steps(labels * len(self.tasks))
        return updates * of_a_step / len(self.tasks)


@dataclasses.dataclass(frozen=True, eq=False)
class InstructionTunedArm:
    """A follower's way with one of its tasks; see `fm.study.adaptation.Arm`."""

    models: InstructionTunedModels
    name: str

    def grid(self) -> list[HParams]:
        """Learning rates."""
        rates = self.models.learning_rates
        return [{"method": "instruct", "learning_rate": rate} for rate in rates]

    def validate(self, drawn: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Each setting's metric on the labels that one fold holds out of every task at once."""
        asked = self.models.tasks[self.name]
        held = self.models.places(self.name, len(drawn), seed)[1]
        trials = []
        for setting in self.grid():
            params = self.models.tuned_params(len(drawn), seed, setting, part=True)
            answers = asked.predict(params, self.models.encoder, held)
            trials.append({"config": setting, "validation": self._metric(asked, answers, held)})
        return trials

    def fit_predict(self, drawn, labels, seed, setting) -> np.ndarray:
        """Answers to the test items, asked in words held out from training."""
        asked = self.models.tasks[self.name]
        params = self.models.tuned_params(len(drawn), seed, setting)
        return asked.predict(params, self.models.encoder, asked.test)

    def fit_flops(self, labels: int, setting: HParams) -> float:
        """Its share of tuning one network for all tasks."""
        return self.models.flops(labels)

    def _metric(self, asked: InstructedTask, answers: np.ndarray, held: np.ndarray) -> float:
        task = asked.task
        split = subset(task.dataset.train, task.labeled_pool[held])
        return float(task_types.scores(answers[None], split, task.task_type).mean())


ResultRow = dict[str, Any]
_ITEMS = 100


def instruction_following_rows(
    follower: InstructionTunedModels, labels: int, seeds: int
) -> list[ResultRow]:
    """What becomes of each task's metric when it is asked otherwise.

    Conditions: `held out` (a wording never trained on), `trained` (one that was), `dropped` (no
    instruction) and `swapped` (that of another task of the same format, if there is one; one of
    classes before one answered freely). Tasks of classes choose among the answers of all tasks of
    the format; `answers_of_this_task` is the share of this one's.

    Args:
      follower: the network of all tasks, tuned with the first of its settings.
      labels: of each task, as it was tuned.
      seeds: means are over the first so many.
    """
    made = []
    for name, asked in follower.tasks.items():
        places = asked.test[:_ITEMS]
        others = [
            other
            for other in follower.tasks.values()
            if other.task.modality == asked.task.modality and other is not asked
        ]
        conditions = {
            "held out": asked.instruction.held_out_phrasing,
            "trained": asked.instruction.train_phrasings[0],
            "dropped": "",
        }
        if others:
            swapped = min(others, key=lambda other: other.instruction.answers is None)
            conditions["swapped"] = swapped.instruction.held_out_phrasing
        values: dict[str, list[float]] = {condition: [] for condition in conditions}
        shares: dict[str, list[float]] = {condition: [] for condition in conditions}
        for seed in range(seeds):
            setting = {"learning_rate": follower.learning_rates[0]}
            params = follower.tuned_params(labels, seed, setting)
            for condition, wording in conditions.items():
                if asked.instruction.answers:
                    answers = _likeliest(params, follower, name, places, wording)
                else:
                    answers = asked.predict(params, follower.encoder, places, wording)
                test = subset(asked.task.test, np.arange(len(places)))
                scored = task_types.scores(answers[None], test, asked.task.task_type)
                values[condition].append(float(scored.mean()))
                if asked.instruction.answers and others:
                    own = answers < len(asked.instruction.answers)
                    shares[condition].append(float(np.mean(own)))
        for condition in conditions:
            made.append(
                {
                    "task": name,
                    "labels": labels,
                    "condition": condition,
                    "wording": conditions[condition],
                    "metric": task_types.METRICS[asked.task.task_type],
                    "value": float(np.mean(values[condition])),
                    "answers_of_this_task": float(np.mean(shares[condition]))
                    if shares[condition]
                    else None,
                    "items": len(places),
                    "seeds": seeds,
                }
            )
    return made


def _likeliest(
    params: dict, follower: InstructionTunedModels, name: str, places: np.ndarray, wording: str
) -> np.ndarray:
    """The answer to each input, int [N], of those of all tasks of classes, this task's first."""
    asked = follower.tasks[name]
    own = list(asked.instruction.answers or ())
    every = own + [
        answer
        for other in follower.tasks.values()
        if other is not asked and other.task.modality == asked.task.modality
        for answer in other.instruction.answers or ()
        if answer not in own
    ]
    found = instruction_tuning.loglikelihood(
        params,
        follower.encoder,
        [wording] * len(places),
        [asked.inputs[n] for n in places],
        every,
        bidirectional_prefix=True,
    )
    return found.argmax(axis=1)
