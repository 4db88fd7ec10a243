"""Products with a kernel, which may lie turned round for the sake of a few rows.

On a CPU a product with one row or a few is bound by the memory, and XLA reads a kernel that lies
[out, in] as the left side at up to twice the rate of one that lies [in, out] on the right, which
it rearranges first. A bfloat16 kernel it converts anew, whole, for every product: such a kernel is
therefore held in float32 (the same numbers; XLA:CPU multiplies in float32 either way).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fm.attention import Mask, attention
from fm.model.config import ArchConfig, ModelConfig
from fm.model.positions import apply_rope

# Up to so many rows the kernel is the left side, in so many groups of outputs: of a single one XLA
# makes a product with the sides exchanged, to save turning the result.
_FEW, _GROUPS = 64, 4


class TransposedKernel(NamedTuple):
    """A kernel [in, out] that lies as [out, in]."""

    w_OI: jax.Array


Kernel = jax.Array | TransposedKernel


def transpose_kernel(kernel_IO: jax.Array) -> TransposedKernel:
    """The same kernel turned round, in float32."""
    return TransposedKernel(jnp.asarray(kernel_IO.T, jnp.float32))


def matmul(x: jax.Array, kernel: Kernel) -> jax.Array:
    """x [..., in] times a kernel of any float dtype, in the dtype of x.

    Args:
      x: what is multiplied.
      kernel: `Turned`, or an array whose axes flatten to [in, out].
    """
    if not isinstance(kernel, TransposedKernel):
        return x @ kernel.astype(x.dtype).reshape(x.shape[-1], -1)
    O, I = kernel.w_OI.shape  # noqa: E741
    x_TI = x.reshape(-1, I).astype(kernel.w_OI.dtype)
    if len(x_TI) == 1 or len(x_TI) > _FEW or O % _GROUPS:
        y_TO = jnp.einsum("ti,oi->to", x_TI, kernel.w_OI)
    else:
        # G is a group of outputs, P an output in it.
        w_GPI = kernel.w_OI.reshape(_GROUPS, -1, I)
        y_GTP = jnp.einsum("ti,gpi->gtp", x_TI, w_GPI)
        y_TO = jnp.swapaxes(y_GTP, 0, 1).reshape(-1, O)
    return y_TO.reshape(*x.shape[:-1], O).astype(x.dtype)


def init_norm(arch: ArchConfig, name: str, *shape: int) -> dict[str, jax.Array]:
    """Parameters of one norm: `<name>` ones for the gain, `<name>_shift` zeros, where it has them.

    Args:
      arch: whether it has them.
      name: of the norm among its neighbours.
      *shape: of its vectors, (D,) or stacked (N, D).
    """
    vectors = {}
    if arch.norm_scale:
        vectors[name] = jnp.ones(shape)
    if arch.norm_bias:
        vectors[f"{name}_shift"] = jnp.zeros(shape)
    return vectors


def apply_norm(
    x: jax.Array, params: dict[str, jax.Array], name: str, arch: ArchConfig, eps: float
) -> jax.Array:
    """The style's norm, with the gain and shift it has under this name."""
    y = rms_norm(x, eps) if arch.norm == "rms" else layer_norm(x, eps)
    if arch.norm_scale:
        y = y * params[name].astype(y.dtype)
    if arch.norm_bias:
        y = y + params[f"{name}_shift"].astype(y.dtype)
    return y


def rms_norm(x: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) over the last axis, without a gain (Zhang & Sennrich 2019, eq. 4)."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps)).astype(x.dtype)


def layer_norm(x: jax.Array, eps: float) -> jax.Array:
    """(x - mean(x)) / std(x) over the last axis, without gain or shift (Ba et al. 2016, eq. 3)."""
    x32 = x.astype(jnp.float32)
    return rms_norm(x32 - jnp.mean(x32, -1, keepdims=True), eps).astype(x.dtype)


RopeTables = tuple[jax.Array, jax.Array]  # cosines and sines, see `fm.model.positions`

# Linear maps, which `linear` applies; whatever else a layer has are vectors.
KERNELS = ("query", "key", "value", "attention_out", "gate", "up", "down")
# Those that read the same.
FUSED_PROJECTIONS = (("query", "key", "value"), ("gate", "up"))
ACTIVATIONS = {
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}


def init_layers(rng: jax.Array, config: ModelConfig) -> dict[str, jax.Array]:
    """Parameters of all layers, stacked: every leaf leads with the depth N.

    Kernels into the residual start at zero, so each layer starts as the identity (in a pre-norm
    style); the others are normal with variance 1/fan_in. Biases start at zero and gains at one.
    """
    style = config.arch
    N, D, F = config.num_layers, config.d_model, config.mlp_dim
    H, K, C = config.num_heads, config.num_kv_heads, config.head_dim
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
    if style.gated_mlp:
        kernels["gate"] = normal(jax.random.fold_in(rng, 4), D, F, fan_in=D)
    vectors = {}
    for name, kernel in kernels.items():
        if style.has_bias(name):
            shape = (D,) if name == "attention_out" else kernel.shape[2:]
            vectors[f"{name}_bias"] = jnp.zeros((N, *shape))
    if style.qk_norm == "gain":
        vectors |= {"query_norm": jnp.ones((N, C)), "key_norm": jnp.ones((N, C))}
    for name in ("attention_norm", "feed_forward_norm"):
        vectors |= init_norm(style, name, N, D)
    return kernels | vectors


