"""One training step as one jitted program: loss, gradient, update and metrics."""

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
from fm.training.objectives import Batch, PretrainingObjective
from fm.training.optimizer import OptimizerConfig
from fm.training.train_state import TrainState

Metrics = dict[str, jax.Array]
# Batches are numpy arrays; the seed is an argument, so that all seeds share one program.
TrainStepFn = Callable[[TrainState, Batch, int, jax.Array | None], tuple[TrainState, Metrics]]
EvalStepFn = Callable[[dict, Batch, int, jax.Array | None], Metrics]


@functools.lru_cache(maxsize=64)
def make_train_step(
    model_config: ModelConfig,
    objective: AnyObjective,
    optimizer_config: OptimizerConfig,
    steps: int,
    grad_accum_steps: int = 1,
) -> TrainStepFn:
    """Returns the jitted train step (state, batch, ...) -> (state, metrics), cached by arguments.

    Args:
      model_config: of the model.
      objective: what to predict.
      optimizer_config: optimizer and schedule.
      steps: length of the schedule.
      grad_accum_steps: number of microbatches a batch is split into, to need less memory. The
        result is that of the whole batch up to the order of summation.

    Returns:
      step(state, batch, seed, token_weights_V) -> (state, metrics), which consumes the given
      state. Metrics are float32 scalars: those of `multitask.loss`, `grad_norm` before clipping
      (with several modalities also `grad_norm/MODALITY`, with several groups `GROUP/grad_norm`)
      and `learning_rate`. Under `jax.set_mesh` the state stays sharded.

    Raises:
      UserError: (when the step is called) the rows of a batch do not divide into microbatches.
    """
    update = optimizer.build(optimizer_config, steps).update
    rate = optimizer.learning_rate_schedule(optimizer_config, optimizer_config.learning_rate, steps)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch, seed, token_weights_V):
        metrics, gradient = compute_gradient(
            state, batch, seed, model_config, objective, token_weights_V, grad_accum_steps
        )
        metrics["learning_rate"] = jnp.asarray(rate(state.step), jnp.float32)
        return apply_gradient(state, gradient, update), metrics

    return step


@functools.lru_cache(maxsize=64)
def make_open_ended_train_step(
    model_config: ModelConfig,
    objective: AnyObjective,
    optimizer_config: OptimizerConfig,
    grad_accum_steps: int = 1,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns a jitted train step that is given its learning rates.

    Returns:
      step(state, batch, seed, token_weights_V, rates_2) -> (state, metrics); see
      `fm.training.optimizer.open_ended_learning_rates` for the rates.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch, seed, token_weights_V, rates_2):
        update = optimizer.build_from_schedules(
            optimizer_config, lambda _: rates_2[0], lambda _: rates_2[1]
        ).update
        metrics, gradient = compute_gradient(
            state, batch, seed, model_config, objective, token_weights_V, grad_accum_steps
        )
        metrics["learning_rate"] = rates_2[0]
        return apply_gradient(state, gradient, update), metrics

    return step


@functools.lru_cache(maxsize=64)
def make_eval_step(model_config: ModelConfig, objective: AnyObjective) -> EvalStepFn:
    """Returns the jitted evaluate(params, batch, seed, token_weights_V) -> metrics, with `loss`."""

    @jax.jit
    def evaluate(params, batch, seed, token_weights_V):
        rng = jax.random.key(seed)
        loss, metrics = multitask.loss(params, batch, rng, model_config, objective, token_weights_V)
        return {"loss": loss, **metrics}

    return evaluate


def compute_gradient(
    state: TrainState,
    batch: Batch,
    seed: int | jax.Array,
    model_config: ModelConfig,
    objective: AnyObjective,
    token_weights_V: jax.Array | None,
    grad_accum_steps: int,
) -> tuple[Metrics, dict]:
    """Returns a batch's metrics, with `grad_norm`, and the gradient, sharded like parameters."""
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    metrics, gradient = loss_and_gradient(
        state.params, batch, rng, model_config, objective, token_weights_V, grad_accum_steps
    )
    gradient = sharding.constrain(gradient)
    metrics |= {"grad_norm": optax.global_norm(gradient)}
    return metrics | modality_grad_norms(gradient, model_config), gradient


