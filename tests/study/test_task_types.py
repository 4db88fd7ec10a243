"""Task types: which one data has, and how predictions are scored."""

import dataclasses

import numpy as np
import pytest

from fm.errors import UserError
from fm.evaluation.ner import EntityCounts
from fm.study.baseline_arms import ClassicalNerArm, UntrainedTextArm
from fm.study.task_types import TASK_TYPES, task_type_of
from tests.study.helpers_multitask import datasets, names
from tests.study.helpers_study import dataset, split, texts

FRUIT, HALVES, NAMES, TITLES = datasets()


def test_the_kind_is_what_the_data_holds():
    assert [task_type_of(each).name for each in (FRUIT, HALVES, NAMES, TITLES)] == [
        *("classification", "classification", "ner", "text_generation")
    ]
    bare = dataclasses.replace(dataset(), train=split(texts(8, 0)[0], None))
    with pytest.raises(UserError, match="no labels to learn; a task needs at least 2 classes"):
        task_type_of(bare)


def test_the_mean_of_the_scores_of_entities_is_f1():
    draws = np.random.default_rng(0)
    predicted, gold = draws.integers(0, 4, (2, 3, 12))
    right = np.minimum(predicted, gold) - draws.integers(0, 2, (3, 12)) * (gold > 1)
    right = np.maximum(right, 0)
    scores = TASK_TYPES["ner"].scores(np.stack([right, predicted, gold], axis=-1), NAMES.test)
    for s in range(3):
        f1 = EntityCounts(right[s], predicted[s], gold[s]).f1()
        assert scores[s].mean() == pytest.approx(f1, abs=1e-12)


def test_texts_are_drawn_evenly_and_classes_by_class():
    assert not TASK_TYPES["text_generation"].strata(TITLES.train).any()
    np.testing.assert_array_equal(
        TASK_TYPES["classification"].strata(FRUIT.train), FRUIT.train.labels
    )


def test_the_classical_tagger_learns_what_follows_to():
    made = names(40, 0)
    every = range(40)
    arm = ClassicalNerArm(made.words(every), made.tags(every), 30, num_trials=2)
    drawn, strata = np.arange(30), np.ones(30, int)
    trials = arm.search(drawn, strata, 0)
    assert len(trials) == 2 and max(trial["validation"] for trial in trials) == 1.0
    answers = arm.fit_predict(drawn, strata, 0, trials[0]["config"]).values
    np.testing.assert_array_equal(answers, np.ones((10, 3)))


def test_the_classical_writer_picks():
    inputs = ["One thing. More.", "Two things here. Less.", "One thing. Again."]
    arm = UntrainedTextArm(inputs, ["One thing.", "a pair", "One thing."], 2)
    first, nearest = arm.grid()
    drawn = np.arange(2)
    assert arm.fit_predict(drawn, drawn * 0, 0, first).values == pytest.approx([1.0])
    assert arm.fit_predict(drawn, drawn * 0, 0, nearest).values == pytest.approx([1.0])
    trials = arm.search(drawn, drawn * 0, 0)
    assert [trial["config"] for trial in trials] == [first, nearest]


def test_smallest_budget_has_a_label_of_every_stratum():
    assert TASK_TYPES["classification"].min_labels(FRUIT) == 2
    assert TASK_TYPES["ner"].min_labels(NAMES) == 1
