"""That what is computed again is the same, and that less is held."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fm.attention import Mask
from fm.errors import UserError
from fm.model.config import REMAT_POLICIES, ArchConfig, ModelConfig
from fm.model.sizes import config_for_size
from fm.model.transformer import forward, init
from tests.model.helpers_models import TEXT, params, text

GATED = dataclasses.replace(
    TEXT, arch=ArchConfig(gated_mlp=True, activation="silu", qk_norm="none")
)


def gradient(config, inputs, weights):
    def value(weights):
        out = forward(weights, inputs, config, mask=Mask(causal=True))
        return jnp.sum(jnp.sin(out["final"]))

    return jax.jit(jax.value_and_grad(value))(weights)


@pytest.mark.parametrize(
    "config",
    [pytest.param(TEXT, id="plain"), pytest.param(GATED, id="gated", marks=pytest.mark.slow)],
)
def test_gradients_match_those_without_remat(config):
    weights, inputs = params(config), text()
    want = gradient(config, inputs, weights)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(want[1]["layers"]))
    for name in REMAT_POLICIES[1:]:
        got = gradient(dataclasses.replace(config, remat_policy=name), inputs, weights)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), got, want)


@pytest.mark.slow
def test_memory_falls_with_the_policy():
    length, batch = 256, 2
    inputs = {
        "tokens": np.zeros((batch, length), np.int32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (batch, 1)),
    }

    def held(remat):
        config = ModelConfig(
            num_layers=8,
            d_model=64,
            num_heads=2,
            num_kv_heads=2,
            mlp_dim=256,
            vocab_size=32,
            scan_layers=True,
            remat_policy=remat,
        )
        shapes = jax.eval_shape(lambda: init(jax.random.key(0), config))

        def value(weights):
            return jnp.sum(forward(weights, inputs, config, mask=Mask(causal=True))["final"])

        memory = jax.jit(jax.grad(value)).lower(shapes).compile().memory_analysis()
        return memory.temp_size_in_bytes

    none, dots, attention, full = (held(name) for name in REMAT_POLICIES)
    assert full < attention < dots < none
    assert full < 0.5 * none


def test_an_unknown_policy_is_refused():
    with pytest.raises(UserError, match="remat_policy=some is unknown; accepted are none, dots, a"):
        config_for_size("nano", remat_policy="some")
