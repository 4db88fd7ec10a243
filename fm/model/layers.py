"""One transformer layer as pure functions of a dict of arrays: norms, RoPE, attention, MLP."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from fm.attention import Mask, attention
from fm.model.config import ArchConfig, Arrays, ModelConfig, RopeScaling

# Cosines and sines of the positions, each float32 [B, L, 1, C/2].
RopeTables = tuple[jax.Array, jax.Array]

# Parameters of a layer that are kernels of linear maps; the others are vectors.
KERNELS = ("query", "key", "value", "attention_out", "gate", "up", "down")
# Kernels with the same input, which `kv_cache.prepare_params` concatenates.
FUSED_PROJECTIONS = (("query", "key", "value"), ("gate", "up"))
ACTIVATIONS = {
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
}
# `matmul` with a transposed kernel: up to 64 rows the kernel is the left operand, in 4 groups of
# outputs (of a single group XLA swaps the operands to save transposing the result).
_FEW_ROWS, _GROUPS = 64, 4
# Name of what a linear map returns, for remat policies.
_PRODUCT = "product"


# Norms: over the last axis, computed in float32 whatever the input's dtype.


def init_norm(arch: ArchConfig, name: str, *shape: int) -> Arrays:
    """Returns initial parameters of a norm: `<name>` (scale, ones), `<name>_shift` (bias, zeros).

    Args:
      arch: decides which of the two exist.
      name: of the norm.
      *shape: (D,) or stacked (N, D).
    """
    vectors = {}
    if arch.norm_scale:
        vectors[name] = jnp.ones(shape)
    if arch.norm_bias:
        vectors[f"{name}_shift"] = jnp.zeros(shape)
    return vectors


def apply_norm(x: jax.Array, params: Arrays, name: str, config: ModelConfig) -> jax.Array:
    """Returns x after the architecture's norm, with the scale and bias stored under `name`."""
    arch = config.arch
    y = (rms_norm if arch.norm == "rms" else layer_norm)(x, config.norm_eps)
    if arch.norm_scale:
        y = _float32(jnp.multiply, y, params[name])
    if arch.norm_bias:
        y = _float32(jnp.add, y, params[f"{name}_shift"])
    return y


def _float32(operation: Callable, x: jax.Array, vector: jax.Array) -> jax.Array:
    """Returns operation(x, vector) in the dtype of x, computed in float32.

    So the vector's gradient, a sum over all tokens, is added up in float32 too.
    """
    return operation(x.astype(jnp.float32), vector.astype(jnp.float32)).astype(x.dtype)


def rms_norm(x: jax.Array, eps: float) -> jax.Array:
    """Returns x / rms(x) over the last axis, without a scale (Zhang & Sennrich 2019, eq. 4)."""
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + eps)).astype(x.dtype)


def layer_norm(x: jax.Array, eps: float) -> jax.Array:
    """Returns (x - mean(x)) / std(x) over the last axis, without scale (Ba et al. 2016, eq. 3)."""
    x32 = x.astype(jnp.float32)
    return rms_norm(x32 - jnp.mean(x32, -1, keepdims=True), eps).astype(x.dtype)


# Rotary positions in one or more dimensions (Su et al. 2021, eq. 34).


