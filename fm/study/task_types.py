"""What a task asks for (a class, the entities of a text, or a text) and how answers are scored.

Answers are numbers whatever is asked, so that every figure can be computed from them again: the
class guessed; the entities found rightly, predicted and there; how near a text is to the one
wanted.
"""

from __future__ import annotations

import numpy as np

from fm.data.datasets import Dataset, Split
from fm.errors import UserError
from fm.evaluation.ner import entity_strata as entity_strata
from fm.evaluation.statistics import linearized_ratio

METRICS = {"class": "accuracy", "entities": "entity F1", "text": "chrF"}
# What `strata` tell apart.
STRATA_NAMES = {"class": "classes", "entities": "kinds of example", "text": "kinds of example"}


def task_type_of(dataset: Dataset) -> str:
    """One of `METRICS`.

    Raises:
      UserError: the data has nothing to learn, a single class or no entity.
    """
    train = dataset.train
    if train.labels is not None and len(dataset.classes) > 1:
        return "class"
    if "tags" in train.columns and len(dataset.info["tags"]) > 1:
        return "entities"
    if "targets" in train.columns:
        return "text"
    raise UserError(
        f"{dataset.name} has no labels to learn; a task needs at least 2 classes, words with "
        "tags of entities, or texts to write"
    )


def strata(split: Split, task_type: str) -> np.ndarray:
    """Numbers by which labelled examples are drawn and folded evenly, int [N].

    Classes; of tagged sentences the rarest kind of entity in each; of texts to write all the same.
    """
    if task_type == "class":
        return np.asarray(split.labels)
    if task_type == "entities":
        return entity_strata(split.tags(range(len(split))))
    return np.zeros(len(split), int)


def min_labels(dataset: Dataset, task_type: str) -> int:
    """Labels it takes to have one of every class, or one of every of `strata`."""
    return (
        len(dataset.classes)
        if task_type == "class"
        else len(np.unique(strata(dataset.train, task_type)))
    )


def scores(answers: np.ndarray, split: Split, task_type: str) -> np.ndarray:
    """Scores of every seed and item, float [S, N]; their mean over items is the seed's metric.

    Args:
      answers: of S seeds to the N items of `split`: classes int [S, N]; counts int [S, N, 3] of
        entities found rightly, predicted and there; or chrF, 0 to 1, [S, N].
      split: the items.
      task_type: one of `METRICS`.
    """
    if task_type == "class":
        return (answers == np.asarray(split.labels)).astype(float)
    if task_type == "entities":
        right, predicted, gold = np.moveaxis(answers, -1, 0)
        return linearized_ratio(2 * right, predicted + gold)
    return np.asarray(answers, float)


def prediction_rows(
    answers: np.ndarray, split: Split, task_type: str
) -> list[tuple[object, object]]:
    """Truth and answer of every item as a table shows them; see `fm.study.runner`."""
    if task_type == "class":
        return list(zip(np.asarray(split.labels).tolist(), answers.tolist(), strict=True))
    if task_type == "entities":
        return [(gold, f"{right}/{predicted}") for right, predicted, gold in answers.tolist()]
    return [(1, round(float(answer), 6)) for answer in answers]
