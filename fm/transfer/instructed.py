"""Tuning one model to follow instructions: every task's examples in one run, as one program."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fm.data.groups import rows_of
from fm.model import streams
from fm.model.config import CONTINUOUS, ModelConfig
from fm.transfer.answering import final
from fm.transfer.descent import descend, order, pad
from fm.transfer.examples import Rows
from fm.transfer.finetune import FinetuneConfig

_ROUND = 16
# Power of a group's size that its share of a step goes by: a mixing temperature of 2 (Raffel et al.
# 2020, section 3.5.2), or small groups would be seen as seldom as they are small.
_FLAT = 0.5


def instruct(
    params: dict,
    made: Mapping[str, Rows],
    model: ModelConfig,
    config: FinetuneConfig,
    *,
    seed: int,
    capacity: Mapping[str, int],
) -> dict:
    """Trains all of a model on answers, and on nothing else.

    Args:
      params: start of the model.
      made: rows of `fm.transfer.instructions.rows` in groups, by name, each of its own length and
        streams: every step takes its share of each. With `prefix` the questions are read in both
        directions.
      model: architecture.
      config: learning rate, steps, epochs, batch size (rows, of all groups) and decay; its `keep`,
        `reading` and `lora` are not read.
      seed: decides the order.
      capacity: rows that each group is padded to (never drawn), so that one compiled program serves
        all label budgets.

    Raises:
      UserError: a group is too small to have a row in every step.

    Returns:
      The tuned parameters. The heads of continuous streams are those given.
    """
    counts = {name: len(rows["segments"]) for name, rows in made.items()}
    share = shares(counts, config.batch_size)
    updates = config.updates(sum(capacity.values()))
    orders = {name: order(counts[name], updates, share[name], seed) for name in made}
    idle = {f"{name}_{part}" for name in CONTINUOUS for part in ("head", "bias")}
    given = params["streams"]
    used = {name: value for name, value in given.items() if name not in idle}
    tuned = _run(
        {**params, "streams": used},
        {
            name: {key: pad(value, capacity[name]) for key, value in rows.items()}
            for name, rows in made.items()
        },
        orders,
        jnp.float32(config.learning_rate),
        jnp.int32(config.updates(sum(counts.values()))),
        model,
        config.weight_decay,
        tuple((name, _most(rows)) for name, rows in made.items()),
    )
    return tuned | {"streams": {**given, **tuned["streams"]}}


def shares(counts: Mapping[str, int], batch_size: int) -> dict[str, int]:
    """Rows of a step from each group of so many.

    Raises:
      UserError: see `fm.data.groups.rows_of`.
    """
    return rows_of({name: count**_FLAT for name, count in counts.items()}, batch_size)


def _most(rows: Rows) -> int:
    """The most answer tokens of a row, rounded up so that other seeds find the program compiled."""
    longest = int(np.sum(rows["answer"], axis=1).max())
    return min(-(-longest // _ROUND) * _ROUND, rows["answer"].shape[1])


def nats(
    params: dict, batch: dict[str, jax.Array], model: ModelConfig, most: int
) -> tuple[jax.Array, jax.Array]:
    """Nats a token of answers, each given all before it, added up over them; and their number.

    An answer counts as one whatever its length: by tokens, tasks answered in sentences would drown
    those answered in a word. Logits are computed for answers alone: at most `most` tokens in a row,
    and at least as many as any row has.
    """
    final_BLD = final(params, batch, model)
    chosen, places_BT = jax.lax.top_k(batch["answer"].astype(jnp.int32), most)
    h_BTD = jnp.take_along_axis(final_BLD, places_BT[..., None] - 1, axis=1)
    logits_BTV = streams.token_logits(params["streams"], h_BTD)
    tokens_BT = jnp.take_along_axis(batch["tokens"], places_BT, axis=1)
    nats_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, tokens_BT)
    weights_BT = _weights(jnp.take_along_axis(batch["segments"], places_BT, axis=1), chosen)
    return jnp.sum(nats_BT * weights_BT), jnp.sum(weights_BT)


def _weights(segments_BT: jax.Array, chosen_BT: jax.Array) -> jax.Array:
    """One over the chosen tokens of the same segment, [B, T]; 0 where not chosen."""
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    tokens_BT = jnp.sum(same_BTT * chosen_BT[:, None, :], axis=-1)
    return chosen_BT / jnp.maximum(tokens_BT, 1)


@functools.partial(jax.jit, static_argnames=("model", "weight_decay", "most"))
def _run(params, groups, orders, peak, steps, model, weight_decay, most):
    def loss(params, batches):
        parts = [nats(params, batches[name], model, each) for name, each in most]
        total, count = map(sum, zip(*parts, strict=True))
        return total / jnp.maximum(count, 1)

    def gradient(params, number):
        batches = {
            name: {key: value[orders[name][number]] for key, value in rows.items()}
            for name, rows in groups.items()
        }
        return jax.grad(loss)(params, batches)

    return descend(gradient, params, peak, steps, weight_decay)
