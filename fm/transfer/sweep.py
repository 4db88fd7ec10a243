"""A function of a batch, over all rows, as one program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.attention.mesh import by_rows
from fm.transfer.examples import Rows

# Small: a batch's activations stay in the cache, and the loop costs nothing.
BATCH_SIZE = 64

Read = Callable[[Any, dict[str, jax.Array]], jax.Array]


def sweep(read: Read, operands: Any, rows: Rows, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """What `read` makes of every row.

    Args:
      read: (operands, batch) -> [batch_size, ...], row by row; compiled once per shape for as long
        as it is the same function.
      operands: handed to `read`.
      rows: N rows of one width, see `fm.transfer.examples`.
      batch_size: rows read at a time.

    Returns:
      [N, ...], in the order of the rows.
    """
    N = len(rows["segments"])
    count = -(-N // batch_size)
    # Filled up to a power of 16 with repeats that are never read: few shapes are compiled.
    batches = 16
    while batches < count:
        batches *= 16
    filled = np.minimum(np.arange(batches * batch_size), N - 1).reshape(batches, batch_size)
    made = np.asarray(_loop(operands, {key: rows[key][filled] for key in rows}, count, read))
    return made.reshape(-1, *made.shape[2:])[:N]


@functools.partial(jax.jit, static_argnames="read")
def _loop(operands, stacked, count, read):
    """The first `count` batches; a call per batch would map its memory afresh each time."""

    def one(number, out):
        batch = {key: by_rows(value[number]) for key, value in stacked.items()}
        return out.at[number].set(read(operands, batch))

    first = jax.eval_shape(read, operands, {key: value[0] for key, value in stacked.items()})
    batches = len(stacked["segments"])
    return jax.lax.fori_loop(0, count, one, jnp.zeros((batches, *first.shape), first.dtype))
