"""Labelled inputs as rows the model reads: one row an example, however long."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.data.layouts import Layout
from fm.data.patches import patch_positions, patchify, token_chunks
from fm.data.tokenizer import Tokenizer
from fm.errors import UserError
from fm.parallel.mesh import constrain_batch

TokenizedExamples = dict[str, np.ndarray]


def text_examples(
    tokenizer: Tokenizer, texts: list[str], length: int, windows: int
) -> TokenizedExamples:
    """The first `windows` chunks of each text side by side, as separate segments.

    Args:
      tokenizer: of the model.
      texts: N documents.
      length: tokens in a chunk, as in pretraining.
      windows: chunks kept; what comes after is not read.

    Returns:
      `tokens`, `segments` (0 is padding) and `positions`, int32 [N, windows * length]; shorter,
      by multiples of 16, where no text reaches the end.
    """
    shape = (len(texts), windows, length)
    rows = {key: np.zeros(shape, np.int32) for key in ("tokens", "segments", "positions")}
    rows["positions"][:] = np.arange(length)
    for n, ids in enumerate(tokenizer.encode(texts)):
        for w, chunk in enumerate(
            token_chunks(ids[: windows * length], length, tokenizer)[:windows]
        ):
            rows["tokens"][n, w, : len(chunk)] = chunk
            rows["segments"][n, w, : len(chunk)] = w + 1
    whole = {key: value.reshape(len(texts), -1) for key, value in rows.items()}
    reached = np.max(np.nonzero(whole["segments"])[1], initial=0) + 1
    return {key: value[:, : -(-reached // 16) * 16] for key, value in whole.items()}


def image_examples(images: np.ndarray, patch: int) -> TokenizedExamples:
    """Images uint8 [N, height, width, channels] as `image` uint8 [N, L, P] and where they lie."""
    positions = patch_positions(images.shape[1], images.shape[2], patch)
    return _single_segment_examples("image", patchify(images, patch), positions)


def continuous_examples(examples: np.ndarray, layout: Layout) -> TokenizedExamples:
    """Images, sounds or clips [N, *shape] as pieces [N, L, P] under their stream's name."""
    return _single_segment_examples(
        layout.modality, layout.to_patches(examples), layout.positions()
    )


def _single_segment_examples(
    stream: str, pieces: np.ndarray, positions: np.ndarray
) -> TokenizedExamples:
    """Pieces [N, L, P] at positions [L, A] under a stream's name, one segment a row."""
    N, L = pieces.shape[:2]
    return {
        stream: pieces,
        "positions": np.broadcast_to(positions, (N, *positions.shape)),
        "segments": np.ones((N, L), np.int32),
    }


def take(rows: TokenizedExamples, indices: np.ndarray) -> TokenizedExamples:
    """The rows at `indices`."""
    return {key: value[indices] for key, value in rows.items()}


