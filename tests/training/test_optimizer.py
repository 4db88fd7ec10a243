"""Which rule each parameter follows, and the learning rate over time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.errors import UserError
from fm.model.config import ArchConfig
from fm.training import OptimizerConfig, optimizer
from tests.training.helpers_models import IMAGE, TEXT, params

RICH = dataclasses.replace(
    TEXT,
    arch=ArchConfig(
        norm="layer",
        norm_scale=True,
        norm_bias=True,
        qk_norm="gain",
        use_bias="all",
        gated_mlp=True,
    ),
)


@pytest.mark.parametrize("config", [TEXT, IMAGE], ids=["text", "image"])
def test_muon_takes_every_layer_kernel_and_nothing_else(config):
    axes = optimizer.muon_dimension_numbers(params(config))
    assert all(axes["layers"].values())
    assert not any(axes["streams"].values())
    for name, leaf in params(config)["layers"].items():
        rows, columns = axes["layers"][name]
        assert sorted((0, *rows, *columns)) == list(range(leaf.ndim))


def test_gates_are_kernels_and_biases_gains_and_shifts_are_not():
    layers = optimizer.muon_dimension_numbers(params(RICH))["layers"]
    kernels = {name for name, axes in layers.items() if axes}
    assert kernels == {"query", "key", "value", "attention_out", "up", "gate", "down"}
    assert len(layers) == 7 + 7 + 2 + 4


def test_a_layer_kernel_without_a_rule():
    with pytest.raises(KeyError, match="router"):
        optimizer.muon_dimension_numbers({"layers": {"router": jnp.zeros((1, 2, 2))}})


def change(rule, weights, gradient, steps=10):
    """The second update; the first has a learning rate of zero."""

    @jax.jit
    def two(weights, gradient):
        update = optimizer.build(rule, steps)
        memory = update.init(weights)
        _, memory = update.update(gradient, memory, weights)
        return update.update(gradient, memory, weights)[0]

    return jax.tree.map(np.asarray, two(weights, gradient))


def test_muon_makes_kernels_orthogonal_and_leaves_embeddings_to_adam():
    weights, gradient = params(TEXT), params(TEXT, seed=1)
    rule = OptimizerConfig("muon", weight_decay=0.0, warmup=0.1)
    got = change(rule, weights, gradient)
    # Muon of the stacked, head-split query kernel: one matrix per layer, all heads together.
    matrix = got["layers"]["query"][0].reshape(TEXT.d_model, -1)
    singular = np.linalg.svd(matrix, compute_uv=False)
    before = np.linalg.svd(
        gradient["layers"]["query"][0].reshape(TEXT.d_model, -1), compute_uv=False
    )
    assert before.max() / before.min() > 10
    assert singular.max() / singular.min() < 2
    # Adam's first steps are the sign of the gradient, times a rate of its own.
    ratio = got["streams"]["token_embedding"] / np.sign(gradient["streams"]["token_embedding"])
    assert np.ptp(ratio) < 1e-3 * rule.adam_learning_rate + 1e-5
    assert -1.3 * rule.adam_learning_rate < ratio.mean() < -rule.adam_learning_rate


@pytest.mark.parametrize("config", [TEXT, RICH], ids=["text", "rich"])
@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_only_layer_kernels_decay(name, config):
    weights = params(config)
    kernels = {name for name, leaf in weights["layers"].items() if leaf.ndim > 2}
    kernels -= {"query_bias", "key_bias", "value_bias"}
    nothing = jax.tree.map(np.zeros_like, weights)
    got = change(OptimizerConfig(name, weight_decay=0.1, warmup=0.1), weights, nothing)
    assert {name for name, leaf in got["layers"].items() if np.any(leaf)} == kernels
    assert not any(np.any(leaf) for leaf in got["streams"].values())


def test_a_large_gradient_is_clipped():
    # Visible where the size of the first gradient stays in Adam's memory beside a later one.
    update = optimizer.build(OptimizerConfig("adamw", clip=1.0), 10)
    weights = {"streams": {"x": jnp.ones(4)}}
    _, memory = update.update({"streams": {"x": jnp.full(4, 1e6)}}, update.init(weights), weights)
    sizes = [float(jnp.max(leaf)) for leaf in jax.tree.leaves(memory) if leaf.shape == (4,)]
    assert max(sizes) < 1


@pytest.mark.parametrize("name", ["cosine", "wsd"])
@pytest.mark.parametrize("steps", [3, 100])
def test_schedules_start_and_end_at_zero(name, steps):
    rate = optimizer.learning_rate_schedule(OptimizerConfig(schedule=name), 0.5, steps)
    values = [float(rate(n)) for n in range(steps + 1)]
    assert values[0] == 0 and values[-1] == pytest.approx(0, abs=1e-7)
    assert max(values) == pytest.approx(0.5)
    assert min(values) >= 0


def test_wsd_is_stable_between():
    rate = optimizer.learning_rate_schedule(OptimizerConfig(schedule="wsd", warmup=0.1), 0.5, 100)
    assert {float(rate(n)) for n in range(10, 80)} == {0.5}
    assert float(rate(90)) == pytest.approx(0.25)


@pytest.mark.parametrize("field", ["name", "schedule"])
def test_unknown_choices(field):
    with pytest.raises(UserError, match=r"'other' is not known; accepted are"):
        OptimizerConfig(**{field: "other"})


def test_another_learning_rate_keeps_the_ratio_of_both_groups():
    config = OptimizerConfig(learning_rate=0.005, adam_learning_rate=0.01)
    changed = config.with_learning_rate(0.01)
    assert (changed.learning_rate, changed.adam_learning_rate) == (0.01, 0.02)
    assert config.with_learning_rate(0.005) == config
    with pytest.raises(UserError, match="learning_rate=-1"):
        config.with_learning_rate(-1)


@pytest.mark.parametrize("name", ["wsd", "cosine"])
def test_warm_up_by_steps_does_not_depend_on_the_length(name):
    config = OptimizerConfig(schedule=name, warmup_steps=7)
    for steps in (20, 200):
        rate = optimizer.learning_rate_schedule(config, 1.0, steps)
        assert [float(rate(n)) for n in range(8)] == pytest.approx([n / 7 for n in range(8)])
    with pytest.raises(UserError, match="warmup_steps=0 must be at least 1"):
        OptimizerConfig(warmup_steps=0)