def apply_gradient(
    state: TrainState, gradient: dict, update: optax.TransformUpdateFn
) -> TrainState:
    """Returns the train state after one optimizer update with the given gradient."""
    updates, opt_state = update(gradient, state.opt_state, state.params)
    return sharding.constrain(
        TrainState(
            params=optax.apply_updates(state.params, updates),  # pyright: ignore
            opt_state=opt_state,
            step=state.step + 1,
        )
    )


def modality_grad_norms(gradient: dict, model_config: ModelConfig) -> Metrics:
    """Returns the gradient norm of each modality's own parameters; {} for a single modality."""
    if len(model_config.modalities) == 1:
        return {}
    return {
        f"grad_norm/{modality}": optax.global_norm(
            {
                name: leaf
                for name, leaf in gradient["streams"].items()
                if name.startswith(f"{modality.removesuffix('s')}_")
            }
        )
        for modality in model_config.modalities
    }


def loss_and_gradient(
    params: dict,
    batch: dict[str, Any],
    rng: jax.Array,
    model_config: ModelConfig,
    objective: AnyObjective,
    token_weights_V: jax.Array | None,
    grad_accum_steps: int,
) -> tuple[Metrics, dict]:
    """Returns the metrics of a batch and the gradient of its loss, summed over microbatches.

    For a `MultitaskObjective`, the gradient is the sum of the groups' gradients weighted by their
    shares of rows, each first scaled down to the norm `clip`; in the gradient of a summed loss the
    modality with the steepest loss would dominate.

    Averaging the microbatches' mean losses would weight a token by how full its microbatch is. So
    noise is drawn and predicted tokens are counted over the whole batch, and each microbatch adds
    its share of the whole batch's mean.
    """
    batch = multitask.add_mask_noise(batch, rng, objective)
    if isinstance(objective, PretrainingObjective):
        return _group_gradient(
            params, batch, model_config, objective, token_weights_V, grad_accum_steps
        )
    metrics: Metrics = {"loss": jnp.zeros(())}
    gradient = jax.tree.map(jnp.zeros_like, params)
    clip = optax.clip_by_global_norm(objective.clip)
    rows = multitask.num_rows_by_group(batch, objective)
    for name, each in objective.groups:
        group_metrics, own = _group_gradient(
            params, batch[name], model_config, each, token_weights_V, grad_accum_steps
        )
        share = rows[name] / sum(rows.values())
        metrics |= {f"{name}/{key}": value for key, value in group_metrics.items()}
        metrics["loss"] += share * group_metrics["loss"]
        metrics[f"{name}/grad_norm"] = optax.global_norm(own)
        own, _ = clip.update(own, clip.init(params))
        gradient = jax.tree.map(
            lambda total, leaf, share=share: total + share * leaf, gradient, own
        )
    return metrics, gradient


def _group_gradient(
    params: dict,
    batch: Batch,
    model_config: ModelConfig,
    objective: PretrainingObjective,
    token_weights_V: jax.Array | None,
    grad_accum_steps: int,
) -> tuple[Metrics, dict]:
    """Returns the metrics and gradient of one group, for a batch that already has its noise."""

    def part_loss(params, part, counts=None):
        nats = multitask.loss_sums(params, part, model_config, objective, token_weights_V)
        counts = counts or {name: count for name, (_, count) in nats.items()}
        total, metrics = multitask.mean_loss(nats, counts, objective, part)
        return total, {"loss": total, **metrics}

    gradient_of = jax.grad(part_loss, has_aux=True)
    if grad_accum_steps == 1:
        gradient, metrics = gradient_of(params, batch)
        return metrics, gradient

    # The counts do not depend on the model's output: the compiler drops this forward pass.
    nats = multitask.loss_sums(params, batch, model_config, objective, token_weights_V)
    counts = {name: count for name, (_, count) in nats.items()}

    def add_part(total, part):
        return jax.tree.map(jnp.add, total, gradient_of(params, part, counts)), None

    shapes = jax.eval_shape(gradient_of, params, batch)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    parts = multitask.split_batch(batch, objective, grad_accum_steps)
    (gradient, metrics), _ = jax.lax.scan(add_part, zeros, parts)
    return metrics, gradient
