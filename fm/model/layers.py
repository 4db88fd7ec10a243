"""One transformer layer as pure functions over a dict of arrays."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fm.attention import Mask, attention
from fm.model import norms
from fm.model.config import ModelConfig
from fm.model.norms import rms_norm
from fm.model.positions import rotate
from fm.model.products import times

Turns = tuple[jax.Array, jax.Array]  # cosines and sines, see `fm.model.positions`

# Linear maps, which `linear` applies; whatever else a layer has are vectors.
KERNELS = ("query", "key", "value", "attention_out", "gate", "up", "down")
# Those that read the same.
TOGETHER = (("query", "key", "value"), ("gate", "up"))
ACTIVATIONS = {
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}


def init(rng: jax.Array, config: ModelConfig) -> dict[str, jax.Array]:
    """Parameters of all layers, stacked: every leaf leads with the depth N.

    Kernels into the residual start at zero, so each layer starts as the identity (in a pre-norm
    style); the others are normal with variance 1/fan_in. Biases start at zero and gains at one.
    """
    style = config.style
    N, D, F = config.depth, config.width, config.hidden
    H, K, C = config.heads, config.kv_heads, config.head_width
    keys = jax.random.split(rng, 4)

    def normal(key, *shape, fan_in):
        return jax.random.normal(key, (N, *shape)) * fan_in**-0.5

    kernels = {
        "query": normal(keys[0], D, H, C, fan_in=D),
        "key": normal(keys[1], D, K, C, fan_in=D),
        "value": normal(keys[2], D, K, C, fan_in=D),
        "attention_out": jnp.zeros((N, H, C, D)),
        "up": normal(keys[3], D, F, fan_in=D),
        "down": jnp.zeros((N, F, D)),
    }
    if style.gated:
        kernels["gate"] = normal(jax.random.fold_in(rng, 4), D, F, fan_in=D)
    vectors = {}
    for name, kernel in kernels.items():
        if style.biased(name):
            shape = (D,) if name == "attention_out" else kernel.shape[2:]
            vectors[f"{name}_bias"] = jnp.zeros((N, *shape))
    if style.qk_norm == "gain":
        vectors |= {"query_norm": jnp.ones((N, C)), "key_norm": jnp.ones((N, C))}
    for name in ("attention_norm", "feed_forward_norm"):
        vectors |= norms.init(style, name, N, D)
    return kernels | vectors


def apply(
    layer: dict[str, jax.Array],
    x_BLD: jax.Array,
    turns: Turns | None,
    mask: Mask,
    config: ModelConfig,
) -> jax.Array:
    """Attention and feed-forward, each a residual, normalised before or after.

    Args:
      layer: parameters of one layer, of any float dtype; products are made in that of `x_BLD`.
      x_BLD: the residual.
      turns: rotations of the positions; None where positions are learned.
      mask: who sees whom.
      config: the model's.
    """
    q_BLHC, k_BLKC, v_BLKC = queries_keys_values(layer, x_BLD, turns, config)
    o_BLHC = attention(q_BLHC, k_BLKC, v_BLKC, mask=mask, implementation=config.attention)
    return after_attention(layer, x_BLD, o_BLHC, config)


def after_attention(
    layer: dict[str, jax.Array], x_BLD: jax.Array, o_BLHC: jax.Array, config: ModelConfig
) -> jax.Array:
    """The rest of the layer: what attention gave goes into the residual, then the feed-forward."""
    o_BLF = o_BLHC.reshape(*x_BLD.shape[:2], -1)
    x_BLD = x_BLD + linear(layer, "attention_out", o_BLF, config)
    x_BLD = _after(layer, "attention_norm", x_BLD, config)
    n_BLD = _before(layer, "feed_forward_norm", x_BLD, config)
    x_BLD = x_BLD + feed_forward(layer, n_BLD, config)
    return _after(layer, "feed_forward_norm", x_BLD, config)


def queries_keys_values(
    layer: dict[str, jax.Array],
    x_BLD: jax.Array,
    turns: Turns | None,
    config: ModelConfig,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What attention reads of a residual: q_BLHC and k_BLKC, normalised and turned, and v_BLKC.

    Normalising them per head (Dehghani et al. 2023, sec. 2), where the style does, keeps the
    scores bounded whatever the learning rate does.
    """
    B, L, _ = x_BLD.shape
    n_BLD = _before(layer, "attention_norm", x_BLD, config)
    flat = linears(layer, TOGETHER[0], n_BLD, config)
    heads = {name: y.reshape(B, L, -1, config.head_width) for name, y in flat.items()}

    def placed(name):
        y_BLHC = heads[name]
        if config.style.qk_norm != "none":
            y_BLHC = rms_norm(y_BLHC, config.norm_eps)
        if config.style.qk_norm == "gain":
            y_BLHC = y_BLHC * layer[f"{name}_norm"].astype(y_BLHC.dtype)
        return y_BLHC if turns is None else rotate(y_BLHC, *turns)

    return placed("query"), placed("key"), heads["value"]


def feed_forward(layer: dict[str, jax.Array], n_BLD: jax.Array, config: ModelConfig) -> jax.Array:
    """Up to F, through the activation, which may multiply a gate's place, and down to D."""
    activation = ACTIVATIONS[config.style.activation]
    if config.style.gated:
        both = linears(layer, TOGETHER[1], n_BLD, config)
        h_BLF = activation(both["gate"]) * both["up"]
    else:
        h_BLF = activation(linear(layer, "up", n_BLD, config))
    return linear(layer, "down", h_BLF, config)


def linear(layer: dict[str, jax.Array], name: str, x: jax.Array, config: ModelConfig) -> jax.Array:
    """x times the kernel of this name, its heads flattened, and what else belongs to it.

    That is its bias, if it has one, and the product with its low-rank adapters, if it has any
    (`fm.transfer.lora`).
    """
    return _completed(layer, name, x, times(x, layer[name]), config)


def linears(
    layer: dict[str, jax.Array], names: Sequence[str], x: jax.Array, config: ModelConfig
) -> dict[str, jax.Array]:
    """`linear` of each name, in one product where `cached.prepare` has joined their kernels."""
    joined = layer.get("+".join(names))
    if joined is None:
        return {name: linear(layer, name, x, config) for name in names}
    C, F = config.head_width, config.hidden
    widths = {"query": config.heads * C, "key": config.kv_heads * C, "gate": F}
    ends = itertools.accumulate(widths[name] for name in names[:-1])
    parts = jnp.split(times(x, joined), list(ends), axis=-1)
    products = zip(names, parts, strict=True)
    return {name: _completed(layer, name, x, y, config) for name, y in products}


def _completed(layer, name, x, y, config):
    """y, x times the kernel of this name, with its adapters' product and its bias."""
    if f"{name}_lora_a" in layer:
        a, b = (layer[f"{name}_lora_{part}"].astype(x.dtype) for part in "ab")
        y = y + x @ a @ b
    if config.style.biased(name):
        y = y + layer[f"{name}_bias"].astype(y.dtype).reshape(-1)
    return y


def _before(layer, name, x_BLD, config):
    """What a block reads of the residual."""
    if config.style.post_norm:
        return x_BLD
    return norms.norm(x_BLD, layer, name, config.style, config.norm_eps)


def _after(layer, name, x_BLD, config):
    """What becomes of the residual once a block has been added."""
    if not config.style.post_norm:
        return x_BLD
    return norms.norm(x_BLD, layer, name, config.style, config.norm_eps)
