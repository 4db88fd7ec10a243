import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.adaptation.features import PLAIN_LAST, FeatureConfig
from fm.adaptation.finetune import (
    FinetuneConfig,
    FinetuningRun,
    class_weights,
    finetune,
    keep_random_tokens,
    mean_cross_entropy,
    predict,
    predict_logits,
    predict_proba,
)
from fm.attention import Mask
from fm.errors import UserError
from fm.model.transformer import forward
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


def test_a_plain_head_is_a_linear_map_of_the_last_token_without_bias():
    rows, labels = separable(16)
    feature_config = FeatureConfig(PLAIN_LAST, causal=True)
    config = dataclasses.replace(CONFIG, min_steps=40, tokens_kept=0, feature_config=feature_config)
    model = tuned(rows, labels, config)
    assert model["head"].keys() == {"kernel"}
    inputs = {key: jnp.asarray(value) for key, value in rows.items()}
    final = forward(model["model"], inputs, MODEL, mask=Mask(True))["final"]
    found = predict_logits(model, rows, MODEL, feature_config=feature_config)
    assert np.allclose(found, final[:, -1] @ model["head"]["kernel"], atol=1e-4)
    assert np.mean(found.argmax(axis=1) == labels) == 1.0


@pytest.mark.slow
def test_steps_as_data_equal_a_config_of_that_length():
    rows, labels = separable(10)
    shorter = dataclasses.replace(CONFIG, min_steps=5)
    assert_same(tuned(rows, labels, num_steps=5), tuned(rows, labels, shorter))
    assert differ(tuned(rows, labels, num_steps=5), tuned(rows, labels))


def test_a_run_read_on_its_way_is_the_shorter_run():
    rows, labels = separable(10)
    options = {"num_classes": 2, "seed": 0, "pad_to": 10}
    config = dataclasses.replace(CONFIG, dropout=0.2)
    run = FinetuningRun(params(), rows, labels, MODEL, config, **options)
    run.advance(5)
    assert_same(run.finetuned(), tuned(rows, labels, config, num_steps=5))
    run.advance(5)
    assert run.num_steps == 5
    run.advance(11)
    assert_same(run.finetuned(), tuned(rows, labels, config, num_steps=11))
    assert differ(run.finetuned(), tuned(rows, labels, config, num_steps=12))


def test_readings_double_from_half_of_the_least_steps():
    config = FinetuneConfig(min_steps=80, max_epochs=64, batch_size=16)
    assert config.epoch_grid(300) == [4, 8, 16, 32, 64]
    assert config.epoch_grid(15) == [64, 128], "60 and 120 steps"
    assert config.min_search_epochs(15) == 86 and config.min_search_epochs(300) == 5
    assert dataclasses.replace(config, min_steps=1).epoch_grid(15) == [32, 64]
    short = FinetuneConfig(min_steps=1, max_epochs=4)
    assert short.epoch_grid(15) == [4], "never reached warmup's end"
    for labels in (5, 15, 37, 300):
        last = config.num_steps(labels, config.epoch_grid(labels)[-1])
        assert last <= config.max_steps(300)


def test_a_fixed_length_is_the_only_reading():
    updates = FinetuneConfig(batch_size=16, fixed_updates=100)
    assert updates.num_steps(20) == updates.num_steps(500, epochs=3) == 100
    assert updates.epoch_grid(80) == [20] and updates.epoch_grid(100_000) == [1]
    assert updates.max_steps(300) == 100 and updates.min_search_epochs(15) == 0
    epochs = FinetuneConfig(batch_size=16, fixed_epochs=6)
    assert epochs.num_steps(32) == epochs.num_steps(32, epochs=3) == 12
    assert epochs.epoch_grid(32) == epochs.epoch_grid(500) == [6]
    assert epochs.max_steps(64) == 24 and epochs.min_search_epochs(15) == 0
    with pytest.raises(UserError, match="not both"):
        FinetuneConfig(fixed_updates=1, fixed_epochs=1)
    with pytest.raises(UserError, match="fixed_updates=0"):
        FinetuneConfig(fixed_updates=0)


def test_dropout_and_weight_decay_change_the_run():
    rows, labels = separable(10)
    plain = tuned(rows, labels)
    for change in ({"dropout": 0.5}, {"weight_decay": 0.9}):
        assert differ(plain, tuned(rows, labels, dataclasses.replace(CONFIG, **change)))


def test_probabilities_sum_to_one_and_agree_with_the_classes():
    rows, labels = separable(16)
    model, options = tuned(rows, labels), {"feature_config": FeatureConfig()}
    probabilities = predict_proba(model, rows, MODEL, **options)
    assert probabilities.dtype == np.float32 and probabilities.shape == (16, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert np.array_equal(probabilities.argmax(axis=1), predict(model, rows, MODEL, **options))


def test_balanced_weights_give_every_class_the_same_part_of_the_loss():
    labels = np.array([0, 0, 0, 2, -1])
    assert class_weights(labels, 3, "balanced").tolist() == pytest.approx([2 / 3, 2, 2])
    assert class_weights(labels, 3, None).tolist() == [1, 1, 1]
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]] * 4))
    weights = jnp.asarray(class_weights(labels[:4], 3, "balanced"))
    weighted = mean_cross_entropy(logits, jnp.asarray(labels[:4]), weights)
    assert weighted == pytest.approx((np.log(2) + np.log(4)) / 2, rel=1e-6)


def test_a_rare_class_is_still_answered():
    """Rare examples share most tokens with the others; unweighted, one answer fits nearly all."""
    draws = np.random.default_rng(0)
    rows, _ = separable(48)
    labels = (np.arange(48) % 8 == 0).astype(int)
    rows["tokens"] = draws.integers(4, 8, rows["tokens"].shape)
    rows["tokens"][:, 0] = np.where(labels == 1, 9, np.where(draws.random(48) < 0.2, 9, 8))

    def recall(class_weight):
        config = FinetuneConfig(min_steps=40, batch_size=16, class_weight=class_weight)
        predicted = predict(
            tuned(rows, labels, config), rows, MODEL, feature_config=FeatureConfig()
        )
        return np.mean(predicted[labels == 1] == 1)

    assert recall("balanced") > recall(None) + 0.3


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
    [
        {"min_steps": 0},
        {"batch_size": 0},
        {"tokens_kept": -1},
        {"min_epochs": -1.0},
        {"max_epochs": 3},
        {"dropout": 1.0},
        {"augment": "magic"},
        {"class_weight": "rare"},
    ],
    ids=str,
)
def test_a_bad_setting_is_named(field):
    with pytest.raises(UserError, match=next(iter(field))):
        FinetuneConfig(**field)
