"""Named entities: tags made well-formed, and how many entities are found, by `seqeval`.

Strict IOB2 (Ramshaw and Marcus 1995; Tjong Kim Sang and De Meulder 2003): an entity begins with
B-type and goes on with I-type; it is found when its kind, first and last word are all right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2, Entities

Tags = Sequence[Sequence[str]]
# Kind, first word, and the word after the last.
Span = tuple[str, int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class EntityCounts:
    """Entities of each sentence: found rightly, predicted, and really there, int [N] each."""

    correct: np.ndarray
    predicted: np.ndarray
    gold: np.ndarray

    def f1(self) -> float:
        """Micro-averaged F1 over all sentences; 0 where nothing is there nor predicted."""
        below = int(np.sum(self.predicted + self.gold))
        return 2.0 * int(np.sum(self.correct)) / below if below else 0.0

    def f1_terms(self) -> tuple[np.ndarray, np.ndarray]:
        """What F1 is the ratio of, sentence by sentence: 2 right, and predicted + gold.

        For `fm.evaluation.statistics.linearized_ratio`, which has intervals over sentences.
        """
        return 2 * self.correct, self.predicted + self.gold


def entity_spans(tags: Tags) -> list[set[Span]]:
    """The entities of each sentence; I- where no entity of its kind goes on is none."""
    found = Entities([list(own) for own in tags], IOB2).entities
    return [{(each.tag, each.start, each.end) for each in own} for own in found]


def count_entities(gold: Tags, predicted: Tags) -> EntityCounts:
    """Counts entities sentence by sentence.

    Raises:
      ValueError: the two differ in sentences or words.
    """
    lengths = [list(map(len, gold)), list(map(len, predicted))]
    if lengths[0] != lengths[1]:
        raise ValueError("predicted tags do not match the sentences in number or length")
    return count_matches(entity_spans(gold), entity_spans(predicted))


def count_matches(gold: Sequence[set], predicted: Sequence[set]) -> EntityCounts:
    """Counts of sets of entities, whatever stands for one (a span, or kind and surface form)."""
    both = list(zip(gold, predicted, strict=True))
    return EntityCounts(
        correct=np.array([len(real & guess) for real, guess in both], int),
        predicted=np.array([len(guess) for _, guess in both], int),
        gold=np.array([len(real) for real, _ in both], int),
    )


def entity_f1(gold: Tags, predicted: Tags) -> float:
    """Micro-averaged F1 as `seqeval` has it, strict; equal to `counts(...).f1()`."""
    both = [[list(own) for own in tags] for tags in (gold, predicted)]
    how: dict[str, Any] = {"average": "micro", "mode": "strict", "scheme": IOB2}
    # Its own annotation of this one is wrong.
    score: Any = f1_score(*both, **how, zero_division=0)  # pyright: ignore[reportArgumentType]
    return float(score)


class TagPredictor(Protocol):
    """What has been fitted to sentences."""

    def predict(self, sentences: Sequence[Any]) -> list[list[str]]:
        """Well-formed tags for the words of each."""
        ...


def cross_validate(
    fit: Callable[[Sequence[Any], Tags, dict[str, Any]], TagPredictor],
    sentences: Sequence[Any],
    tags: Tags,
    configs: Sequence[dict[str, Any]],
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[dict[str, Any]]:
    """F1 of every setting over all the sentences the folds hold out.

    Args:
      fit: (sentences, their tags, setting) to a predictor: `fm.evaluation.ner_baseline.fit`, or
        `fm.adaptation.token_classification.fit_tag_probe`.
      sentences: words, or features of words, of each.
      tags: a tag for each word.
      configs: the settings.
      folds: (train, validation) indices of `fm.evaluation.model_selection.make_folds` over `strata`.

    Returns:
      One ``{"config": …, "validation": F1}`` per setting, in the order given.
    """
    held_out = [tags[int(n)] for _, validation in folds for n in validation]
    trials = []
    for config in configs:
        guessed: list[list[str]] = []
        for train, validation in folds:
            model = fit([sentences[n] for n in train], [tags[int(n)] for n in train], config)
            guessed += model.predict([sentences[n] for n in validation])
        trials.append({"config": config, "validation": count_entities(held_out, guessed).f1()})
    return trials


def viterbi_decode(scores_WT: np.ndarray, tags: Sequence[str]) -> list[str]:
    """The best well-formed tags of one sentence (Viterbi 1967).

    I-type may only follow B-type or I-type.

    Args:
      scores_WT: log probabilities (up to a constant for each word) of T tags for W words.
      tags: names of the T tags.

    Returns:
      W tags, of the highest sum of scores among those that are well-formed.
    """
    W = len(scores_WT)
    if not W:
        return []
    allowed_TT, first_T = _allowed(tuple(tags))
    best_T = scores_WT[0] + first_T
    back_WT = np.zeros((W, len(tags)), int)
    for w in range(1, W):
        through_TT = best_T[:, None] + allowed_TT
        back_WT[w] = np.argmax(through_TT, axis=0)
        best_T = np.max(through_TT, axis=0) + scores_WT[w]
    path = [int(np.argmax(best_T))]
    for w in range(W - 1, 0, -1):
        path.append(int(back_WT[w, path[-1]]))
    return [tags[tag] for tag in reversed(path)]


def _allowed(tags: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """0 where a tag may follow another [T, T], or stand first [T]; else minus infinity."""
    inside = np.array([tag.startswith("I-") for tag in tags])
    kinds = np.array([tag[2:] for tag in tags])
    going_on = (kinds[:, None] == kinds) & np.array([tag != "O" for tag in tags])[:, None]
    forbidden = inside & ~going_on
    return np.where(forbidden, -np.inf, 0.0), np.where(inside, -np.inf, 0.0)


def entity_strata(tags: Tags) -> np.ndarray:
    """A number for each sentence by which to draw or fold evenly, int [N].

    It stands for the sentence's kind of entity that the fewest sentences have; 0 for no entity.
    """
    kinds = [{tag[2:] for tag in own if tag != "O"} for own in tags]
    names = sorted(set().union(*kinds))
    times = {name: sum(name in own for own in kinds) for name in names}
    order = {name: number for number, name in enumerate(names, start=1)}
    return np.array(
        [order[min(own, key=lambda name: (times[name], name))] if own else 0 for own in kinds], int
    )
