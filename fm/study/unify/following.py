"""Whether one network follows what it is asked: the instruction dropped, and swapped."""

from __future__ import annotations

from typing import Any

import numpy as np

from fm.data.splits import subset
from fm.study import kinds
from fm.study.unify.follower import Follower
from fm.transfer import answering

Row = dict[str, Any]
_ITEMS = 100


def rows(follower: Follower, labels: int, seeds: int) -> list[Row]:
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
            "held out": asked.words.held_out,
            "trained": asked.words.trained[0],
            "dropped": "",
        }
        if others:
            swapped = min(others, key=lambda other: other.words.answers is None)
            conditions["swapped"] = swapped.words.held_out
        values: dict[str, list[float]] = {condition: [] for condition in conditions}
        shares: dict[str, list[float]] = {condition: [] for condition in conditions}
        for seed in range(seeds):
            setting = {"learning_rate": follower.learning_rates[0]}
            params = follower.tuned(labels, seed, setting)
            for condition, wording in conditions.items():
                if asked.words.answers:
                    answers = _likeliest(params, follower, name, places, wording)
                else:
                    answers = asked.answered(params, follower.asker, places, wording)
                test = subset(asked.task.test, np.arange(len(places)))
                scored = kinds.scores(answers[None], test, asked.task.kind)
                values[condition].append(float(scored.mean()))
                if asked.words.answers and others:
                    own = answers < len(asked.words.answers)
                    shares[condition].append(float(np.mean(own)))
        for condition in conditions:
            made.append(
                {
                    "task": name,
                    "labels": labels,
                    "condition": condition,
                    "wording": conditions[condition],
                    "metric": kinds.METRICS[asked.task.kind],
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
    params: dict, follower: Follower, name: str, places: np.ndarray, wording: str
) -> np.ndarray:
    """The answer to each input, int [N], of those of all tasks of classes, this task's first."""
    asked = follower.tasks[name]
    own = list(asked.words.answers or ())
    every = own + [
        answer
        for other in follower.tasks.values()
        if other is not asked and other.task.modality == asked.task.modality
        for answer in other.words.answers or ()
        if answer not in own
    ]
    found = answering.closed(
        params,
        follower.asker,
        [wording] * len(places),
        [asked.inputs[n] for n in places],
        every,
        both_ways=True,
    )
    return found.argmax(axis=1)
