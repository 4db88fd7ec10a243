"""Tuning one model to follow instructions: every task's examples in one run, as one program."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fm.model import streams
from fm.model.config import CONTINUOUS, ModelConfig
from fm.transfer.answering import final
from fm.transfer.descent import descend, order, pad
from fm.transfer.examples import Rows
from fm.transfer.finetune import FinetuneConfig


def instruct(
    params: dict,
    made: Rows,
    model: ModelConfig,
    config: FinetuneConfig,
    *,
    seed: int,
    capacity: int,
) -> dict:
    """Trains all of a model on answers, and on nothing else.

    Args:
      params: start of the model.
      made: rows of `fm.transfer.instructions.rows`, of all tasks; with `prefix` the questions are
        read in both directions.
      model: architecture.
      config: learning rate, steps, epochs, batch size (rows) and decay; its `keep`, `reading` and
        `lora` are not read.
      seed: decides the order.
      capacity: the arrays are padded to this many rows (never drawn), so that one compiled program
        serves all label budgets.

    Returns:
      The tuned parameters. The heads of continuous streams are those given.
    """
    count = len(made["segments"])
    order_SB = order(count, config.updates(capacity), config.batch_size, seed)
    idle = {f"{name}_{part}" for name in CONTINUOUS for part in ("head", "bias")}
    given = params["streams"]
    used = {name: value for name, value in given.items() if name not in idle}
    tuned = _run(
        {**params, "streams": used},
        {key: pad(value, capacity) for key, value in made.items()},
        order_SB,
        jnp.float32(config.learning_rate),
        jnp.int32(config.updates(count)),
        model,
        config.weight_decay,
        int(np.sum(made["answer"], axis=1).max()),
    )
    return tuned | {"streams": {**given, **tuned["streams"]}}


def mean_nats(
    params: dict, batch: dict[str, jax.Array], model: ModelConfig, most: int
) -> jax.Array:
    """Mean nats of the tokens of the answers, each given all before it in its example.

    `objectives.next_piece` of the same rows, but that logits are computed for answers alone: at
    most `most` in a row, and at least as many as any row has.
    """
    final_BLD = final(params, batch, model)
    chosen, places_BT = jax.lax.top_k(batch["answer"].astype(jnp.int32), most)
    h_BTD = jnp.take_along_axis(final_BLD, places_BT[..., None] - 1, axis=1)
    logits_BTV = streams.token_logits(params["streams"], h_BTD)
    tokens_BT = jnp.take_along_axis(batch["tokens"], places_BT, axis=1)
    nats_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, tokens_BT)
    return jnp.sum(nats_BT * chosen) / jnp.maximum(jnp.sum(chosen), 1)


@functools.partial(jax.jit, static_argnames=("model", "weight_decay", "most"))
def _run(params, rows, order_SB, peak, steps, model, weight_decay, most):
    def loss(params, batch):
        return mean_nats(params, batch, model, most)

    def gradient(params, number):
        chosen = order_SB[number]
        return jax.grad(loss)(params, {key: value[chosen] for key, value in rows.items()})

    return descend(gradient, params, peak, steps, weight_decay)
