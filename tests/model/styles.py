"""Small text models of every style, as the families have them."""

from fm.model.config import ArchConfig, ModelConfig
from fm.model.positions import RopeScaling

SIZES = {"depth": 2, "width": 32, "heads": 4, "kv_heads": 2, "hidden": 48, "vocab": 97}
GPT2 = ArchConfig(
    norm="layer",
    norm_scale=True,
    norm_bias=True,
    embedding_norm=False,
    qk_norm="none",
    use_bias="all",
    activation="gelu_tanh",
    position_encoding="learned",
    tie_embeddings=True,
)
LLAMA = ArchConfig(
    norm_scale=True, embedding_norm=False, qk_norm="none", activation="silu", gated_mlp=True
)


def config(**changes) -> ModelConfig:
    """A small model."""
    return ModelConfig(**(SIZES | {"context": 64} | changes))


STYLES = {
    "own": config(),
    "gpt2": config(style=GPT2, kv_heads=4),
    "llama": config(style=LLAMA),
    "llama one key head, tied": config(
        style=ArchConfig(**(vars(LLAMA) | {"tied": True})), kv_heads=1
    ),
    "llama 3": config(
        style=ArchConfig(**(vars(LLAMA) | {"rope_scaling": RopeScaling(8.0, 1.0, 4.0, 16)}))
    ),
    "qwen2": config(style=ArchConfig(**(vars(LLAMA) | {"biases": "qkv"}))),
    "qwen3": config(style=ArchConfig(**(vars(LLAMA) | {"qk_norm": "gain"})), head_dim=16),
}
