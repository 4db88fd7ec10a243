"""The transformer: a pure forward pass and the Linen module that owns its parameters."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.core import Tracer

from fm.attention import Mask
from fm.model import embeddings, layers, stems
from fm.model.config import Arrays, ModelConfig
from fm.parallel.mesh import constrain_batch, default_device


def forward(
    params: dict,
    inputs: Arrays,
    config: ModelConfig,
    *,
    mask: Mask,
    masked_BL: jax.Array | None = None,
) -> Arrays:
    """Runs embeddings and layers without heads; returns final and per-layer hidden states.

    Args:
      params: from `Transformer.init`.
      inputs: tokens or patches (see `embeddings.embed`) and `positions` (see
        `layers.expand_positions`).
      mask: which tokens each query attends to.
      masked_BL: bool, tokens replaced by the mask embedding.

    Returns:
      `final` [B, L, D], what the heads read, and `layers` [N + 1, B, L, D], the residual before the
      first layer and after each one (the compiler drops it where unused).

    Raises:
      UserError: the input is longer than `config.max_seq_len`.
    """
    config.check_length(inputs["positions"].shape[1])
    tables = rope_tables(inputs["positions"], config)
    masks = {kind: layers.layer_mask(mask, kind, config) for kind in tables}
    x_BLD = embed_inputs(params["streams"], inputs, config, masked_BL)
    run_layers = _scan_layers if config.uses_scan else _unroll_layers
    last_BLD, residuals = run_layers(params["layers"], x_BLD, tables, masks, config)
    return {"final": final_norm(params["streams"], last_BLD, config), "layers": residuals}


def _unroll_layers(
    stacked: Arrays,
    x_BLD: jax.Array,
    tables: dict[str, layers.RopeTables | None],
    masks: dict[str, Mask],
    config: ModelConfig,
) -> tuple[jax.Array, jax.Array]:
    """Returns the last layer's output, and the residuals before the first and after each layer."""
    # `lax.split` transposes to one concatenation; slices would each pad a full-size gradient.
    ones = (1,) * config.num_layers
    parts = {name: jax.lax.split(w, ones, axis=0) for name, w in stacked.items()}
    residuals = [x_BLD]
    for n, kind in enumerate(config.layer_kinds):
        layer = {
            name: split[n][0]
            for name, split in parts.items()
            if layers.reads_param(name, n, config)
        }
        y_BLD = _jitted_layer(layer, residuals[-1], tables[kind], masks[kind], config)
        residuals.append(constrain_batch(y_BLD))
    return residuals[-1], jnp.stack(residuals)


def _scan_layers(
    stacked: Arrays,
    x_BLD: jax.Array,
    tables: dict[str, layers.RopeTables | None],
    masks: dict[str, Mask],
    config: ModelConfig,
) -> tuple[jax.Array, jax.Array]:
    """Returns the same as `_unroll_layers`, the layers run as scans.

    A step of a scan runs one period of the layer pattern, so that each of its layers has a mask of
    its own whose window is static: kernels then skip what lies outside. A window by layer in an
    array would let one step run one layer, but kernels would see no window.
    """
    residuals = [x_BLD[None]]
    for start, steps, period in scan_groups(config):

        def body(x_BLD, group, start=start, steps=steps, period=period):
            outputs = []
            for n in range(start, start + period):
                layer = {
                    name: leaf[n - start] if period > 1 else leaf
                    for name, leaf in group.items()
                    if layers.reads_param(name, n, config)
                }
                kind = config.layer_kinds[n]
                x_BLD = layers.apply_layer_with_remat(
                    layer, x_BLD, tables[kind], masks[kind], config, in_loop=steps > 1
                )
                x_BLD = constrain_batch(x_BLD)
                outputs.append(x_BLD)
            return x_BLD, jnp.stack(outputs) if period > 1 else x_BLD

        def grouped(leaf, start=start, steps=steps, period=period):
            if steps * period < config.num_layers:
                leaf = leaf[start : start + steps * period]
            return leaf.reshape(steps, period, *leaf.shape[1:]) if period > 1 else leaf

        x_BLD, outputs = jax.lax.scan(body, x_BLD, jax.tree.map(grouped, stacked))
        residuals.append(outputs.reshape(-1, *x_BLD.shape))
    return x_BLD, jnp.concatenate(residuals)


def scan_groups(config: ModelConfig) -> list[tuple[int, int, int]]:
    """Returns (first layer, steps, layers per step) of each scan that together run all layers.

    A step runs one period of the layer pattern; layers left over run in a step of their own. A
    pattern that does not repeat is cut into runs of equal layers instead.
    """
    kinds, period = config.layer_kinds, len(config.arch.layer_pattern)
    period = 1 if len(set(kinds)) < 2 else period
    # A first layer without a norm is no step of the others.
    start = 0 if config.arch.first_attention_norm else min(1, len(kinds))
    groups = [(0, 1, 1)] * start
    steps, rest = divmod(len(kinds) - start, period)
    if period > 1 and steps < 2:
        for _, run in itertools.groupby(kinds[start:]):
            groups.append((start, len(list(run)), 1))
            start += groups[-1][1]
        return groups
    groups.append((start, steps, period))
    return groups + [(len(kinds) - rest, 1, rest)] * bool(rest)


