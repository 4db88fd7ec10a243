"""Our transformer in PyTorch: the same architecture, objective and optimizer, idiomatic there.

Written from the mathematics of `fm.model`: RMSNorm without a scale, rotary positions, normalized
queries and keys, squared-ReLU feed-forward, an untied head. Attention is PyTorch's fused one under
its own causal flag; AdamW is its fused one. The same parameters give the same loss.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]

from fm.benchmark.core import Candidate
from fm.benchmark.peers import pytorch
from fm.model.config import ModelConfig
from fm.training.optimizer import OptimizerConfig


def train_step(
    params: dict,
    tokens_BL: np.ndarray,
    config: ModelConfig,
    optimizer_config: OptimizerConfig,
    *,
    compiled: bool,
) -> Candidate:
    """Returns a PyTorch train step on a fixed batch: loss, gradients, clipping and AdamW.

    Args:
      params: as `fm.model.transformer.init` returns them.
      tokens_BL: int.
      config: of a text model; bfloat16 means autocast.
      optimizer_config: of AdamW.
      compiled: loss and gradients through `torch.compile`.

    Raises:
      NotImplementedError: PyTorch cannot run it here, such as compile without a C++ compiler.
    """
    weights = to_tensors(params, config)
    tokens = torch.tensor(tokens_BL, device=pytorch.device()).long()
    rope = rotary_cos_sin(tokens.shape[1], config)
    optimizer = torch.optim.AdamW(
        [
            {"params": [w for layer in weights["layers"] for w in layer.values()]},
            {"params": list(weights["streams"].values()), "weight_decay": 0.0},
        ],
        lr=optimizer_config.learning_rate,
        betas=(0.9, optimizer_config.b2),
        eps=1e-8,
        weight_decay=optimizer_config.weight_decay,
        fused=True,
    )
    all_weights = [w for group in optimizer.param_groups for w in group["params"]]
    if compiled:
        torch._dynamo.reset()
    forward = torch.compile(loss, dynamic=False) if compiled else loss

    def step():
        optimizer.zero_grad(set_to_none=True)
        with _autocast(config):
            nats = forward(weights, tokens, rope, config)
        nats.backward()
        torch.nn.utils.clip_grad_norm_(all_weights, optimizer_config.clip)
        optimizer.step()
        return nats

    return pytorch.candidate(step, chained=True)


def to_tensors(params: dict, config: ModelConfig) -> dict[str, Any]:
    """Converts fm parameters to PyTorch tensors, with one dict per layer."""

    def leaf(value):
        return pytorch.tensor(np.asarray(value), "float32", requires_grad=True)

    layers = [
        {name: leaf(w[n]) for name, w in params["layers"].items()} for n in range(config.num_layers)
    ]
    used = ("token_embedding", "token_head")
    return {"streams": {name: leaf(params["streams"][name]) for name in used}, "layers": layers}


def rotary_cos_sin(length: int, config: ModelConfig) -> tuple[Any, Any]:
    """Returns the RoPE cosines and sines of every position, [1, L, 1, C/2] each."""
    half = config.head_dim // 2
    frequencies = config.rope_theta ** (-np.arange(half, dtype=np.float32) / half)
    angles = (np.arange(length, dtype=np.float32)[:, None] * frequencies)[None, :, None]
    return pytorch.tensor(np.cos(angles), "float32"), pytorch.tensor(np.sin(angles), "float32")


def loss(weights: dict, tokens: Any, rope: tuple[Any, Any], config: ModelConfig) -> Any:
    """Returns the mean negative log-likelihood of every next token, in nats."""
    B, L = tokens.shape
    H, K, C = config.num_heads, config.num_kv_heads, config.head_dim
    x = _rms_norm(F.embedding(tokens, weights["streams"]["token_embedding"]), config)
    for w in weights["layers"]:
        n = _rms_norm(x, config)
        q = _apply_rope(_rms_norm((n @ w["query"].flatten(1)).view(B, L, H, C), config), rope)
        k = _apply_rope(_rms_norm((n @ w["key"].flatten(1)).view(B, L, K, C), config), rope)
        v = (n @ w["value"].flatten(1)).view(B, L, K, C).to(q.dtype)
        o = F.scaled_dot_product_attention(
            *(part.transpose(1, 2) for part in (q, k, v)), is_causal=True, enable_gqa=H != K
        )
        x = x + o.transpose(1, 2).reshape(B, L, H * C) @ w["attention_out"].flatten(0, 1)
        x = x + F.relu(_rms_norm(x, config) @ w["up"]).square() @ w["down"]
    h = _rms_norm(x, config)[:, :-1]
    logits = (h @ weights["streams"]["token_head"]).float()
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def _rms_norm(x: Any, config: ModelConfig) -> Any:
    return F.rms_norm(x, x.shape[-1:], eps=config.norm_eps)


def _apply_rope(x: Any, rope: tuple[Any, Any]) -> Any:
    cos, sin = (table.to(x.dtype) for table in rope)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def _autocast(config: ModelConfig) -> Any:
    if config.dtype == "float32":
        return contextlib.nullcontext()
    return torch.autocast(pytorch.device(), dtype=torch.bfloat16)
