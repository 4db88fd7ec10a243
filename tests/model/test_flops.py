"""The analytic count against what the compiler counts in the unrolled program."""

import functools

import jax
import jax.numpy as jnp
import pytest

from fm.attention import Mask
from fm.errors import UserError
from fm.model import ModelConfig, embeddings, flops
from fm.model.config import ArchConfig
from fm.model.cross_entropy import fused_linear_cross_entropy
from fm.model.transformer import forward, init

# Wide enough that products outweigh the work per element, which is not counted.
# Attention by the reference: the compiler counts a loop's body once, and not what others skip.
SIZES = {
    "num_layers": 2,
    "d_model": 256,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_dim": 1024,
    "attention": "reference",
}
TEXT = ModelConfig(vocab_size=1000, **SIZES)
IMAGE = ModelConfig(patch_dims=(("image", 64),), **SIZES)
# Long and thin: what attention itself costs is most of it.
LONG = ModelConfig(vocab_size=100, **(SIZES | {"mlp_dim": 64, "d_model": 128, "num_heads": 2}))
GATED = ModelConfig(
    vocab_size=1000,
    arch=ArchConfig(activation="silu", gated_mlp=True, tie_embeddings=True),
    **SIZES,
)
WIDE = ModelConfig(vocab_size=1000, head_dim_override=128, **SIZES)
CASES = {"gated and tied": (GATED, 128), "wide heads": (WIDE, 128)}
CASES |= {"text": (TEXT, 128), "image": (IMAGE, 128), "long text": (LONG, 1024)}


def outcome(params, config, length):
    """Sum of all predictions of two sequences."""
    positions = jnp.tile(jnp.arange(length), (2, 1))
    if config.vocab_size:
        inputs = {"tokens": jnp.zeros((2, length), jnp.int32)}
    else:
        inputs = {"image": jnp.zeros((2, length, 64))}
    final = forward(params, inputs | {"positions": positions}, config, mask=Mask(causal=True))
    h_TD = final["final"].reshape(-1, config.d_model)
    if config.vocab_size:
        head_DV, targets_T = (
            embeddings.token_head_kernel(params["streams"]),
            jnp.zeros(len(h_TD), int),
        )
        return fused_linear_cross_entropy(head_DV, h_TD, targets_T, jnp.ones(len(h_TD)))
    targets = jnp.zeros((len(h_TD), 64))
    return jnp.sum(embeddings.gmm_nll(params["streams"], h_TD, targets, config, "image"))


def compiled_flops(function, config, length):
    params = jax.eval_shape(lambda: init(jax.random.key(0), config))
    program = jax.jit(function, static_argnums=(1, 2)).lower(params, config, length).compile()
    analysis = program.cost_analysis()
    assert analysis is not None
    return analysis["flops"]


@pytest.mark.parametrize(("config", "length"), CASES.values(), ids=CASES)
@pytest.mark.parametrize(
    ("count", "function"),
    [(flops.forward_flops, outcome), (flops.train_flops, jax.value_and_grad(outcome))],
    ids=["forward", "training"],
)
def test_count_matches_the_compiler(count, function, config, length):
    counted = 2 * count(config, length, num_predictions=length, modalities=config.modalities)
    assert counted == pytest.approx(compiled_flops(function, config, length), rel=0.1)


def test_cost_of_each_objective():
    assert flops.input_and_prediction_counts("causal_lm", 100, mask_ratio=0.3) == (100, 99)
    assert flops.input_and_prediction_counts(
        "causal_lm", 100, mask_ratio=0.3, has_start_patch=True
    ) == (
        101,
        100,
    )
    assert flops.input_and_prediction_counts("masked_lm", 100, mask_ratio=0.3) == (100, 30)
    assert flops.input_and_prediction_counts("bag_of_words", 100, mask_ratio=0.3) == (70, 1)
    with pytest.raises(UserError, match=r"'all'.*causal_lm, masked_lm, bag_of_words"):
        flops.input_and_prediction_counts("all", 100, mask_ratio=0.3)


def test_sliding_layers_count_the_keys_of_their_window():
    arch = ArchConfig(layer_pattern=("sliding", "full"), sliding_window=16)
    full = ModelConfig(vocab_size=1000, **SIZES)
    half = ModelConfig(vocab_size=1000, **SIZES, arch=arch)

    def saved(length, **options):
        count = functools.partial(flops.forward_flops, num_predictions=1, **options)
        return count(full, length) - count(half, length)

    of_a_pair = 4 * full.num_heads * full.head_dim
    assert saved(128) == of_a_pair * 128 * (128 - 16)
    assert saved(128, causal=False) == of_a_pair * 128 * (128 - 31)
    assert saved(16) == 0 and saved(20, causal=False) == 0