def strided_chunks(rows: TokenizedExamples, most: int) -> tuple[TokenizedExamples, np.ndarray]:
    """Views of at most `most` pieces of each row, which do not see each other.

    A row of w pieces makes n = ceil(w / most) views, at least one; piece l goes to view l % n, so
    that every view spans the row and only its last places can be padding.

    Args:
      rows: N rows, see `fm.adaptation.batching`.
      most: pieces in a view; 0 leaves rows whole.

    Returns:
      M >= N views as rows of `most` pieces (or as many as rows have), and the row each is of,
      int [M], ascending.
    """
    N, L = rows["segments"].shape
    if not most or most >= L:
        return rows, np.arange(N)
    reached_N = L - np.argmax(rows["segments"][:, ::-1] > 0, axis=1)
    views_N = -(-reached_N // most)
    of_M = np.repeat(np.arange(N), views_N)
    number_M = np.arange(len(of_M)) - (np.cumsum(views_N) - views_N)[of_M]
    places_Ml = np.arange(most) * views_N[of_M][:, None] + number_M[:, None]
    within_Ml = places_Ml < L
    taken = {
        key: value[of_M[:, None], np.where(within_Ml, places_Ml, 0)] for key, value in rows.items()
    }
    taken["segments"] = np.where(within_Ml, taken["segments"], 0)
    return taken, of_M


def mean_over_chunks(sums: np.ndarray, views: TokenizedExamples, of_M: np.ndarray) -> np.ndarray:
    """Means over the filled pieces of each row.

    Args:
      sums: [M, ...] over the filled pieces of each view.
      views: the views, as `cut` made them.
      of_M: the row each is of.

    Returns:
      [N, ...]; zero for a row of nothing but padding.
    """
    first_N = np.searchsorted(of_M, np.arange(of_M[-1] + 1))
    filled_N = np.add.reduceat(np.sum(views["segments"] > 0, axis=1), first_N)
    counts_N = np.maximum(filled_N, 1).astype(np.float32)
    return np.add.reduceat(sums, first_N, axis=0) / counts_N.reshape(-1, *[1] * (sums.ndim - 1))


# Small: a batch's activations stay in the cache, and the loop costs nothing.
BATCH_SIZE = 64

BatchFn = Callable[[Any, dict[str, jax.Array]], jax.Array]


def map_batches(
    read: BatchFn, operands: Any, examples: TokenizedExamples, batch_size: int = BATCH_SIZE
) -> np.ndarray:
    """What `read` makes of every row.

    Args:
      read: (operands, batch) -> [batch_size, ...], row by row; compiled once per shape for as long
        as it is the same function.
      operands: handed to `read`.
      examples: N rows of one width, see `fm.adaptation.batching`.
      batch_size: rows read at a time.

    Returns:
      [N, ...], in the order of the rows.
    """
    N = len(examples["segments"])
    count = -(-N // batch_size)
    # Filled up to a power of 16 with repeats that are never read: few shapes are compiled.
    batches = 16
    while batches < count:
        batches *= 16
    filled = np.minimum(np.arange(batches * batch_size), N - 1).reshape(batches, batch_size)
    made = np.asarray(
        _run_batches(operands, {key: examples[key][filled] for key in examples}, count, read)
    )
    return made.reshape(-1, *made.shape[2:])[:N]


@functools.partial(jax.jit, static_argnames="read")
def _run_batches(operands, stacked, count, read):
    """The first `count` batches; a call per batch would map its memory afresh each time."""

    def one(number, out):
        batch = {key: constrain_batch(value[number]) for key, value in stacked.items()}
        return out.at[number].set(read(operands, batch))

    first = jax.eval_shape(read, operands, {key: value[0] for key, value in stacked.items()})
    batches = len(stacked["segments"])
    return jax.lax.fori_loop(0, count, one, jnp.zeros((batches, *first.shape), first.dtype))


# Tokens read at a time, and what lengths are rounded up to: each length is compiled once.
BATCH_TOKENS, LENGTH_MULTIPLE = 2048, 16


def map_bucketed(
    read: BatchFn,
    operands: Any,
    ids: Sequence[np.ndarray],
    *,
    max_seq_len: int = 0,
    batch_tokens: int = BATCH_TOKENS,
) -> np.ndarray:
    """What `read` makes of every text.

    Texts are sorted by length and batched with their like, so that a batch is padded to at most
    the next multiple of 16 of its longest.

    Args:
      read: (operands, batch) -> [B, ...], row by row; compiled once per length for as long as it
        is the same function.
      operands: handed to `read`.
      ids: N texts, int32 [tokens] each, none of them empty.
      max_seq_len: no batch is padded beyond it; 0 for no limit.
      batch_tokens: in a batch, about.

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
        length = -(-int(lengths_N[order_N[done]]) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        length = min(length, max_seq_len or length)
        count = max(1, batch_tokens // length)
        chosen = order_N[done : done + count]
        # The last batch is filled up with repeats that are never read: no shape of its own.
        filled = np.concatenate([chosen, np.repeat(chosen[:1], count - len(chosen))])
        out = np.asarray(
            _run_batch(operands, pad_sequences([ids[n] for n in filled], length), read)
        )
        if not done:
            made = np.zeros((len(order_N), *out.shape[1:]), out.dtype)
        made[chosen] = out[: len(chosen)]
        done += len(chosen)
    return made


def pad_sequences(ids: Sequence[np.ndarray], length: int) -> TokenizedExamples:
    """Texts padded to one length, as the model reads them; see `fm.adaptation.batching`."""
    made = {key: np.zeros((len(ids), length), np.int32) for key in ("tokens", "segments")}
    for n, each in enumerate(ids):
        made["tokens"][n, : len(each)] = each
        made["segments"][n, : len(each)] = 1
    positions = np.tile(np.arange(length, dtype=np.int32), (len(ids), 1))
    return made | {"positions": positions}


@functools.partial(jax.jit, static_argnames="read")
def _run_batch(operands, batch, read):
    return read(operands, batch)
