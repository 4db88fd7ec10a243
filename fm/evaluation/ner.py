"""Named entities: well-formed tags, and how many entities are found, by `seqeval`.

Strict IOB2 (Ramshaw and Marcus 1995; Tjong Kim Sang and De Meulder 2003): an entity begins with
B-type and continues with I-type; it is found when its type, first and last word are all right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2, Entities

Tags = Sequence[Sequence[str]]
# Type, first word, and the word after the last.
Span = tuple[str, int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class EntityCounts:
    """Numbers of correct, predicted and gold entities in each sentence, int [N] each."""

    correct: np.ndarray
    predicted: np.ndarray
    gold: np.ndarray

    def f1(self) -> float:
        """Returns micro-averaged F1 over all sentences; 0 if there are no entities at all."""
        denominator = int(np.sum(self.predicted + self.gold))
        return 2.0 * int(np.sum(self.correct)) / denominator if denominator else 0.0

    def f1_terms(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns each sentence's numerator and denominator of F1: 2 correct, predicted + gold.

        For `fm.evaluation.statistics.linearized_ratio`, which gives intervals over sentences.
        """
        return 2 * self.correct, self.predicted + self.gold


def entity_spans(tags: Tags) -> list[set[Span]]:
    """Returns the entity spans of each sentence's BIO tags; a stray I- tag starts no entity."""
    found = Entities([list(own) for own in tags], IOB2).entities
    return [{(each.tag, each.start, each.end) for each in own} for own in found]


def count_entities(gold: Tags, predicted: Tags) -> EntityCounts:
    """Counts the correct, predicted and gold entities of each sentence, from BIO tags.

    Raises:
      ValueError: the two differ in sentences or words.
    """
    if list(map(len, gold)) != list(map(len, predicted)):
        raise ValueError("predicted tags do not match the sentences in number or length")
    return count_matches(entity_spans(gold), entity_spans(predicted))


def count_matches(gold: Sequence[set], predicted: Sequence[set]) -> EntityCounts:
    """Returns the number of correct, predicted and gold entities of each sentence."""
    both = list(zip(gold, predicted, strict=True))
    return EntityCounts(
        correct=np.array([len(real & guess) for real, guess in both], int),
        predicted=np.array([len(guess) for _, guess in both], int),
        gold=np.array([len(real) for real, _ in both], int),
    )


def entity_f1(gold: Tags, predicted: Tags) -> float:
    """Returns the strict micro-averaged entity F1 of BIO tags, computed by `seqeval`."""
    both = [[list(own) for own in tags] for tags in (gold, predicted)]
    options: dict[str, Any] = {"average": "micro", "mode": "strict", "scheme": IOB2}
    # seqeval's own annotation of `f1_score` is wrong.
    score: Any = f1_score(*both, **options, zero_division=0)  # pyright: ignore[reportArgumentType]
    return float(score)


class TagPredictor(Protocol):
    """Protocol of a fitted tagger: predicts the tags of sentences."""

    def predict(self, sentences: Sequence[Any]) -> list[list[str]]:
        """Returns valid BIO tags for the words of each sentence."""
        ...


def cross_validate(
    fit: Callable[[Sequence[Any], Tags, dict[str, Any]], TagPredictor],
    sentences: Sequence[Any],
    tags: Tags,
    configs: Sequence[dict[str, Any]],
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
) -> list[dict[str, Any]]:
    """Returns each hyper-parameter setting with its entity F1 over all held-out folds.

    Args:
      fit: (sentences, their tags, configuration) to a predictor, such as
        `fm.evaluation.ner_baseline.fit`.
      sentences: words, or features of words, of each.
      tags: a tag for each word.
      configs: hyper-parameters to try.
      folds: (train, validation) indices of `fm.evaluation.model_selection.make_folds` over
        `entity_strata`.

    Returns:
      One ``{"config": …, "validation": F1}`` per configuration, in the order given.
    """
    held_out = [tags[int(n)] for _, validation in folds for n in validation]
    trials = []
    for config in configs:
        predicted: list[list[str]] = []
        for train, validation in folds:
            model = fit([sentences[n] for n in train], [tags[int(n)] for n in train], config)
            predicted += model.predict([sentences[n] for n in validation])
        trials.append({"config": config, "validation": count_entities(held_out, predicted).f1()})
    return trials


def viterbi_decode(scores_WT: np.ndarray, tags: Sequence[str]) -> list[str]:
    """Returns the highest-scoring valid BIO tag sequence of a sentence (Viterbi 1967).

    I-type may only follow B-type or I-type.

    Args:
      scores_WT: log probabilities (up to a constant for each word) of T tags for W words.
      tags: names of the T tags.

    Returns:
      W tags.
    """
    W = len(scores_WT)
    if not W:
        return []
    transition_TT, first_T = _transitions(tuple(tags))
    best_T = scores_WT[0] + first_T
    back_WT = np.zeros((W, len(tags)), int)
    for w in range(1, W):
        path_TT = best_T[:, None] + transition_TT
        back_WT[w] = np.argmax(path_TT, axis=0)
        best_T = np.max(path_TT, axis=0) + scores_WT[w]
    path = [int(np.argmax(best_T))]
    for w in range(W - 1, 0, -1):
        path.append(int(back_WT[w, path[-1]]))
    return [tags[tag] for tag in reversed(path)]


def _transitions(tags: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """0 where a tag may follow another [T, T], or stand first [T]; else minus infinity."""
    inside = np.array([tag.startswith("I-") for tag in tags])
    types = np.array([tag[2:] for tag in tags])
    continues = (types[:, None] == types) & np.array([tag != "O" for tag in tags])[:, None]
    forbidden = inside & ~continues
    return np.where(forbidden, -np.inf, 0.0), np.where(inside, -np.inf, 0.0)


def entity_strata(tags: Tags) -> np.ndarray:
    """Returns a stratum per sentence for stratified draws: its rarest entity type, int [N].

    It stands for the sentence's entity type that the fewest sentences have; 0 for no entity.
    """
    types = [{tag[2:] for tag in own if tag != "O"} for own in tags]
    names = sorted(set().union(*types))
    frequency = {name: sum(name in own for own in types) for name in names}
    order = {name: number for number, name in enumerate(names, start=1)}
    return np.array(
        [order[min(own, key=lambda name: (frequency[name], name))] if own else 0 for own in types],
        int,
    )
