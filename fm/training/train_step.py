"""One optimisation step as one program: loss, gradient, update, metrics; its state donated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fm.model.config import ModelConfig
from fm.parallel import sharding
from fm.training import multitask, optimizer
from fm.training.multitask import AnyObjective
from fm.training.objectives import Batch, Objective
from fm.training.optimizer import OptimizerConfig
from fm.training.train_state import TrainState

Metrics = dict[str, jax.Array]
# Batches come as numpy arrays; the seed is an argument, so that seeds share one program.
TrainStepFn = Callable[
    [TrainState, dict[str, Any], int, jax.Array | None], tuple[TrainState, Metrics]
]
EvalStepFn = Callable[[dict, dict[str, Any], int, jax.Array | None], Metrics]


@functools.lru_cache(maxsize=64)
def make_train_step(
    model_config: ModelConfig,
    objective: AnyObjective,
    optimizer_config: OptimizerConfig,
    steps: int,
    grad_accum_steps: int = 1,
) -> TrainStepFn:
    """The compiled step; equal arguments give the same function, compiled once per shape.

    Args:
      model_config: the model's.
      objective: what is predicted.
      optimizer_config: optimiser and schedule.
      steps: length of the schedule.
      grad_accum_steps: parts a batch is taken in, one after another, to need less memory. The result
        is that of the whole batch, up to the order of summation.

    Returns:
      step(state, batch, seed, token_weights_V) -> (state, metrics). The given state is consumed.
      Metrics are float32 scalars: those of `fm.training.multitask.loss`, `grad_norm` (before
      clipping; in a model of several streams also `grad_norm/STREAM`, of several groups also
      `GROUP/grad_norm`) and `learning_rate`.
      Under `jax.set_mesh` the state stays as `fm.parallel.sharding.shard_state` spread it.

    Raises:
      UserError: (when the step is called) a batch whose rows do not divide into the parts.
    """
    update = optimizer.build(optimizer_config, steps).update
    rate = optimizer.learning_rate_schedule(optimizer_config, optimizer_config.learning_rate, steps)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch, seed, token_weights_V):
        metrics, gradient = compute_gradient(
            state, batch, seed, model_config, objective, token_weights_V, grad_accum_steps
        )
        metrics["learning_rate"] = jnp.asarray(rate(state["step"]), jnp.float32)
        return apply_gradient(state, gradient, update), metrics

    return step


def compute_gradient(
    state: TrainState,
    batch: Batch,
    seed: int | jax.Array,
    model_config: ModelConfig,
    objective: AnyObjective,
    token_weights_V: jax.Array | None,
    grad_accum_steps: int,
) -> tuple[Metrics, dict]:
    """The first half of a step: metrics, with `grad_norm`, and gradient where the state is."""
    rng = jax.random.fold_in(jax.random.key(seed), state["step"])
    metrics, gradient = loss_and_gradient(
        state["params"], batch, rng, model_config, objective, token_weights_V, grad_accum_steps
    )
    gradient = sharding.constrain(gradient)
    metrics |= {"grad_norm": optax.global_norm(gradient)}
    return metrics | modality_grad_norms(gradient, model_config), gradient


def modality_grad_norms(gradient: dict, model_config: ModelConfig) -> Metrics:
    """Norm of the gradient of each stream's own parameters, where a model has several."""
    if len(model_config.modalities) == 1:
        return {}
    return {
        f"grad_norm/{stream}": optax.global_norm(
            {
                name: leaf
                for name, leaf in gradient["streams"].items()
                if name.startswith(f"{stream.removesuffix('s')}_")
            }
        )
        for stream in model_config.modalities
    }


def apply_gradient(
    state: TrainState, gradient: dict, update: optax.TransformUpdateFn
) -> TrainState:
    """The second half: the state after an update by the gradient."""
    changes, opt_state = update(gradient, state["opt_state"], state["params"])
    return sharding.constrain(
        {
            "params": optax.apply_updates(state["params"], changes),
            "opt_state": opt_state,
            "step": state["step"] + 1,
        }
    )


@functools.lru_cache(maxsize=64)
def make_eval_step(model_config: ModelConfig, objective: AnyObjective) -> EvalStepFn:
    """The compiled loss: evaluate(params, batch, seed, token_weights_V) -> metrics."""

    @jax.jit
    def metrics(params, batch, seed, token_weights_V):
        rng = jax.random.key(seed)
        total, parts = multitask.loss(params, batch, rng, model_config, objective, token_weights_V)
        return {"loss": total, **parts}

    return metrics


def loss_and_gradient(
    params: dict,
    batch: dict[str, Any],
    rng: jax.Array,
    model_config: ModelConfig,
    objective: AnyObjective,
    token_weights_V: jax.Array | None,
    grad_accum_steps: int,
) -> tuple[Metrics, dict]:
    """Metrics of a batch and the gradient of its loss, in `grad_accum_steps` parts.

    Of a `Joint`, the sum of the groups' gradients by share of rows, each scaled down to its `clip`
    first: in one gradient of a summed loss the format with the steepest loss would decide alone.

    A mean of the parts' means would weigh a piece by how full its part is. So the noise is drawn
    and the predicted pieces are counted over the whole batch first; each part then adds its
    share of the whole batch's mean.
    """
    batch = multitask.add_mask_noise(batch, rng, objective)
    if isinstance(objective, Objective):
        return _of_one(params, batch, model_config, objective, token_weights_V, grad_accum_steps)
    metrics: Metrics = {"loss": jnp.zeros(())}
    gradient = jax.tree.map(jnp.zeros_like, params)
    clip = optax.clip_by_global_norm(objective.clip)
    rows = multitask.group_rows(batch, objective)
    for name, each in objective.groups:
        of_group, own = _of_one(
            params, batch[name], model_config, each, token_weights_V, grad_accum_steps
        )
        share = rows[name] / sum(rows.values())
        metrics |= {f"{name}/{key}": value for key, value in of_group.items()}
        metrics["loss"] += share * of_group["loss"]
        metrics[f"{name}/grad_norm"] = optax.global_norm(own)
        own, _ = clip.update(own, clip.init(params))
        gradient = jax.tree.map(
            lambda total, leaf, share=share: total + share * leaf, gradient, own
        )
    return metrics, gradient


def _of_one(
    params: dict,
    batch: Batch,
    config: ModelConfig,
    objective: Objective,
    token_weights_V: jax.Array | None,
    accumulate: int,
) -> tuple[Metrics, dict]:
    """`value_and_gradient` of one format; its batch has the noise in it."""

    def part_loss(params, rows, counts=None):
        nats = multitask.loss_sums(params, rows, config, objective, token_weights_V)
        counts = counts or {name: count for name, (_, count) in nats.items()}
        total, metrics = multitask.mean_loss(nats, counts, objective, rows)
        return total, {"loss": total, **metrics}

    gradient_of = jax.grad(part_loss, has_aux=True)
    if accumulate == 1:
        gradient, metrics = gradient_of(params, batch)
        return metrics, gradient

    # Counts do not depend on what the model says: the compiler drops this forward pass.
    nats = multitask.loss_sums(params, batch, config, objective, token_weights_V)
    counts = {name: count for name, (_, count) in nats.items()}

    def add_part(total, part):
        return jax.tree.map(jnp.add, total, gradient_of(params, part, counts)), None

    shapes = jax.eval_shape(gradient_of, params, batch)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (gradient, metrics), _ = jax.lax.scan(
        add_part, zeros, multitask.split_batch(batch, objective, accumulate)
    )
    return metrics, gradient
