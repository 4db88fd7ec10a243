"""A function of a batch over texts of any length, with next to no padding computed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fm.errors import UserError
from fm.transfer.examples import Rows
from fm.transfer.sweep import Read

# Tokens read at a time, and what lengths are rounded up to: each length is compiled once.
BATCH_TOKENS, MULTIPLE = 2048, 16


def ragged(
    read: Read,
    operands: Any,
    ids: Sequence[np.ndarray],
    *,
    context: int = 0,
    tokens: int = BATCH_TOKENS,
) -> np.ndarray:
    """What `read` makes of every text.

    Texts are sorted by length and batched with their like, so that a batch is padded to at most
    the next multiple of 16 of its longest.

    Args:
      read: (operands, batch) -> [B, ...], row by row; compiled once per length for as long as it
        is the same function.
      operands: handed to `read`.
      ids: N texts, int32 [tokens] each, none of them empty.
      context: no batch is padded beyond it; 0 for no limit.
      tokens: in a batch, about.

    Returns:
      [N, ...], in the order of the texts.

    Raises:
      UserError: there is no text, or one without a token.
    """
    lengths_N = np.array([len(each) for each in ids])
    if not len(lengths_N) or not lengths_N.min():
        raise UserError("a text without a single token cannot be read")
    order_N = np.argsort(-lengths_N, kind="stable")
    made, done = np.zeros(0), 0
    while done < len(order_N):
        length = -(-int(lengths_N[order_N[done]]) // MULTIPLE) * MULTIPLE
        length = min(length, context or length)
        count = max(1, tokens // length)
        chosen = order_N[done : done + count]
        # The last batch is filled up with repeats that are never read: no shape of its own.
        filled = np.concatenate([chosen, np.repeat(chosen[:1], count - len(chosen))])
        out = np.asarray(_called(operands, rows([ids[n] for n in filled], length), read))
        if not done:
            made = np.zeros((len(order_N), *out.shape[1:]), out.dtype)
        made[chosen] = out[: len(chosen)]
        done += len(chosen)
    return made


def rows(ids: Sequence[np.ndarray], length: int) -> Rows:
    """Texts padded to one length, as the model reads them; see `fm.transfer.examples`."""
    made = {key: np.zeros((len(ids), length), np.int32) for key in ("tokens", "segments")}
    for n, each in enumerate(ids):
        made["tokens"][n, : len(each)] = each
        made["segments"][n, : len(each)] = 1
    positions = np.tile(np.arange(length, dtype=np.int32), (len(ids), 1))
    return made | {"positions": positions}


@functools.partial(jax.jit, static_argnames="read")
def _called(operands, batch, read):
    return read(operands, batch)
