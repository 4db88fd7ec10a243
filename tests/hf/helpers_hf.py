"""A small model of every family, with random parameters, and a tokenizer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from fm.hf import PretrainedModel
from fm.hf.tokenizer import HFTokenizer
from fm.model import ModelConfig
from fm.model.positions import RopeScaling
from fm.model.transformer import init
from tests.model.styles import GPT2, LLAMA

SIZES = {"depth": 2, "width": 24, "heads": 4, "hidden": 40, "vocab": 30, "context": 64}
STRETCHED = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=32
)


def _config(kv_heads, style, head_dim=0, **changes):
    style = dataclasses.replace(style, **changes)
    return ModelConfig(**SIZES, num_kv_heads=kv_heads, head_dim_override=head_dim, arch=style)


ENCODER = dataclasses.replace(
    GPT2,
    activation="gelu",
    post_norm=True,
    embedding_norm=True,
    final_norm=False,
    num_token_types=2,
)
CASES = {
    "gpt2": ("gpt2", _config(4, GPT2)),
    "gpt2 untied": ("gpt2", _config(4, GPT2, tied=False)),
    "llama": ("llama", _config(2, LLAMA)),
    "llama tied, stretched": ("llama", _config(1, LLAMA, tied=True, rope_scaling=STRETCHED)),
    "llama with biases": ("llama", _config(4, LLAMA, head_dim=8, biases="all")),
    "llama with some": ("llama", _config(4, LLAMA, biases="attention")),
    "qwen2": ("qwen2", _config(2, LLAMA, biases="qkv", tied=True)),
    "qwen3": ("qwen3", _config(2, LLAMA, head_dim=10, qk_norm="gain")),
    "qwen3 with biases": ("qwen3", _config(2, LLAMA, qk_norm="gain", biases="attention")),
    "bert": ("bert", _config(4, ENCODER)),
    "bert with a pooler": ("bert", _config(4, ENCODER, pooler=True)),
}


def params(config, seed=0, dtype="float32"):
    """Random everywhere but for the vector that no family has; gains are about 1."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), config))
    drawn = {
        part: {
            name: jnp.asarray(
                rng.normal(float(name.endswith("_norm")), 0.2, leaf.shape).astype(np.float32), dtype
            )
            for name, leaf in leaves.items()
        }
        for part, leaves in shapes.items()
    }
    drawn["streams"]["hidden_piece"] = jnp.zeros(config.width, dtype)
    return drawn


def tokenizer(vocab=SIZES["vocab"]):
    words = {"[UNK]": 0} | {f"w{n}": n for n in range(1, vocab)}
    whole = tokenizers.Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    return HFTokenizer(whole)


def pretrained(name, **fields):
    family, config = CASES[name]
    return PretrainedModel(config, params(config), tokenizer(), family=family, **fields)


def same(left, right):
    """Bit for bit, with dtypes and names."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