def embed_inputs(
    params: Arrays, inputs: Arrays, config: ModelConfig, masked_BL: jax.Array | None = None
) -> jax.Array:
    """Returns the residual x_BLD before the first layer, from tokens or patches and positions."""
    if isinstance(config, stems.EncoderConfig):
        return constrain_batch(stems.embed_stem(params, inputs, config))
    x_BLD = embeddings.embed(params, inputs, config, masked_BL)
    if config.arch.embedding_norm:
        x_BLD = layers.apply_norm(x_BLD, params, "embedding_norm", config)
    return constrain_batch(x_BLD)


def final_norm(params: Arrays, x_BLD: jax.Array, config: ModelConfig) -> jax.Array:
    """Returns the heads' input: the last layer's output, normalized if `arch.final_norm`."""
    if config.arch.final_norm:
        x_BLD = layers.apply_norm(x_BLD, params, "final_norm", config)
    return x_BLD


def rope_tables(positions: jax.Array, config: ModelConfig) -> dict[str, layers.RopeTables | None]:
    """Returns the RoPE cosines and sines of the positions by kind of layer; None if learned."""
    kinds = tuple(dict.fromkeys(config.layer_kinds))
    if config.arch.position_encoding == "learned":
        return dict.fromkeys(kinds)
    positions_BLA = layers.expand_positions(positions, config.position_axes)

    def tables(theta, scaling):
        return layers.rotary_cos_sin(positions_BLA, config.head_dim, theta, scaling)

    local_theta = config.arch.local_rope_theta
    if not local_theta:
        return dict.fromkeys(kinds, tables(config.rope_theta, config.arch.rope_scaling))
    rope_of = {
        "full": (config.rope_theta, config.arch.rope_scaling),
        "sliding": (local_theta, None),
    }
    return {kind: tables(*rope_of[kind]) for kind in kinds}


# Traced and differentiated once for all layers; the compiled program is the same.
_jitted_layer = jax.jit(layers.apply_layer_with_remat, static_argnames="config")


class Transformer(nn.Module):
    """Linen module that creates the model's parameters and applies `forward` with them.

    Parameters are `{"streams": {...}, "layers": {...}}`, plain dicts of float32 arrays; layers are
    stacked along a leading axis whether or not they run as a scan.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, inputs: Arrays, *, mask: Mask, masked_BL: jax.Array | None = None) -> Arrays:
        """Runs `forward` with the module's parameters; returns final states and residuals."""
        params = {
            "streams": self.param("streams", _init_streams, self.config),
            "layers": self.param("layers", layers.init_layers, self.config),
        }
        if self.is_initializing():
            # No parameter depends on the forward pass, and tracing it is slower than making them.
            return {}
        return forward(params, inputs, self.config, mask=mask, masked_BL=masked_BL)


def _init_streams(rng: jax.Array, config: ModelConfig) -> Arrays:
    if isinstance(config, stems.EncoderConfig):
        return stems.init_stem(rng, config)
    return embeddings.init_embeddings_and_heads(rng, config)


def init(rng: jax.Array, config: ModelConfig) -> dict:
    """Returns randomly initialized parameters; a seed gives the same ones on every backend."""
    # Compiler options apply to whole programs; inside another trace this is a part of one.
    whole = not isinstance(rng, Tracer) and default_device().platform == "cpu"
    return (_init_fast_compile if whole else _init)(rng, config)


def _init_params(rng: jax.Array, config: ModelConfig) -> dict:
    return dict(Transformer(config).init(rng, {}, mask=Mask())["params"])


# Halves XLA:CPU's compile time of random draws, with the same bits and run time.
_FAST_COMPILE = {"xla_backend_optimization_level": 1}
_init = jax.jit(_init_params, static_argnames="config")
_init_fast_compile = jax.jit(_init_params, static_argnames="config", compiler_options=_FAST_COMPILE)


def compile_sharded_init(shardings: Any, config: ModelConfig) -> Callable[[jax.Array], dict]:
    """Returns a jitted `init`: random key -> parameters that have the given shardings."""
    device = next(iter(jax.tree.leaves(shardings)[0].device_set))
    options = _FAST_COMPILE if device.platform == "cpu" else None
    init_params = functools.partial(_init_params, config=config)
    return jax.jit(init_params, out_shardings=shardings, compiler_options=options)
