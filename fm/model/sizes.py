"""Published models by their size, to plan with: nothing here has weights."""

from __future__ import annotations

import dataclasses

from fm.model.config import ModelConfig
from fm.model.positions import RopeScaling
from fm.model.style import Style

_LLAMA = Style(
    gain=True,
    embedding_norm=False,
    qk_norm="none",
    activation="silu",
    gated=True,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
)
_SMALL_LLAMA = dataclasses.replace(
    _LLAMA, tied=True, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192)
)

# GPT-2 (Radford et al. 2019) and the Llama 3 of 1B and 8B (Grattafiori et al. 2024; the smaller
# one's sizes are those of its config.json).
PUBLISHED: dict[str, ModelConfig] = {
    "124m": ModelConfig(
        depth=12,
        width=768,
        heads=12,
        kv_heads=12,
        hidden=3072,
        vocab=50257,
        context=1024,
        norm_eps=1e-5,
        style=Style(
            norm="layer",
            gain=True,
            shift=True,
            embedding_norm=False,
            qk_norm="none",
            biases="all",
            activation="gelu_tanh",
            positions="learned",
            tied=True,
        ),
    ),
    "1b": ModelConfig(
        depth=16,
        width=2048,
        heads=32,
        kv_heads=8,
        hidden=8192,
        vocab=128256,
        context=131072,
        rope_base=500_000.0,
        norm_eps=1e-5,
        style=_SMALL_LLAMA,
    ),
    "8b": ModelConfig(
        depth=32,
        width=4096,
        heads=32,
        kv_heads=8,
        hidden=14336,
        vocab=128256,
        context=131072,
        rope_base=500_000.0,
        norm_eps=1e-5,
        style=_LLAMA,
    ),
}
