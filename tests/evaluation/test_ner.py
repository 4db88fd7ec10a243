import itertools

import numpy as np
import pytest

from fm.evaluation import ner_baseline
from fm.evaluation.model_selection import select_trial
from fm.evaluation.ner import (
    count_entities,
    cross_validate,
    entity_f1,
    entity_spans,
    entity_strata,
    viterbi_decode,
)
from fm.evaluation.statistics import linearized_ratio

TAGS = ("O", "B-a", "I-a", "B-b-c", "I-b-c")


def drawn(seed, sentences=60):
    """Well-formed tags of sentences of 0 to 9 words."""
    random = np.random.default_rng(seed)
    lengths = np.random.default_rng(9).integers(0, 10, sentences)
    return [viterbi_decode(random.gumbel(size=(length, 5)), TAGS) for length in lengths]


def test_spans_are_strict():
    tags = [["B-a", "I-a", "B-a", "O", "I-a"], ["B-b-c", "I-a", "I-b-c"], []]
    assert entity_spans(tags) == [{("a", 0, 2), ("a", 2, 3)}, {("b-c", 0, 1)}, set()]


def test_counts_are_those_of_seqeval():
    gold, predicted = drawn(0), drawn(1)
    found = count_entities(gold, predicted)
    assert 0 < found.f1() == pytest.approx(entity_f1(gold, predicted), abs=1e-12)
    assert found.gold.sum() == sum(tag[0] == "B" for own in gold for tag in own)
    assert entity_f1(gold, gold) == 1.0 == count_entities(gold, gold).f1()
    assert count_entities([["O"]], [["O"]]).f1() == 0.0
    above, below = found.f1_terms()
    scores = linearized_ratio(above[None], below[None])
    assert scores.mean() == pytest.approx(found.f1()) and scores.std() > 0


def test_an_entity_with_a_wrong_end_is_wrong_twice():
    found = count_entities([["B-a", "I-a", "O"]], [["B-a", "O", "O"]])
    assert (found.correct.tolist(), found.predicted.tolist(), found.gold.tolist()) == (
        [0],
        [1],
        [1],
    )


def test_tags_must_match_the_words():
    with pytest.raises(ValueError, match="do not match"):
        count_entities([["O", "O"]], [["O"]])


def test_decode_is_the_best_well_formed_path():
    random = np.random.default_rng(0)
    for length in (1, 2, 4):
        scores = random.normal(size=(length, 5))
        best = {}
        for path in itertools.product(range(5), repeat=length):
            tags = [TAGS[tag] for tag in path]
            starts = ["O", *tags[:-1]]
            fine = all(
                tag[0] != "I" or (before != "O" and before[2:] == tag[2:])
                for before, tag in zip(starts, tags, strict=True)
            )
            if fine:
                best[tuple(tags)] = sum(scores[w, tag] for w, tag in enumerate(path))
        assert tuple(viterbi_decode(scores, TAGS)) == max(best, key=lambda tags: best[tags])
    assert viterbi_decode(np.zeros((0, 5)), TAGS) == []


def test_strata_tell_the_rarest_kind():
    tags = [["B-x"], ["B-x", "B-y"], ["O"], ["B-x"]]
    assert entity_strata(tags).tolist() == [1, 2, 0, 1]


def test_the_classical_tagger_learns_forms_and_neighbours():
    random = np.random.default_rng(0)

    def sentence():
        name = "".join(random.choice(list("abcdefgh"), 5)).title()
        before = random.choice(["Mr", "in"])
        kind = "per" if before == "Mr" else "loc"
        filler = list(random.choice(["so", "we", "went", "on"], 3))
        return [*filler, before, name, "Xy", "."], ["O"] * 4 + [f"B-{kind}", f"I-{kind}", "O"]

    made = [sentence() for _ in range(60)]
    words, tags = [each[0] for each in made], [each[1] for each in made]
    tagger = ner_baseline.fit(words[:30], tags[:30], {"c1": 0.01, "c2": 0.01})
    guessed = tagger.predict([*words[30:], []])
    assert guessed[-1] == [] and entity_f1(tags[30:], guessed[:-1]) > 0.9
    halves = [(np.arange(30), np.arange(30, 60))]
    trials = cross_validate(ner_baseline.fit, words, tags, [{"c1": 0.01, "c2": 0.01}], halves)
    assert trials == [
        {
            "config": {"c1": 0.01, "c2": 0.01},
            "validation": count_entities(tags[30:], guessed[:-1]).f1(),
        }
    ]
    found = ner_baseline.search(words, tags, halves)
    assert len({trial["config"]["c2"] for trial in found}) == 8
    assert len({trial["config"]["c1"] for trial in found}) == 8
    assert select_trial(found)["validation"] > 0.9
    blind = ner_baseline.fit(words[:30], [own[::-1] for own in tags[:30]], {"c1": 0.01, "c2": 0.01})
    assert entity_f1(tags[30:], blind.predict(words[30:])) < 0.5


def test_shapes():
    assert ner_baseline.word_shape("McDonald's3") == "XxXx'xd"
