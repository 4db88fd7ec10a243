"""One optimisation step as one program: loss, gradient, update, metrics; its state donated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.training import objectives, optimizer
from fm.training.objectives import Batch, Objective
from fm.training.optimizer import OptimizerConfig
from fm.training.state import State

Metrics = dict[str, jax.Array]
# Batches come as numpy arrays; the seed is an argument, so that seeds share one program.
Step = Callable[[State, dict[str, Any], int, jax.Array | None], tuple[State, Metrics]]
Evaluate = Callable[[dict, dict[str, Any], int, jax.Array | None], Metrics]


@functools.lru_cache(maxsize=64)
def train_step(
    config: ModelConfig,
    objective: Objective,
    rule: OptimizerConfig,
    steps: int,
    accumulate: int = 1,
) -> Step:
    """The compiled step; equal arguments give the same function, compiled once per shape.

    Args:
      config: the model's.
      objective: what is predicted.
      rule: optimiser and schedule.
      steps: length of the schedule.
      accumulate: parts a batch is taken in, one after another, to need less memory. The result
        is that of the whole batch, up to the order of summation.

    Returns:
      step(state, batch, seed, token_weights_V) -> (state, metrics). The given state is consumed.
      Metrics are float32 scalars: `loss`, the nats of each objective, `grad_norm` (before
      clipping) and `learning_rate`.

    Raises:
      UserError: (when the step is called) a batch whose rows do not divide into the parts.
    """
    update = optimizer.build(rule, steps).update
    rate = optimizer.schedule(rule, rule.learning_rate, steps)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch, seed, token_weights_V):
        metrics, gradient = measured_gradient(
            state, batch, seed, config, objective, token_weights_V, accumulate
        )
        metrics["learning_rate"] = jnp.asarray(rate(state["step"]), jnp.float32)
        return apply_gradient(state, gradient, update), metrics

    return step


def measured_gradient(
    state: State,
    batch: Batch,
    seed: int | jax.Array,
    config: ModelConfig,
    objective: Objective,
    token_weights_V: jax.Array | None,
    accumulate: int,
) -> tuple[Metrics, dict]:
    """The first half of a step: metrics, with `grad_norm`, and gradient where the state is."""
    rng = jax.random.fold_in(jax.random.key(seed), state["step"])
    metrics, gradient = value_and_gradient(
        state["params"], batch, rng, config, objective, token_weights_V, accumulate
    )
    return metrics | {"grad_norm": optax.global_norm(gradient)}, gradient


def apply_gradient(state: State, gradient: dict, update: optax.TransformUpdateFn) -> State:
    """The second half: the state after an update by the gradient."""
    changes, opt_state = update(gradient, state["opt_state"], state["params"])
    return {
        "params": optax.apply_updates(state["params"], changes),
        "opt_state": opt_state,
        "step": state["step"] + 1,
    }


@functools.lru_cache(maxsize=64)
def evaluate(config: ModelConfig, objective: Objective) -> Evaluate:
    """The compiled loss: evaluate(params, batch, seed, token_weights_V) -> metrics."""

    @jax.jit
    def metrics(params, batch, seed, token_weights_V):
        rng = jax.random.key(seed)
        total, parts = objectives.loss(params, batch, rng, config, objective, token_weights_V)
        return {"loss": total, **parts}

    return metrics


def value_and_gradient(
    params: dict,
    batch: Batch,
    rng: jax.Array,
    config: ModelConfig,
    objective: Objective,
    token_weights_V: jax.Array | None,
    accumulate: int,
) -> tuple[Metrics, dict]:
    """Metrics of a batch and the gradient of its loss, in `accumulate` parts.

    A mean of the parts' means would weigh a piece by how full its part is. So the noise is drawn
    and the predicted pieces are counted over the whole batch first; each part then adds its
    share of the whole batch's mean.
    """
    noise_BL = jax.random.uniform(rng, batch["segments"].shape)

    def sums(params, rows, noise):
        return objectives.sums(params, rows, noise, config, objective, token_weights_V)

    def part_loss(params, rows, noise, counts=None):
        nats = sums(params, rows, noise)
        counts = counts or {name: count for name, (_, count) in nats.items()}
        total, metrics = objectives.mean(nats, counts, objective, rows)
        return total, {"loss": total, **metrics}

    gradient_of = jax.grad(part_loss, has_aux=True)
    if accumulate == 1:
        gradient, metrics = gradient_of(params, batch, noise_BL)
        return metrics, gradient

    # Counts do not depend on what the model says: the compiler drops this forward pass.
    counts = {name: count for name, (_, count) in sums(params, batch, noise_BL).items()}

    def add_part(total, part):
        return jax.tree.map(jnp.add, total, gradient_of(params, *part, counts)), None

    parts = split(batch | {"noise": noise_BL}, objective, accumulate)
    noise = parts.pop("noise")
    shapes = jax.eval_shape(gradient_of, params, batch, noise_BL)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (gradient, metrics), _ = jax.lax.scan(add_part, zeros, (parts, noise))
    return metrics, gradient


def split(batch: Batch, objective: Objective, parts: int) -> Batch:
    """A batch in parts, [parts, B / parts, ...], each with the same rows of every objective.

    Raises:
      UserError: if an objective's rows do not divide.
    """
    rows = objectives.rows_of(objective, batch["segments"].shape[0])
    for name, at in rows.items():
        if (at.stop - at.start) % parts:
            raise UserError(
                f"accumulate={parts} does not divide the {at.stop - at.start} rows of a batch "
                f"that objective {name!r} takes; accepted are their common divisors"
            )

    def take(value):
        pieces = [value[at] for at in rows.values()]
        folded = [piece.reshape(parts, -1, *piece.shape[1:]) for piece in pieces]
        return jnp.concatenate(folded, axis=1)

    return jax.tree.map(take, batch)
