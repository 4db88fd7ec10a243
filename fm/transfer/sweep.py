"""A function of a batch, over all rows, as one program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.transfer.examples import Rows, stacks

# Small: a batch's activations stay in the cache, and the loop costs nothing.
BATCH_SIZE = 16

Read = Callable[[Any, dict[str, jax.Array]], jax.Array]


def sweep(read: Read, operands: Any, rows: Rows, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """What `read` makes of every row.

    Args:
      read: (operands, batch) -> [batch_size, ...], row by row; compiled once per shape for as long
        as it is the same function.
      operands: handed to `read`.
      rows: N rows, see `fm.transfer.examples`.
      batch_size: rows read at a time.

    Returns:
      [N, ...], in the order of the rows.
    """
    parts = []
    order = []
    for indices, stacked in stacks(rows, batch_size):
        made = np.asarray(_loop(operands, stacked, -(-len(indices) // batch_size), read))
        parts.append(made.reshape(-1, *made.shape[2:])[: len(indices)])
        order.append(indices)
    return np.concatenate(parts)[np.argsort(np.concatenate(order))]


@functools.partial(jax.jit, static_argnames="read")
def _loop(operands, stacked, count, read):
    """The first `count` batches; a call per batch would map its memory afresh each time."""

    def one(number, out):
        batch = {key: value[number] for key, value in stacked.items()}
        return out.at[number].set(read(operands, batch))

    first = jax.eval_shape(read, operands, {key: value[0] for key, value in stacked.items()})
    batches = len(stacked["segments"])
    return jax.lax.fori_loop(0, count, one, jnp.zeros((batches, *first.shape), first.dtype))
