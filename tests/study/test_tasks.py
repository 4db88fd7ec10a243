import dataclasses

import numpy as np
import pytest

from fm.data.datasets import Dataset
from fm.errors import UserError
from fm.study.runner import task_row
from fm.study.tasks import prepare_task
from tests.study.helpers_study import config, dataset, images, loads, recipe, split, texts

CORPORA = ("in_domain",)


def test_a_task_fixes_test_items_and_draws_labels_by_seed(monkeypatch):
    loads(monkeypatch, dataset())
    task = prepare_task(config(max_test_items=5), CORPORA, 3)
    assert len(task.test) == 5 and len(task.dataset.test) == 12
    assert len(task.train_idx) == 3 and all(
        len(set(each.tolist())) == 16 for each in task.train_idx
    )
    assert any(set(task.train_idx[0]) != set(other) for other in task.train_idx[1:])
    for drawn in task.train_idx:
        assert np.array_equal(task.labeled_pool[task.pool_rows(drawn)], drawn)
        assert set(task.dataset.train.labels[drawn[:8]]) == {0, 1}
    again = prepare_task(config(max_test_items=5), CORPORA, 3)
    assert again.test.ids == task.test.ids
    assert all(np.array_equal(a, b) for a, b in zip(again.train_idx, task.train_idx, strict=True))


@pytest.mark.parametrize("budget", [1, 41, 1000])
def test_a_budget_that_does_not_fit_is_refused(monkeypatch, budget):
    loads(monkeypatch, dataset())
    with pytest.raises(
        UserError,
        match=rf"--label_budgets={budget}: must be between 2 and 40 for fruit, which has 2 classes",
    ):
        prepare_task(config(label_budgets=(budget,)), CORPORA, 1)


@pytest.mark.parametrize(("make", "kept"), [(texts, 30), (images, 20)])
def test_unlabeled_examples_fill_up_the_labeled_pool_of_texts_further(monkeypatch, make, kept):
    monkeypatch.setattr("fm.study.task.MAX_UNLABELED_TEXTS", 30)
    monkeypatch.setattr("fm.study.task.MAX_UNLABELED", 20)
    loads(monkeypatch, dataset(make=make))
    task = prepare_task(config(recipe=recipe("image" if make is images else "text")), CORPORA, 1)
    assert len(task.labeled_pool) + len(task.unlabeled_idx) == kept
    assert not set(task.labeled_pool) & set(task.unlabeled_idx)


def test_unlabelled_data_is_refused(monkeypatch):
    data = dataset()
    train = dataclasses.replace(data.train, labels=None)
    loads(monkeypatch, dataclasses.replace(data, train=train, classes=()))
    with pytest.raises(UserError, match="fruit has no labels"):
        prepare_task(config(), CORPORA, 1)


def test_out_of_domain_data_must_be_given(monkeypatch):
    loads(monkeypatch, dataset())
    with pytest.raises(UserError, match="needs other text data: give --out_of_domain_dataset=NAME"):
        prepare_task(config(), ("in_domain", "out_of_domain"), 1)


def test_out_of_domain_data_of_another_modality_or_shape_is_refused(monkeypatch):
    big = dataset("big", images)
    big = dataclasses.replace(big, info=big.info | {"shape": [16, 16, 1]})
    loads(monkeypatch, dataset(), dataset("pictures", images), big)
    with pytest.raises(
        UserError, match=r"--out_of_domain_dataset=pictures is image .*fruit is text"
    ):
        prepare_task(config(out_of_domain_dataset="pictures"), ("out_of_domain",), 1)
    asked = config("pictures", out_of_domain_dataset="big", recipe=recipe())
    with pytest.raises(UserError, match=r"--out_of_domain_dataset=big is image \[16, 16, 1\]"):
        prepare_task(asked, ("out_of_domain",), 1)


def test_copies_of_test_items_are_removed_from_every_corpus(monkeypatch):
    words, labels = texts(12, 1)
    more, more_labels = texts(40, 0)
    planted = [*more, words[3].upper() + "!", words[7]]
    train = split(planted, [*more_labels, labels[3], labels[7]])
    other, _ = texts(20, 5, words="north south east west")
    upstream = split([*other, words[0]], None)
    data = dataclasses.replace(dataset(), train=train, test=split(words, labels))
    others = Dataset("others", "text", (), upstream, upstream, dict(data.info))
    loads(monkeypatch, data, others)
    task = prepare_task(config(out_of_domain_dataset="others"), ("in_domain", "out_of_domain"), 1)
    assert len(task.dataset.train) == 40 and len(task.corpora["in_domain"]) == 40
    assert task.decontamination["in_domain"].num_found == 2 and task.decontamination[
        "in_domain"
    ].duplicate_idx.tolist() == [40, 41]
    assert len(task.corpora["out_of_domain"]) == 20
    assert task.decontamination["out_of_domain"].duplicate_idx.tolist() == [20]


def test_the_image_size_reaches_every_corpus_and_shrinking_the_results(monkeypatch):
    asked = []
    shrunk = {"from": [90, 80], "to": [64, 64], "count": 3}
    own, other = dataset("own", images), dataset("other", images)
    own = dataclasses.replace(own, info=own.info | {"shrunk": shrunk})
    known = {"own": own, "other": other}
    monkeypatch.setattr(
        "fm.study.tasks.load",
        lambda name, **options: asked.append(options["image_size"]) or known[name],
    )
    task = config("own", recipe=recipe(), image_size=64, out_of_domain_dataset="other")
    prepared = prepare_task(task, ("in_domain", "out_of_domain"), 1)
    assert asked == [64, 64]
    assert task_row(prepared)["shrunk"] == shrunk
    with pytest.raises(UserError, match="--image_size=63: must be a multiple of 8"):
        config(image_size=63)
