import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.adaptation.features import FeatureConfig
from fm.adaptation.finetune import FinetuneConfig, finetune, keep_random_tokens, predict
from fm.errors import UserError
from tests.adaptation.helpers_models import MODEL, params, separable

CONFIG = FinetuneConfig(learning_rate=1e-2, min_steps=12, batch_size=8, tokens_kept=3)


def tuned(rows, labels, config=CONFIG, **options):
    given = {"num_classes": 2, "seed": 0, "pad_to": len(labels)} | options
    return finetune(params(), rows, labels, MODEL, config, **given)


def assert_same(a, b):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.array_equal(one, other)


def differ(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(not np.array_equal(one, other) for one, other in pairs)


def test_learns_what_can_be_told_apart():
    rows, labels = separable(16)
    model = tuned(rows, labels, dataclasses.replace(CONFIG, min_steps=40, tokens_kept=0))
    fresh_rows, truth = separable(70, seed=1)
    guessed = predict(model, fresh_rows, MODEL, feature_config=FeatureConfig(), batch_size=32)
    assert guessed.shape == (70,)
    assert np.mean(guessed == truth) == 1.0


@pytest.mark.slow
def test_steps_as_data_equal_a_config_of_that_length():
    rows, labels = separable(10)
    shorter = dataclasses.replace(CONFIG, min_steps=5)
    assert_same(tuned(rows, labels, num_steps=5), tuned(rows, labels, shorter))
    assert differ(tuned(rows, labels, num_steps=5), tuned(rows, labels))


@pytest.mark.slow
def test_more_labels_are_trained_on_for_longer():
    config = dataclasses.replace(CONFIG, min_steps=6, min_epochs=3.0)
    assert [config.num_steps(labels) for labels in (8, 16, 17, 40)] == [6, 6, 7, 15]
    rows, labels = separable(40)
    few = {key: value[:16] for key, value in rows.items()}
    same = dataclasses.replace(CONFIG, min_steps=15)
    assert_same(tuned(rows, labels, config), tuned(rows, labels, same))
    assert_same(
        tuned(few, labels[:16], config, pad_to=40),
        tuned(few, labels[:16], dataclasses.replace(CONFIG, min_steps=6)),
    )


def test_same_seed_same_bits_and_another_seed_others():
    rows, labels = separable(10)
    assert_same(tuned(rows, labels), tuned(rows, labels))
    assert differ(tuned(rows, labels), tuned(rows, labels, seed=1))


def test_padding_does_not_matter():
    rows, labels = separable(10)
    assert_same(tuned(rows, labels), tuned(rows, labels, pad_to=24))


def test_the_start_is_left_as_it_was():
    rows, labels = separable(10)
    start = params()
    finetune(start, rows, labels, MODEL, CONFIG, num_classes=2, seed=0, pad_to=10)
    assert_same(start, params())


def test_predict_does_not_depend_on_the_batch():
    rows, labels = separable(11)
    model = tuned(rows, labels)
    by_five = predict(model, rows, MODEL, feature_config=FeatureConfig(), batch_size=5)
    assert np.array_equal(by_five, predict(model, rows, MODEL, feature_config=FeatureConfig()))


def test_some_pieces_keeps_filled_ones_first():
    tokens = jnp.arange(1, 7) + jnp.zeros((40, 1), jnp.int32)
    segments = jnp.array([[1, 1, 0, 1, 0, 0]] * 40)
    kept = keep_random_tokens({"tokens": tokens, "segments": segments}, jax.random.key(0), 4)
    assert kept["tokens"].shape == (40, 4)
    assert np.array_equal(kept["segments"], [[1, 1, 1, 0]] * 40)
    assert all(set(row[:3]) == {1, 2, 4} for row in np.asarray(kept["tokens"]).tolist())
    two = keep_random_tokens({"tokens": tokens, "segments": segments}, jax.random.key(0), 2)
    assert two["segments"].all() and set(np.asarray(two["tokens"]).ravel()) == {1, 2, 4}
    many = keep_random_tokens({"tokens": tokens, "segments": segments}, jax.random.key(0), 9)
    assert many["tokens"].shape == (40, 6)


@pytest.mark.parametrize(
    "field",
    [{"min_steps": 0}, {"batch_size": 0}, {"tokens_kept": -1}, {"min_epochs": -1.0}],
    ids=str,
)
def test_a_bad_setting_is_named(field):
    with pytest.raises(UserError, match=next(iter(field))):
        FinetuneConfig(**field)
