"""The whole model: a thin Linen shell round a pure forward pass."""

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
from fm.model.config import ModelConfig
from fm.model.positions import expand_positions, rotary_cos_sin
from fm.parallel.mesh import constrain_batch


def forward(
    params: dict,
    inputs: dict[str, jax.Array],
    config: ModelConfig,
    *,
    mask: Mask,
    masked_BL: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Runs the layers.

    Args:
      params: as `Transformer.init` gives them.
      inputs: pieces (see `streams.embed`) and `positions` as `on_axes` takes them.
      config: the model's.
      mask: who sees whom.
      masked_BL: pieces the model may not see.

    Returns:
      `final` [B, L, D], the output the heads read, normalised if the style does, and `layers`
      [N + 1, B, L, D], the residual before the first layer and after each (dropped by the compiler
      where unused).

    Raises:
      UserError: the input is longer than the context.
    """
    config.check_length(inputs["positions"].shape[1])
    turns = rope_tables(inputs["positions"], config)
    x_BLD = embed_inputs(params["streams"], inputs, config, masked_BL)
    if config.uses_scan:

        def body(x, layer):
            y = constrain_batch(layers.apply_layer_with_remat(layer, x, turns, mask, config))
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
            residuals.append(constrain_batch(_layer(layer, residuals[-1], turns, mask, config)))
        last, residuals = residuals[-1], jnp.stack(residuals)
    return {"final": final_norm(params["streams"], last, config), "layers": residuals}


def embed_inputs(
    params: dict[str, jax.Array],
    inputs: dict[str, jax.Array],
    config: ModelConfig,
    masked_BL: jax.Array | None = None,
) -> jax.Array:
    """x_BLD, the residual before the first layer; `params` are those of the streams."""
    x_BLD = embeddings.embed(params, inputs, config, masked_BL)
    if config.arch.embedding_norm:
        x_BLD = layers.apply_norm(x_BLD, params, "embedding_norm", config.arch, config.norm_eps)
    return constrain_batch(x_BLD)


def final_norm(params: dict[str, jax.Array], x_BLD: jax.Array, config: ModelConfig) -> jax.Array:
    """What the heads read of the residual after the last layer."""
    if config.arch.final_norm:
        x_BLD = layers.apply_norm(x_BLD, params, "final_norm", config.arch, config.norm_eps)
    return x_BLD


def rope_tables(positions: jax.Array, config: ModelConfig) -> layers.RopeTables | None:
    """Rotations of positions as `on_axes` takes them; None where positions are learned."""
    if config.arch.position_encoding == "learned":
        return None
    positions_BLA = expand_positions(positions, config.position_axes)
    scaling = config.arch.rope_scaling
    return rotary_cos_sin(positions_BLA, config.head_dim, config.rope_theta, scaling)


# Traced once for all layers, and differentiated once; the compiled program is the same.
_layer = jax.jit(layers.apply_layer_with_remat, static_argnames="config")


class Transformer(nn.Module):
    """Linen shell: owns the parameters, leaves the mathematics to `forward`.

    Parameters are `{"streams": {...}, "layers": {...}}`, plain dicts of float32 arrays, the
    layers stacked along a leading axis whether or not they run as a scan.
    """

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        inputs: dict[str, jax.Array],
        *,
        mask: Mask,
        masked_BL: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """See `forward`."""
        params = {
            "streams": self.param("streams", embeddings.init_embeddings, self.config),
            "layers": self.param("layers", layers.init_layers, self.config),
        }
        if self.is_initializing():
            # No parameter depends on the pass, and tracing it takes longer than making them.
            return {}
        return forward(params, inputs, self.config, mask=mask, masked_BL=masked_BL)


def init(rng: jax.Array, config: ModelConfig) -> dict:
    """Fresh parameters; the same seed gives the same ones on every backend."""
    # Compiler options are for whole programs; traced inside another this is a part of one.
    whole = not isinstance(rng, Tracer) and jax.default_backend() == "cpu"
    return (_init_quickly if whole else _init)(rng, config)


def _draws(rng: jax.Array, config: ModelConfig) -> dict:
    return dict(Transformer(config).init(rng, {}, mask=Mask())["params"])


# XLA:CPU compiles random draws in half the time so, to the same bits and as fast to run.
_QUICKLY = {"xla_backend_optimization_level": 1}
_init = jax.jit(_draws, static_argnames="config")
_init_quickly = jax.jit(_draws, static_argnames="config", compiler_options=_QUICKLY)


def sharded_init(shardings: Any, config: ModelConfig) -> Callable[[jax.Array], dict]:
    """The program of `init`, whose parameters are made in these places, a tree of shardings."""
    options = _QUICKLY if jax.default_backend() == "cpu" else None
    draws = functools.partial(_draws, config=config)
    return jax.jit(draws, out_shardings=shardings, compiler_options=options)
