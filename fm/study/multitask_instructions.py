"""Tasks as instructions, and models tuned to follow them: one for all tasks, or for one task."""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fm.adaptation import instruction_tuning
from fm.adaptation.finetune import FinetuneConfig
from fm.adaptation.instruction_tuning import (
    InstructionEncoder,
    InstructionPhrasings,
    continuous_segments,
    instruction_tune,
    pack_examples,
    prefix_lengths,
    rows_per_group,
)
from fm.data.datasets import subset
from fm.data.packing import Row
from fm.evaluation.model_selection import make_folds
from fm.model import flops
from fm.model.config import ModelConfig
from fm.model.transformer import init
from fm.study.adaptation import HParams, Predictions, Trial
from fm.study.processing import Processor
from fm.study.task import Task
from fm.study.task_registry import task_spec_or_default

# Number of labels, seed, whether a validation fold was held out, learning rate.
Key = tuple[int, int, bool, float]
_ROUND_TO = 16
# Test items and seeds of the table of changed instructions.
_MAX_ITEMS, _MAX_SEEDS = 100, 3


@dataclasses.dataclass(frozen=True, eq=False)
class InstructedTask:
    """A task converted for instruction tuning: phrasings, encoded inputs and answer texts.

    Attributes:
      task: the task.
      instruction: phrasings and, for classes, answers.
      inputs: texts, or segments of patches, of the labeled pool and then the test items.
      answers: right answers in words.
    """

    task: Task
    instruction: InstructionPhrasings
    inputs: list[Any]
    answers: list[str]

    @property
    def test_idx(self) -> np.ndarray:
        """Returns the indices of the test items."""
        return np.arange(len(self.task.labeled_pool), len(self.inputs))

    def encode(
        self, encoder: InstructionEncoder, idx: Sequence[int] | np.ndarray, phrasings: Sequence[str]
    ) -> list[Row]:
        """Returns examples `idx` with their answers, each in its phrasing, to train on."""
        inputs = [self.inputs[n] for n in idx]
        return encoder.encode_examples(phrasings, inputs, [self.answers[n] for n in idx])

    def predict(
        self,
        params: dict,
        encoder: InstructionEncoder,
        idx: np.ndarray,
        phrasing: str | None = None,
    ) -> np.ndarray:
        """Returns a model's predictions for examples `idx`, [N, ...] as the task type scores them.

        Args:
          params: of the model.
          encoder: its tokenizer and sizes.
          idx: of the examples.
          phrasing: of the instruction; by default the one held out from training.
        """
        held_out = self.instruction.held_out_phrasing
        phrasings = [held_out if phrasing is None else phrasing] * len(idx)
        inputs = [self.inputs[n] for n in idx]
        if self.instruction.answers is not None:
            answers = self.instruction.answers
            scores = instruction_tuning.loglikelihood(
                params, encoder, phrasings, inputs, answers, bidirectional_prefix=True
            )
            return scores.argmax(axis=1)
        generated = instruction_tuning.generate_until(
            params,
            encoder,
            phrasings,
            inputs,
            max_new_tokens=self.task.task_type.max_answer_tokens,
            bidirectional_prefix=True,
        )
        return self.task.task_type.parse(self.task, generated, idx)


def build_instructed_task(task: Task, processor: Processor) -> InstructedTask:
    """Converts a task for instruction tuning: phrasings, text or patch inputs, and answer texts."""
    classes = task.dataset.classes if task.task_type.predicts_classes else None
    instruction = task_spec_or_default(task.name).instruction(classes)
    if task.is_text:
        inputs: list[Any] = task.texts()
    else:
        layout = processor.layouts[task.modality]
        patches = layout.to_patches(task.arrays())
        inputs = list(continuous_segments(task.modality, patches, layout.positions()))
    answers = task.task_type.answers(task, instruction.answers)
    return InstructedTask(task, instruction, inputs, answers)