def apply_layer(
    layer: dict[str, jax.Array],
    x_BLD: jax.Array,
    rope_tables: RopeTables | None,
    mask: Mask,
    config: ModelConfig,
) -> jax.Array:
    """Attention and feed-forward, each a residual, normalised before or after.

    Args:
      layer: parameters of one layer, of any float dtype; products are made in that of `x_BLD`.
      x_BLD: the residual.
      rope_tables: rotations of the positions; None where positions are learned.
      mask: who sees whom.
      config: the model's.
    """
    q_BLHC, k_BLKC, v_BLKC = project_qkv(layer, x_BLD, rope_tables, config)
    o_BLHC = attention(q_BLHC, k_BLKC, v_BLKC, mask=mask, implementation=config.attention)
    return out_proj_and_mlp(layer, x_BLD, o_BLHC, config)


def out_proj_and_mlp(
    layer: dict[str, jax.Array], x_BLD: jax.Array, o_BLHC: jax.Array, config: ModelConfig
) -> jax.Array:
    """The rest of the layer: what attention gave goes into the residual, then the feed-forward."""
    o_BLF = o_BLHC.reshape(*x_BLD.shape[:2], -1)
    x_BLD = x_BLD + linear(layer, "attention_out", o_BLF, config)
    x_BLD = _post_norm(layer, "attention_norm", x_BLD, config)
    n_BLD = _pre_norm(layer, "feed_forward_norm", x_BLD, config)
    x_BLD = x_BLD + mlp(layer, n_BLD, config)
    return _post_norm(layer, "feed_forward_norm", x_BLD, config)


def project_qkv(
    layer: dict[str, jax.Array],
    x_BLD: jax.Array,
    rope_tables: RopeTables | None,
    config: ModelConfig,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What attention reads of a residual: q_BLHC and k_BLKC, normalised and turned, and v_BLKC.

    Normalising them per head (Dehghani et al. 2023, sec. 2), where the style does, keeps the
    scores bounded whatever the learning rate does.
    """
    B, L, _ = x_BLD.shape
    n_BLD = _pre_norm(layer, "attention_norm", x_BLD, config)
    flat = fused_linear(layer, FUSED_PROJECTIONS[0], n_BLD, config)
    heads = {name: y.reshape(B, L, -1, config.head_dim) for name, y in flat.items()}

    def placed(name):
        y_BLHC = heads[name]
        if config.arch.qk_norm != "none":
            y_BLHC = rms_norm(y_BLHC, config.norm_eps)
        if config.arch.qk_norm == "gain":
            y_BLHC = y_BLHC * layer[f"{name}_norm"].astype(y_BLHC.dtype)
        return y_BLHC if rope_tables is None else apply_rope(y_BLHC, *rope_tables)

    return placed("query"), placed("key"), heads["value"]


def mlp(layer: dict[str, jax.Array], n_BLD: jax.Array, config: ModelConfig) -> jax.Array:
    """Up to F, through the activation, which may multiply a gate's place, and down to D."""
    activation = ACTIVATIONS[config.arch.activation]
    if config.arch.gated_mlp:
        both = fused_linear(layer, FUSED_PROJECTIONS[1], n_BLD, config)
        h_BLF = activation(both["gate"]) * both["up"]
    else:
        h_BLF = activation(linear(layer, "up", n_BLD, config))
    return linear(layer, "down", h_BLF, config)


def linear(layer: dict[str, jax.Array], name: str, x: jax.Array, config: ModelConfig) -> jax.Array:
    """x times the kernel of this name, its heads flattened, and what else belongs to it.

    That is its bias, if it has one, and the product with its low-rank adapters, if it has any
    (`fm.adaptation.lora`).
    """
    return _completed(layer, name, x, matmul(x, layer[name]), config)


def fused_linear(
    layer: dict[str, jax.Array], names: Sequence[str], x: jax.Array, config: ModelConfig
) -> dict[str, jax.Array]:
    """`linear` of each name, in one product where `cached.prepare` has joined their kernels."""
    joined = layer.get("+".join(names))
    if joined is None:
        return {name: linear(layer, name, x, config) for name in names}
    C, F = config.head_dim, config.mlp_dim
    widths = {"query": config.num_heads * C, "key": config.num_kv_heads * C, "gate": F}
    ends = itertools.accumulate(widths[name] for name in names[:-1])
    parts = jnp.split(matmul(x, joined), list(ends), axis=-1)
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


def _pre_norm(layer, name, x_BLD, config):
    """What a block reads of the residual."""
    if config.style.post_norm:
        return x_BLD
    return apply_norm(x_BLD, layer, name, config.style, config.norm_eps)


def _post_norm(layer, name, x_BLD, config):
    """What becomes of the residual once a block has been added."""
    if not config.style.post_norm:
        return x_BLD
    return apply_norm(x_BLD, layer, name, config.style, config.norm_eps)


def apply_layer_with_remat(
    layer: dict[str, jax.Array],
    x_BLD: jax.Array,
    rope_tables: RopeTables | None,
    mask: Mask,
    config: ModelConfig,
) -> jax.Array:
    """`layers.apply`, keeping what `config.remat` says."""
    if config.remat_policy == "none":
        return apply_layer(layer, x_BLD, rope_tables, mask, config)
    # The layers are a scan, whose body is a program of its own: nothing need keep apart what is
    # computed twice.
    again = functools.partial(jax.checkpoint, prevent_cse=False)
    if config.remat_policy == "attention":
        before = functools.partial(project_qkv, config=config)
        after = functools.partial(out_proj_and_mlp, config=config)
        q_BLHC, k_BLKC, v_BLKC = again(before)(layer, x_BLD, rope_tables)
        o_BLHC = attention(q_BLHC, k_BLKC, v_BLKC, mask=mask, implementation=config.attention)
        return again(after)(layer, x_BLD, o_BLHC)
    products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    whole = functools.partial(apply_layer, config=config)
    policy = products if config.remat_policy == "dots" else None
    return again(whole, policy=policy)(layer, x_BLD, rope_tables, mask)
