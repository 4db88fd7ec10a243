"""A task put in words: every example as an instruction, an input and an answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from fm.data.mixed import Row
from fm.evaluation.entities import counts
from fm.evaluation.summaries import chrf
from fm.study.entities import sentences
from fm.study.reading import Reader
from fm.study.tasks import Task
from fm.study.unify.wordings import instruction
from fm.transfer import answering, entity_answers
from fm.transfer.instructions import Asker, Instruction, segments

# Tokens written at most: of a list of names, and of a summary.
_MOST = {"entities": 24, "text": 20}


@dataclasses.dataclass(frozen=True, eq=False)
class AskedTask:
    """A task whose examples are those labelled, then the test items.

    Attributes:
      task: the task.
      words: how it is asked.
      inputs: texts or segments of pieces.
      answers: what is right.
    """

    task: Task
    words: Instruction
    inputs: list[Any]
    answers: list[str]

    @property
    def test(self) -> np.ndarray:
        """Places of the test items."""
        return np.arange(len(self.task.touched), len(self.inputs))

    def examples(
        self, asker: Asker, places: Sequence[int] | np.ndarray, wordings: Sequence[str]
    ) -> list[Row]:
        """Examples to learn from, each asked in its wording."""
        return asker.examples(
            wordings,
            [self.inputs[n] for n in places],
            [self.answers[n] for n in places],
        )

    def answered(
        self, params: dict, asker: Asker, places: np.ndarray, wording: str | None = None
    ) -> np.ndarray:
        """Answers of a model as `fm.study.kinds` has them, int or float [N, ...].

        Args:
          params: of the model.
          asker: its tokenizer and sizes.
          places: of the examples.
          wording: how they are asked; the one held out from training unless given.
        """
        wordings = [self.words.held_out if wording is None else wording] * len(places)
        inputs = [self.inputs[n] for n in places]
        if self.words.answers is not None:
            found = answering.closed(
                params, asker, wordings, inputs, self.words.answers, both_ways=True
            )
            return found.argmax(axis=1)
        most = _MOST[self.task.kind]
        written = answering.write(params, asker, wordings, inputs, most=most, both_ways=True)
        return self.judged(written, places)

    def judged(self, written: Sequence[str], places: np.ndarray) -> np.ndarray:
        """Free answers as numbers: counts of entities, int [N, 3], or chrF, float [N]."""
        if self.task.kind == "text":
            return chrf(written, [self.answers[n] for n in places])
        words, gold = sentences(self.task)
        kinds = {tag[2:] for tag in self.task.dataset.info["tags"] if tag != "O"}
        guessed = [
            entity_answers.tags(words[n], entity_answers.read(answer, kinds))
            for n, answer in zip(places, written, strict=True)
        ]
        found = counts([gold[n] for n in places], guessed)
        return np.stack([found.right, found.predicted, found.gold], axis=-1)


def ask(task: Task, reads: Reader) -> AskedTask:
    """A task in words, its inputs cut as a model reads them."""
    words = instruction(task.name, task.kind, task.dataset.classes)
    train, test = task.dataset.train, task.test
    every = range(len(test))
    if task.text:
        inputs: list[Any] = train.texts(task.touched) + test.texts(every)
    else:
        layout = reads.layouts[task.modality]
        arrays = [np.asarray(train.inputs(task.touched)), np.asarray(test.inputs(every))]
        pieces = layout.cut(np.concatenate(arrays))
        inputs = list(segments(task.modality, pieces, layout.positions()))
    if words.answers is not None:
        labels = [*np.asarray(train.labels)[task.touched], *np.asarray(test.labels)]
        return AskedTask(task, words, inputs, [words.answers[label] for label in labels])
    if task.kind == "text":
        return AskedTask(task, words, inputs, train.targets(task.touched) + test.targets(every))
    answers = list(map(entity_answers.write, *sentences(task)))
    return AskedTask(task, words, inputs, answers)