@dataclasses.dataclass(eq=False)
class InstructionTunedModels:
    """Trains on demand one instruction-tuned model per seed and label budget, on all tasks.

    Attributes:
      checkpoint: initial parameters; None for fresh ones.
      encoder: tokenizer, architecture and maximum length.
      config: the learning rate is replaced.
      learning_rates: the grid.
      tasks: by name.
      keeps_params: whether the parameters that `changed_instruction_rows` asks for are kept. All
        others are used for all predictions at once and dropped: a study tunes dozens of sets.
    """

    checkpoint: dict | None
    encoder: InstructionEncoder
    config: FinetuneConfig
    learning_rates: tuple[float, ...]
    tasks: dict[str, InstructedTask]
    keeps_params: bool = False
    _kept: dict[Key, dict] = dataclasses.field(default_factory=dict)
    _predictions: dict[Key, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    _cpu_seconds: dict[int, float] = dataclasses.field(default_factory=dict)
    # Seeds run in parallel threads; each model is tuned once.
    _locks: dict[Key, threading.Lock] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(threading.Lock)
    )

    @property
    def model_config(self) -> ModelConfig:
        """Architecture."""
        return self.encoder.model_config

    def initial_params(self, seed: int) -> dict:
        """Returns the parameters a seed starts from."""
        if self.checkpoint is not None:
            return self.checkpoint
        return init(jax.random.key(1000 + seed), self.model_config)

    def tuned_params(
        self, num_labels: int, seed: int, hparams: HParams, *, hold_out: bool = False
    ) -> dict:
        """Returns parameters tuned on `num_labels` examples of every task.

        Args:
          num_labels: of each task.
          seed: whose labels.
          hparams: the learning rate.
          hold_out: whether to leave out the examples of the validation fold.
        """
        key = num_labels, seed, hold_out, hparams["learning_rate"]
        if key in self._kept:
            return self._kept[key]
        params = self._tune(num_labels, seed, hparams, hold_out)
        if self.keeps_params and self._is_asked_again(key):
            self._kept[key] = params
        return params

    def _is_asked_again(self, key: Key) -> bool:
        num_labels, seed, hold_out, learning_rate = key
        largest = max(max(each.task.config.label_budgets) for each in self.tasks.values())
        first = (largest, False, self.learning_rates[0])
        return (num_labels, hold_out, learning_rate) == first and seed < _MAX_SEEDS

    def predictions(
        self, name: str, num_labels: int, seed: int, hparams: HParams, *, hold_out: bool = False
    ) -> np.ndarray:
        """Returns predictions of a task's test items, or of its validation fold if `hold_out`.

        The first call tunes a model and predicts for all tasks.
        """
        key = num_labels, seed, hold_out, hparams["learning_rate"]
        with self._locks[key]:
            if key not in self._predictions:
                params = self.tuned_params(num_labels, seed, hparams, hold_out=hold_out)
                predictions = {}
                for each, instructed in self.tasks.items():
                    idx = instructed.test_idx
                    if hold_out:
                        idx = self.fold(each, num_labels, seed)[1]
                    predictions[each] = instructed.predict(params, self.encoder, idx)
                self._predictions[key] = predictions
        return self._predictions[key][name]

    def share_cpu_seconds(self, num_labels: int, cpu_seconds: float) -> float:
        """Returns a task's share of the CPU seconds of tuning and predicting for all tasks.

        Args:
          num_labels: the label budget.
          cpu_seconds: measured for this task; counts for the first one asked, which tunes.
        """
        return self._cpu_seconds.setdefault(num_labels, cpu_seconds / len(self.tasks))

    def fold(self, name: str, num_labels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns indices of a task's examples to fit to and to validate on."""
        task = self.tasks[name].task
        train_idx = task.train_idx[seed][:num_labels]
        fit_idx, held_out = make_folds(task.strata[train_idx], seed=seed)[0]
        rows = task.pool_rows(train_idx)
        return rows[fit_idx], rows[held_out]

    def _tune(self, num_labels: int, seed: int, hparams: HParams, hold_out: bool) -> dict:
        examples, pad_to = collections.defaultdict(list), collections.Counter()
        for n, (name, instructed) in enumerate(self.tasks.items()):
            task = instructed.task
            idx = task.pool_rows(task.train_idx[seed][:num_labels])
            if hold_out:
                idx, _ = self.fold(name, num_labels, seed)
            phrasings = instructed.instruction.sample_phrasings(len(idx), seed + 1000 * n)
            examples[task.modality] += instructed.encode(self.encoder, idx, phrasings)
            pad_to[task.modality] += max(task.config.label_budgets)
        groups = {}
        for modality, own in examples.items():
            length = self.row_lengths[modality]
            rows = pack_examples(own, self.model_config, length, share_rows=False)
            groups[modality] = rows | {"prefix": prefix_lengths(rows)}
        config = dataclasses.replace(self.config, learning_rate=hparams["learning_rate"])
        return instruction_tune(
            self.initial_params(seed), groups, self.model_config, config, seed=seed, pad_to=pad_to
        )

    @functools.cached_property
    def row_lengths(self) -> dict[str, int]:
        """Returns tokens per row by modality: the longest example in any phrasing, rounded up."""
        longest = collections.Counter()
        for instructed in self.tasks.values():
            modality, idx = instructed.task.modality, range(len(instructed.task.labeled_pool))
            for phrasing in instructed.instruction.train_phrasings:
                rows = instructed.encode(self.encoder, idx, [phrasing] * len(idx))
                longest[modality] = max(longest[modality], *(len(row["answer"]) for row in rows))
        return {
            modality: min(-(-length // _ROUND_TO) * _ROUND_TO, self.encoder.max_length)
            for modality, length in longest.items()
        }

    def flops_per_task(self, num_labels: int) -> float:
        """Returns the FLOPs of tuning, divided by the number of tasks."""
        modalities = collections.Counter(each.task.modality for each in self.tasks.values())
        step_flops = sum(
            rows * flops.train_flops(self.model_config, self.row_lengths[name], num_predictions=4)
            for name, rows in rows_per_group(modalities, self.config.batch_size).items()
        )
        steps = self.config.num_steps(num_labels * len(self.tasks))
        return steps * step_flops / len(self.tasks)


@dataclasses.dataclass(frozen=True, eq=False)
class InstructionTunedArm:
    """The arm that evaluates shared instruction-tuned models on one of their tasks."""

    models: InstructionTunedModels
    name: str

    def prepare(self, seeds: int) -> float:
        """Returns 0: nothing is shared by the label budgets."""
        return 0.0

    def search(self, train_idx: np.ndarray, labels: np.ndarray, seed: int) -> list[Trial]:
        """Returns each learning rate with its metric on a fold held out from joint tuning."""
        rates = self.models.learning_rates
        grid = [{"method": "instruct", "learning_rate": rate} for rate in rates]
        if len(grid) == 1:
            return [{"config": grid[0], "validation": None}]
        task = self.models.tasks[self.name].task
        _, held_out = self.models.fold(self.name, len(train_idx), seed)
        split = subset(task.dataset.train, task.labeled_pool[held_out])
        trials = []
        for hparams in grid:
            predictions = self.models.predictions(
                self.name, len(train_idx), seed, hparams, hold_out=True
            )
            metric = float(task.task_type.scores(predictions[None], split).mean())
            trials.append({"config": hparams, "validation": metric})
        return trials

    def fit_predict(
        self, train_idx: np.ndarray, labels: np.ndarray, seed: int, hparams: HParams
    ) -> Predictions:
        """Returns test predictions of the model tuned on all tasks, under an unseen phrasing."""
        return Predictions(self.models.predictions(self.name, len(train_idx), seed, hparams))

    def share_cpu_seconds(self, num_labels: int, cpu_seconds: float) -> float:
        """Returns the task's share of the CPU seconds of tuning one model for all tasks."""
        return self.models.share_cpu_seconds(num_labels, cpu_seconds)

    def fit_flops(self, num_labels: int, hparams: HParams) -> float:
        """Returns the task's share of the FLOPs of tuning one model for all tasks."""
        return self.models.flops_per_task(num_labels)


def changed_instruction_rows(
    models: InstructionTunedModels, num_labels: int, seeds: int
) -> list[dict[str, Any]]:
    """Returns each task's metric under changed instructions, such as unseen or missing ones.

    Conditions: "held out" (a phrasing never trained on), "trained", "dropped" (no instruction) and
    "swapped" (the instruction of another task of the same modality, if there is one; preferably of
    a classification task). Classification tasks choose among the answers of all such tasks of the
    modality; `answers_of_this_task` is the share of choices that are an answer of this task.

    Args:
      models: of all tasks; the first learning rate is used.
      num_labels: of each task, as tuned.
      seeds: of the study.
    """
    seeds = min(seeds, _MAX_SEEDS)
    rows = []
    for name, instructed in models.tasks.items():
        task, answers = instructed.task, instructed.instruction.answers
        idx = instructed.test_idx[:_MAX_ITEMS]
        test = subset(task.test, np.arange(len(idx)))
        others = [
            other
            for other in models.tasks.values()
            if other.task.modality == task.modality and other is not instructed
        ]
        conditions = {
            "held out": instructed.instruction.held_out_phrasing,
            "trained": instructed.instruction.train_phrasings[0],
            "dropped": "",
        }
        if others:
            swapped = min(others, key=lambda other: other.instruction.answers is None)
            conditions["swapped"] = swapped.instruction.held_out_phrasing
        for condition, phrasing in conditions.items():
            values, own_shares = [], []
            for seed in range(seeds):
                hparams = {"learning_rate": models.learning_rates[0]}
                params = models.tuned_params(num_labels, seed, hparams)
                if answers:
                    predictions = _choose_any_answer(params, models, name, idx, phrasing)
                else:
                    predictions = instructed.predict(params, models.encoder, idx, phrasing)
                values.append(float(task.task_type.scores(predictions[None], test).mean()))
                if answers and others:
                    own_shares.append(float(np.mean(predictions < len(answers))))
            rows.append(
                {
                    "task": name,
                    "num_labels": num_labels,
                    "condition": condition,
                    "wording": phrasing,
                    "metric": task.task_type.metric,
                    "value": float(np.mean(values)),
                    "answers_of_this_task": float(np.mean(own_shares)) if own_shares else None,
                    "items": len(idx),
                    "seeds": seeds,
                }
            )
    return rows


def _choose_any_answer(
    params: dict, models: InstructionTunedModels, name: str, idx: np.ndarray, phrasing: str
) -> np.ndarray:
    """Returns the likeliest answer, int [N], among this task's and then all others' answers."""
    instructed = models.tasks[name]
    own = list(instructed.instruction.answers or ())
    candidates = own + [
        answer
        for other in models.tasks.values()
        if other is not instructed and other.task.modality == instructed.task.modality
        for answer in other.instruction.answers or ()
        if answer not in own
    ]
    scores = instruction_tuning.loglikelihood(
        params,
        models.encoder,
        [phrasing] * len(idx),
        [instructed.inputs[n] for n in idx],
        candidates,
        bidirectional_prefix=True,
    )
    return scores.argmax(axis=1)
