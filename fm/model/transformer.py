"""The transformer: a pure forward pass and the Linen module that owns its parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.core import Tracer

from fm.attention import Mask
from fm.model import embeddings, layers
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
    x_BLD = embed_inputs(params["streams"], inputs, config, masked_BL)
    if config.uses_scan:

        def body(x, layer):
            y = constrain_batch(layers.apply_layer_with_remat(layer, x, tables, mask, config))
            return y, y

        last, residuals = jax.lax.scan(body, x_BLD, params["layers"])
        residuals = jnp.concatenate([x_BLD[None], residuals])
    else:
        # `lax.split` transposes to one concatenation; slices would each pad a full-size gradient.
        ones = (1,) * config.num_layers
        parts = {name: jax.lax.split(w, ones, axis=0) for name, w in params["layers"].items()}
        residuals = [x_BLD]
        for n in range(config.num_layers):
            layer = {name: split[n][0] for name, split in parts.items()}
            residuals.append(
                constrain_batch(_jitted_layer(layer, residuals[-1], tables, mask, config))
            )
        last, residuals = residuals[-1], jnp.stack(residuals)
    return {"final": final_norm(params["streams"], last, config), "layers": residuals}


def embed_inputs(
    params: Arrays, inputs: Arrays, config: ModelConfig, masked_BL: jax.Array | None = None
) -> jax.Array:
    """Returns the residual x_BLD before the first layer, from tokens or patches and positions."""
    x_BLD = embeddings.embed(params, inputs, config, masked_BL)
    if config.arch.embedding_norm:
        x_BLD = layers.apply_norm(x_BLD, params, "embedding_norm", config)
    return constrain_batch(x_BLD)


def final_norm(params: Arrays, x_BLD: jax.Array, config: ModelConfig) -> jax.Array:
    """Returns the heads' input: the last layer's output, normalized if `arch.final_norm`."""
    if config.arch.final_norm:
        x_BLD = layers.apply_norm(x_BLD, params, "final_norm", config)
    return x_BLD


def rope_tables(positions: jax.Array, config: ModelConfig) -> layers.RopeTables | None:
    """Returns the RoPE cosines and sines of the positions, or None if positions are learned."""
    if config.arch.position_encoding == "learned":
        return None
    positions_BLA = layers.expand_positions(positions, config.position_axes)
    scaling = config.arch.rope_scaling
    return layers.rotary_cos_sin(positions_BLA, config.head_dim, config.rope_theta, scaling)


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
            "streams": self.param("streams", embeddings.init_embeddings_and_heads, self.config),
            "layers": self.param("layers", layers.init_layers, self.config),
        }
        if self.is_initializing():
            # No parameter depends on the forward pass, and tracing it is slower than making them.
            return {}
        return forward(params, inputs, self.config, mask=mask, masked_BL=masked_BL)


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
