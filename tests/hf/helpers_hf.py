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
from fm.model.config import RopeScaling
from fm.model.transformer import init
from tests.model import helpers_archs
from tests.model.helpers_archs import GPT2, LLAMA

SIZES = {
    "num_layers": 2,
    "d_model": 24,
    "num_heads": 4,
    "mlp_dim": 40,
    "vocab_size": 30,
    "max_seq_len": 64,
}
STRETCHED = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=32
)


def _config(num_kv_heads, arch, head_dim=0, **changes):
    arch = dataclasses.replace(arch, **changes)
    return ModelConfig(**SIZES, num_kv_heads=num_kv_heads, head_dim_override=head_dim, arch=arch)


ENCODER = dataclasses.replace(
    GPT2,
    activation="gelu",
    post_norm=True,
    embedding_norm=True,
    final_norm=False,
    num_token_types=2,
)
YARN = RopeScaling(
    factor=4.0, original_max_seq_len=16, rope_type="yarn", attention_factor=1.2, truncate=False
)
GEMMA2 = dataclasses.replace(
    helpers_archs.GEMMA2,
    sliding_window=6,
    attention_softcap=5.0,
    logit_softcap=7.0,
    query_pre_attn_scalar=11,
)
GEMMA3 = dataclasses.replace(GEMMA2, **helpers_archs.GEMMA3_CHANGES | {"local_rope_theta": 500.0})
MODERNBERT = dataclasses.replace(helpers_archs.MODERNBERT, sliding_window=4, local_rope_theta=500.0)
CASES = {
    "gpt2": ("gpt2", _config(4, GPT2)),
    "gpt2 untied": ("gpt2", _config(4, GPT2, tie_embeddings=False)),
    "llama": ("llama", _config(2, LLAMA)),
    "llama tied, stretched": (
        "llama",
        _config(1, LLAMA, tie_embeddings=True, rope_scaling=STRETCHED),
    ),
    "llama with biases": ("llama", _config(4, LLAMA, head_dim=8, use_bias="all")),
    "llama with some": ("llama", _config(4, LLAMA, use_bias="attention")),
    "qwen2": ("qwen2", _config(2, LLAMA, use_bias="qkv", tie_embeddings=True)),
    "qwen3": ("qwen3", _config(2, LLAMA, head_dim=10, qk_norm="gain")),
    "qwen3 with biases": ("qwen3", _config(2, LLAMA, qk_norm="gain", use_bias="attention")),
    "mistral": ("mistral", _config(2, LLAMA, layer_pattern=("sliding",), sliding_window=6)),
    "llama with yarn": ("llama", _config(2, LLAMA, rope_scaling=YARN)),
    "gemma2": ("gemma2", _config(2, GEMMA2, head_dim=8)),
    "gemma3": ("gemma3_text", _config(1, GEMMA3)),
    "modernbert": ("modernbert", _config(4, MODERNBERT)),
    "bert": ("bert", _config(4, ENCODER)),
    "bert with a pooler": ("bert", _config(4, ENCODER, pooler=True)),
}


def params(config, seed=0, dtype="float32"):
    """Random parameters, norm scales about 1; the mask embedding, which no family has, is 0."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), config))
    random = {
        part: {
            name: jnp.asarray(
                rng.normal(float(name.endswith("_norm")), 0.2, leaf.shape).astype(np.float32), dtype
            )
            for name, leaf in leaves.items()
        }
        for part, leaves in shapes.items()
    }
    random["streams"]["hidden_piece"] = jnp.zeros(config.d_model, dtype)
    for leaves in random.values():
        for name in leaves:
            if name.endswith("_norm"):  # less 1, as Gemma stores it, such a scale is exact
                leaves[name] = jnp.clip(leaves[name], 0.5, 2.0)
    if not config.arch.first_attention_norm:  # nor is the norm that the first layer skips
        norms_ND = random["layers"]["attention_norm"]
        random["layers"]["attention_norm"] = norms_ND.at[0].set(1.0)
    return random


def tokenizer(vocab_size=SIZES["vocab_size"]):
    words = {"[UNK]": 0} | {f"w{n}": n for n in range(1, vocab_size)}
    whole = tokenizers.Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    return HFTokenizer(whole)


def pretrained(name, **fields):
    family, config = CASES[name]
    return PretrainedModel(config, params(config), tokenizer(), family=family, **fields)


def same(left, right):
    """Asserts equality to the bit, with dtypes and names."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for one, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