def rotary_cos_sin(
    positions_BLA: jax.Array, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> RopeTables:
    """Returns the RoPE cosines and sines of all positions, shared by all layers.

    Each of the A axes rotates its own share of the head's C/2 channel pairs.

    Args:
      positions_BLA: int, absolute positions along each axis.
      head_dim: C, even.
      theta: the slowest frequency is about 1/theta.
      scaling: of the frequencies.
    """
    angles = []
    for axis, pairs in enumerate(rope_pairs_per_axis(head_dim // 2, positions_BLA.shape[-1])):
        frequencies = theta ** (-jnp.arange(pairs, dtype=jnp.float32) / pairs)
        if scaling:
            frequencies = scaling(frequencies, theta)
        angles.append(positions_BLA[..., axis, None].astype(jnp.float32) * frequencies)
    angles = jnp.concatenate(angles, axis=-1)[:, :, None]
    # In a loop, which XLA does not fuse into its users: fused, XLA:CPU computes every sine again
    # for each head, four times the cost of the rotation (a barrier is dropped before fusion).
    cosines, sines = jax.lax.map(
        lambda which: jax.lax.switch(which, (jnp.cos, jnp.sin), angles), jnp.arange(2)
    )
    if scaling and scaling.attention_factor != 1.0:
        cosines, sines = (table * scaling.attention_factor for table in (cosines, sines))
    return cosines, sines


def rope_pairs_per_axis(pairs: int, num_axes: int) -> tuple[int, ...]:
    """Returns how many RoPE channel pairs each position axis gets; the first get the remainder."""
    return tuple(pairs // num_axes + (axis < pairs % num_axes) for axis in range(num_axes))


def expand_positions(positions: jax.Array, num_axes: int) -> jax.Array:
    """Repeats text positions, or zero-pads patch positions, to all position axes, int [B, L, A].

    Args:
      positions: int, of text [B, L], audio [B, L, 1], images [B, L, 2] or video [B, L, 3].
      num_axes: of the model (A). Where the model has more axes than the modality, text position p
        is p on every axis, row and column of an image are the last two, and time is the first.

    Returns:
      int [B, L, A].
    """
    if positions.ndim == 2:
        return jnp.broadcast_to(positions[..., None], (*positions.shape, num_axes))
    own = positions.shape[-1]
    before = num_axes - own if own == 2 else 0
    return jnp.pad(positions, ((0, 0), (0, 0), (before, num_axes - own - before)))


def apply_rope(x_BLHC: jax.Array, cosines: jax.Array, sines: jax.Array) -> jax.Array:
    """Returns queries or keys with RoPE: channel pairs (c, c + C/2) rotated by position angles."""
    first, second = jnp.split(x_BLHC, 2, axis=-1)
    cosines, sines = cosines.astype(x_BLHC.dtype), sines.astype(x_BLHC.dtype)
    return jnp.concatenate(
        [first * cosines - second * sines, second * cosines + first * sines], axis=-1
    )


# Products with a kernel.


class TransposedKernel(NamedTuple):
    """A float32 kernel stored as [out, in], for faster products with few rows on a CPU.

    Such a product is memory bound, and XLA:CPU reads an [out, in] kernel as the left operand at up
    to twice the rate of an [in, out] kernel on the right, which it rearranges first. It is float32
    because XLA:CPU would convert a bfloat16 kernel anew for every product (the result is the same:
    XLA:CPU multiplies in float32 either way).
    """

    w_OI: jax.Array


Kernel = jax.Array | TransposedKernel


def transpose_kernel(kernel_IO: jax.Array) -> TransposedKernel:
    """Returns an [in, out] kernel stored as float32 [out, in], for faster products on a CPU."""
    return TransposedKernel(jnp.asarray(kernel_IO.T, jnp.float32))


def matmul(x: jax.Array, kernel: Kernel) -> jax.Array:
    """Returns x @ kernel as [..., out] in the dtype of x; the kernel may be stored transposed.

    Args:
      x: left operand.
      kernel: `TransposedKernel`, or an array whose axes flatten to [in, out].
    """
    if not isinstance(kernel, TransposedKernel):
        y = _product(x, kernel.astype(x.dtype).reshape(x.shape[-1], -1))
        return checkpoint_name(y, _PRODUCT)
    O, I = kernel.w_OI.shape  # noqa: E741
    x_TI = x.reshape(-1, I).astype(kernel.w_OI.dtype)
    if len(x_TI) == 1 or len(x_TI) > _FEW_ROWS or O % _GROUPS:
        y_TO = jnp.einsum("ti,oi->to", x_TI, kernel.w_OI)
    else:
        # G is a group of outputs, P an output in it.
        w_GPI = kernel.w_OI.reshape(_GROUPS, -1, I)
        y_GTP = jnp.einsum("ti,gpi->gtp", x_TI, w_GPI)
        y_TO = jnp.swapaxes(y_GTP, 0, 1).reshape(-1, O)
    return y_TO.reshape(*x.shape[:-1], O).astype(x.dtype)


@jax.custom_vjp
def _product(x: jax.Array, w_IO: jax.Array) -> jax.Array:
    """Returns x @ w_IO; its gradient by the kernel is written as one product x^T dy, [I, O].

    Derived by JAX it is (dy^T x)^T, for which XLA:CPU stores dy a second time, transposed, by an
    elementwise loop. The bits are the same.
    """
    return x @ w_IO


def _product_forward(x, w_IO):
    return _product(x, w_IO), (x, w_IO)


def _product_backward(residuals, dy):
    x, w_IO = residuals
    I, O = w_IO.shape  # noqa: E741
    # Of two axes: several contracted ones would be transposed too.
    x_TI, dy_TO = x.reshape(-1, I), dy.reshape(-1, O)
    return jnp.matmul(dy, w_IO.T), jnp.matmul(x_TI.T, dy_TO)


_product.defvjp(_product_forward, _product_backward)


def linear(layer: Arrays, name: str, x: jax.Array, config: ModelConfig) -> jax.Array:
    """Returns x times kernel `name`, plus LoRA and bias if any; head axes come out flattened."""
    return _add_lora_and_bias(layer, name, x, matmul(x, layer[name]), config)


def fused_linear(layer: Arrays, names: Sequence[str], x: jax.Array, config: ModelConfig) -> Arrays:
    """Returns the outputs of several linear maps by name, from one product if kernels are fused."""
    fused = layer.get("+".join(names))
    if fused is None:
        return {name: linear(layer, name, x, config) for name in names}
    C, F = config.head_dim, config.mlp_dim
    widths = {"query": config.num_heads * C, "key": config.num_kv_heads * C, "gate": F}
    boundaries = itertools.accumulate(widths[name] for name in names[:-1])
    parts = jnp.split(matmul(x, fused), list(boundaries), axis=-1)
    return {
        name: _add_lora_and_bias(layer, name, x, y, config)
        for name, y in zip(names, parts, strict=True)
    }


def _add_lora_and_bias(layer, name, x, y, config):
    if f"{name}_lora_a" in layer:
        a, b = (layer[f"{name}_lora_{part}"].astype(x.dtype) for part in "ab")
        y = y + x @ a @ b
    if config.arch.has_bias(name):
        y = _float32(jnp.add, y, layer[f"{name}_bias"].reshape(-1))
    return y


# The layer.


def init_layers(rng: jax.Array, config: ModelConfig) -> Arrays:
    """Returns initial parameters of all layers, stacked along a leading layer axis N.

    Kernels that write to the residual start at zero, so each pre-norm layer starts as the identity;
    the others are normal with variance 1/fan_in. Biases start at zero and scales at one.
    """
    arch = config.arch
    N, D, F = config.num_layers, config.d_model, config.mlp_dim
    H, K, C = config.num_heads, config.num_kv_heads, config.head_dim
    keys = jax.random.split(rng, 4)

    def normal(key, *shape):
        return jax.random.normal(key, (N, *shape)) * D**-0.5

    kernels = {
        "query": normal(keys[0], D, H, C),
        "key": normal(keys[1], D, K, C),
        "value": normal(keys[2], D, K, C),
        "attention_out": jnp.zeros((N, H, C, D)),
        "up": normal(keys[3], D, F),
        "down": jnp.zeros((N, F, D)),
    }
    if arch.gated_mlp:
        kernels["gate"] = normal(jax.random.fold_in(rng, 4), D, F)
    vectors = {}
    for name, kernel in kernels.items():
        if arch.has_bias(name):
            shape = (D,) if name == "attention_out" else kernel.shape[2:]
            vectors[f"{name}_bias"] = jnp.zeros((N, *shape))
    if arch.qk_norm == "gain":
        vectors |= {"query_norm": jnp.ones((N, C)), "key_norm": jnp.ones((N, C))}
    output_norms = ("attention_post_norm", "feed_forward_post_norm") if arch.sandwich_norm else ()
    for name in ("attention_norm", "feed_forward_norm", *output_norms):
        vectors |= init_norm(arch, name, N, D)
    return kernels | vectors


def layer_params(stacked: Arrays, n: int, config: ModelConfig) -> Arrays:
    """Returns the parameters of layer n that it reads, from those stacked over the layers."""
    return {name: leaf[n] for name, leaf in stacked.items() if reads_param(name, n, config)}


def reads_param(name: str, n: int, config: ModelConfig) -> bool:
    """Returns whether layer n reads the parameter `name`: all but the first attention norm may."""
    norm = name in ("attention_norm", "attention_norm_shift")
    return n > 0 or not norm or config.arch.first_attention_norm


def attend(
    q_BLHC: jax.Array, k_BSKC: jax.Array, v_BSKC: jax.Array, mask: Mask, config: ModelConfig
) -> jax.Array:
    """Returns `fm.attention.attention` by the config's implementation, score scale and soft cap."""
    scale, softcap = scale_and_softcap(config)
    return attention(
        *(q_BLHC, k_BSKC, v_BSKC),
        mask=mask,
        scale=scale,
        softcap=softcap,
        implementation=config.attention,
    )


def scale_and_softcap(config: ModelConfig) -> tuple[float | None, float | None]:
    """Returns the factor and the soft cap of attention scores; None for what attention takes."""
    scalar = config.arch.query_pre_attn_scalar
    return scalar**-0.5 if scalar else None, config.arch.attention_softcap or None


def layer_mask(mask: Mask, kind: str, config: ModelConfig) -> Mask:
    """Returns the mask of layers of a kind: that of the inputs, within the window if they slide.

    The window is static, so kernels skip what lies outside it. It is one of columns, which are
    positions where a row's tokens follow each other.
    """
    if kind == "full":
        return mask
    window = config.arch.sliding_window
    if mask.causal:
        return dataclasses.replace(mask, window=window)
    return dataclasses.replace(mask, window=window, window_right=window)


def apply_layer(
    layer: Arrays, x_BLD: jax.Array, rope_tables: RopeTables | None, mask: Mask, config: ModelConfig
) -> jax.Array:
    """Returns the residual x_BLD after one transformer layer: attention, then MLP.

    Args:
      layer: parameters of one layer, of any float dtype; products use the dtype of `x_BLD`.
      x_BLD: residual.
      rope_tables: of the layer's kind, from `rotary_cos_sin`; None if positions are learned.
      mask: of the layer's kind, see `layer_mask`.
    """
    q_BLHC, k_BLKC, v_BLKC = project_qkv(layer, x_BLD, rope_tables, config)
    o_BLHC = attend(q_BLHC, k_BLKC, v_BLKC, mask, config)
    return out_proj_and_mlp(layer, x_BLD, o_BLHC, config)


def apply_layer_with_remat(
    layer: Arrays,
    x_BLD: jax.Array,
    rope_tables: RopeTables | None,
    mask: Mask,
    config: ModelConfig,
    *,
    in_loop: bool = True,
) -> jax.Array:
    """Returns the residual stream after one layer, with remat by `config.remat_policy`.

    The rest is recomputed (Chen et al. 2016), one layer at a time. Saved numbers per token of a
    layer with MLP width 4 D and no gate: "full" D, "attention" 6 D, "dots" 9 D (fewer with grouped
    queries), "none" about 20 D. At long lengths attention is most of the work: "attention" does not
    repeat it, "dots" and "full" do.
    """
    if config.remat_policy == "none":
        return apply_layer(layer, x_BLD, rope_tables, mask, config)
    # The body of a scan is a program of its own, so CSE cannot undo the recomputation; that of a
    # single step is not, since XLA inlines it.
    checkpoint = functools.partial(jax.checkpoint, prevent_cse=not in_loop)
    if config.remat_policy == "attention":
        before = functools.partial(project_qkv, config=config)
        after = functools.partial(out_proj_and_mlp, config=config)
        q_BLHC, k_BLKC, v_BLKC = checkpoint(before)(layer, x_BLD, rope_tables)
        o_BLHC = attend(q_BLHC, k_BLKC, v_BLKC, mask, config)
        return checkpoint(after)(layer, x_BLD, o_BLHC)
    # A policy does not look into a function that has its own derivative: its output has a name.
    dots = jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(_PRODUCT),
    )
    policy = dots if config.remat_policy == "dots" else None
    whole = functools.partial(apply_layer, config=config)
    return checkpoint(whole, policy=policy)(layer, x_BLD, rope_tables, mask)


def project_qkv(
    layer: Arrays, x_BLD: jax.Array, rope_tables: RopeTables | None, config: ModelConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns q_BLHC and k_BLKC (normalized, rotated) and v_BLKC, the inputs of attention.

    QK norm (Dehghani et al. 2023, sec. 2) bounds the scores at any learning rate.
    """
    B, L, _ = x_BLD.shape
    n_BLD = _pre_norm(layer, "attention_norm", x_BLD, config)
    flat = fused_linear(layer, FUSED_PROJECTIONS[0], n_BLD, config)
    heads = {name: y.reshape(B, L, -1, config.head_dim) for name, y in flat.items()}

    def normalize_and_rotate(name):
        y_BLHC = heads[name]
        if config.arch.qk_norm != "none":
            y_BLHC = rms_norm(y_BLHC, config.norm_eps)
        if config.arch.qk_norm == "gain":
            y_BLHC = _float32(jnp.multiply, y_BLHC, layer[f"{name}_norm"])
        return y_BLHC if rope_tables is None else apply_rope(y_BLHC, *rope_tables)

    return normalize_and_rotate("query"), normalize_and_rotate("key"), heads["value"]


def out_proj_and_mlp(
    layer: Arrays, x_BLD: jax.Array, o_BLHC: jax.Array, config: ModelConfig
) -> jax.Array:
    """Returns the residual after the layer, given the output o_BLHC of its attention."""
    o_BLF = o_BLHC.reshape(*x_BLD.shape[:2], -1)
    y_BLD = linear(layer, "attention_out", o_BLF, config)
    x_BLD = x_BLD + _output_norm(layer, "attention_post_norm", y_BLD, config)
    x_BLD = _post_norm(layer, "attention_norm", x_BLD, config)
    n_BLD = _pre_norm(layer, "feed_forward_norm", x_BLD, config)
    y_BLD = mlp(layer, n_BLD, config)
    x_BLD = x_BLD + _output_norm(layer, "feed_forward_post_norm", y_BLD, config)
    return _post_norm(layer, "feed_forward_norm", x_BLD, config)


def mlp(layer: Arrays, n_BLD: jax.Array, config: ModelConfig) -> jax.Array:
    """Returns the MLP's output [B, L, D], gated if the architecture says so; no residual added."""
    activation = ACTIVATIONS[config.arch.activation]
    if config.arch.gated_mlp:
        both = fused_linear(layer, FUSED_PROJECTIONS[1], n_BLD, config)
        h_BLF = activation(both["gate"]) * both["up"]
    else:
        h_BLF = activation(linear(layer, "up", n_BLD, config))
    return linear(layer, "down", h_BLF, config)


def _pre_norm(layer, name, x_BLD, config):
    # A layer that does not normalize its attention's input has no such parameter (`reads_param`).
    skipped = not config.arch.first_attention_norm and name not in layer
    if config.arch.post_norm or skipped:
        return x_BLD
    return apply_norm(x_BLD, layer, name, config)


def _output_norm(layer, name, y_BLD, config):
    return apply_norm(y_BLD, layer, name, config) if config.arch.sandwich_norm else y_BLD


def _post_norm(layer, name, x_BLD, config):
    return apply_norm(x_BLD, layer, name, config) if config.arch.post_norm else x_BLD
