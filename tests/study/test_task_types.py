"""Task types: which one data has, and how predictions are scored."""

import dataclasses

import numpy as np
import pytest

from fm.errors import UserError
from fm.evaluation.ner import EntityCounts
from fm.study.task_types import TASK_TYPES, task_type_of
from tests.study.helpers_multitask import datasets
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


def test_smallest_budget_has_a_label_of_every_stratum():
    assert TASK_TYPES["classification"].min_labels(FRUIT) == 2
    assert TASK_TYPES["ner"].min_labels(NAMES) == 1
