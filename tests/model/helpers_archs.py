"""Small text models of every architecture."""

import dataclasses

from fm.model.config import ArchConfig, ModelConfig, RopeScaling
from fm.model.sizes import GPT2_ARCH, LLAMA_ARCH

SIZES = {
    "num_layers": 2,
    "d_model": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_dim": 48,
    "vocab_size": 97,
}
GPT2, LLAMA = GPT2_ARCH, LLAMA_ARCH
GEMMA2 = dataclasses.replace(
    LLAMA,
    activation="gelu_tanh",
    layer_pattern=("sliding", "full"),
    sliding_window=4,
    attention_softcap=1.5,
    query_pre_attn_scalar=3,
    sandwich_norm=True,
    scale_embeddings=True,
    tie_embeddings=True,
)
# Of a model of Gemma 2's architecture, what differs in Gemma 3.
GEMMA3_CHANGES = {
    "attention_softcap": 0.0,
    "logit_softcap": 0.0,
    "qk_norm": "gain",
    "local_rope_theta": 50.0,
    "rope_scaling": RopeScaling(8.0, rope_type="linear"),
}
MODERNBERT = ArchConfig(
    norm="layer",
    norm_scale=True,
    qk_norm="none",
    activation="gelu",
    gated_mlp=True,
    layer_pattern=("full", "sliding"),
    sliding_window=3,
    local_rope_theta=50.0,
    first_attention_norm=False,
    tie_embeddings=True,
)


def config(**changes) -> ModelConfig:
    """A small model."""
    return ModelConfig(**(SIZES | {"max_seq_len": 64} | changes))


ARCHS = {
    "own": config(),
    "gpt2": config(arch=GPT2, num_kv_heads=4),
    "llama": config(arch=LLAMA),
    "llama one key head, tied": config(
        arch=ArchConfig(**(vars(LLAMA) | {"tie_embeddings": True})), num_kv_heads=1
    ),
    "llama 3": config(
        arch=ArchConfig(**(vars(LLAMA) | {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 16)}))
    ),
    "mistral": config(
        arch=ArchConfig(**(vars(LLAMA) | {"layer_pattern": ("sliding",), "sliding_window": 5}))
    ),
    "gemma2": config(
        num_layers=3,
        arch=ArchConfig(
            **vars(LLAMA)
            | {
                **{"layer_pattern": ("sliding", "full"), "sliding_window": 5},
                **{"attention_softcap": 2.0, "logit_softcap": 3.0, "query_pre_attn_scalar": 5},
                **{"sandwich_norm": True, "scale_embeddings": True, "local_rope_theta": 50.0},
            }
        ),
    ),
    "qwen2": config(arch=ArchConfig(**(vars(LLAMA) | {"use_bias": "qkv"}))),
    "qwen3": config(arch=ArchConfig(**(vars(LLAMA) | {"qk_norm": "gain"})), head_dim_override=16),
}
