"""The analytic count against what the compiler counts in the unrolled program."""

import jax
import jax.numpy as jnp
import pytest

from fm.attention import Mask
from fm.errors import UserError
from fm.model import ModelConfig, flops, streams
from fm.model.transformer import forward, init

# Wide enough that products outweigh the work per element, which is not counted.
SIZES = {"depth": 2, "width": 256, "heads": 4, "kv_heads": 2, "hidden": 1024}
TEXT = ModelConfig(vocab=1000, **SIZES)
IMAGE = ModelConfig(patch=64, **SIZES)
LENGTH = 128


def outcome(params, config):
    """Sum of all predictions of two sequences."""
    positions = jnp.tile(jnp.arange(LENGTH), (2, 1))
    if config.vocab:
        inputs = {"tokens": jnp.zeros((2, LENGTH), jnp.int32)}
    else:
        inputs = {"patches": jnp.zeros((2, LENGTH, config.patch))}
    final = forward(params, inputs | {"positions": positions}, config, mask=Mask(causal=True))
    h_TD = final["final"].reshape(-1, config.width)
    if config.vocab:
        return jnp.sum(streams.token_nll(params["streams"], h_TD, jnp.zeros(len(h_TD), int)))
    return jnp.sum(streams.patch_nll(params["streams"], h_TD, jnp.zeros((len(h_TD), 64)), config))


def compiled_flops(function, config):
    params = jax.eval_shape(lambda: init(jax.random.key(0), config))
    analysis = jax.jit(function, static_argnums=1).lower(params, config).compile().cost_analysis()
    assert analysis is not None
    return analysis["flops"]


@pytest.mark.parametrize("config", [TEXT, IMAGE], ids=["text", "image"])
def test_forward(config):
    counted = 2 * flops.forward_flops(
        config, LENGTH, predictions=LENGTH, patches=bool(config.patch)
    )
    assert counted == pytest.approx(compiled_flops(outcome, config), rel=0.1)


@pytest.mark.parametrize("config", [TEXT, IMAGE], ids=["text", "image"])
def test_training(config):
    counted = 2 * flops.train_flops(config, LENGTH, predictions=LENGTH, patches=bool(config.patch))
    assert counted == pytest.approx(compiled_flops(jax.value_and_grad(outcome), config), rel=0.1)


def test_cost_of_each_objective():
    assert flops.cost("next", 100, hide=0.3) == (100, 99)
    assert flops.cost("next", 100, hide=0.3, patches=True) == (101, 100)
    assert flops.cost("masked", 100, hide=0.3) == (100, 30)
    assert flops.cost("bag", 100, hide=0.3) == (70, 1)
    with pytest.raises(UserError, match=r"'all'.*next, masked, bag"):
        flops.cost("all", 100, hide=0.3)
