"""Tokenized examples, and functions mapped over them in batches of few shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.data.media import PatchLayout
from fm.data.patches import patch_positions, patchify
from fm.data.tokenizer import Tokenizer, token_chunks
from fm.errors import UserError
from fm.parallel.mesh import constrain_batch

# Arrays [N, L, ...] of N examples: `tokens` or patches, `segments` (0 is padding), `positions`.
TokenizedExamples = dict[str, np.ndarray]
# (operands, batch) -> [B, ...], independently for each row.
BatchFn = Callable[[Any, dict[str, jax.Array]], jax.Array]

# Small: a batch's activations stay in the CPU's cache, and the loop costs nothing.
BATCH_SIZE = 64
# Of `map_bucketed`: tokens in a batch, and what lengths are rounded up to (each compiles once).
BATCH_TOKENS, LENGTH_MULTIPLE = 2048, 16


def text_examples(
    tokenizer: Tokenizer,
    texts: list[str],
    seq_len: int,
    num_windows: int,
    *,
    keep_eos: bool = False,
) -> TokenizedExamples:
    """Tokenizes each text into one row of up to `num_windows` segments of `seq_len` tokens.

    A longer text loses its end, EOS included, or with `keep_eos` all but EOS.

    Returns `tokens`, `segments` and `positions`, int32 [N, num_windows * seq_len]; shorter, by
    multiples of 16, if no text reaches the end.
    """
    shape = (len(texts), num_windows, seq_len)
    chunked = {key: np.zeros(shape, np.int32) for key in ("tokens", "segments", "positions")}
    chunked["positions"][:] = np.arange(seq_len)
    most = num_windows * seq_len - (2 if keep_eos else 0)
    for n, ids in enumerate(tokenizer.encode(texts)):
        chunks = token_chunks(ids[:most], seq_len, tokenizer)
        for w, chunk in enumerate(chunks[:num_windows]):
            chunked["tokens"][n, w, : len(chunk)] = chunk
            chunked["segments"][n, w, : len(chunk)] = w + 1
    examples = {key: value.reshape(len(texts), -1) for key, value in chunked.items()}
    longest = np.max(np.nonzero(examples["segments"])[1], initial=0) + 1
    return {key: value[:, : -(-longest // 16) * 16] for key, value in examples.items()}


def image_examples(images: np.ndarray, patch_size: int) -> TokenizedExamples:
    """Returns images, uint8 [N, height, width, channels], as rows of patches."""
    positions = patch_positions(images.shape[1], images.shape[2], patch_size)
    return _single_segment_examples("image", patchify(images, patch_size), positions)


def continuous_examples(inputs: np.ndarray, layout: PatchLayout) -> TokenizedExamples:
    """Returns images, sounds or clips [N, *shape] as patches [N, L, P], keyed by modality."""
    return _single_segment_examples(layout.modality, layout.to_patches(inputs), layout.positions())


def _single_segment_examples(
    modality: str, patches: np.ndarray, positions: np.ndarray
) -> TokenizedExamples:
    N, L = patches.shape[:2]
    return {
        modality: patches,
        "positions": np.broadcast_to(positions, (N, *positions.shape)),
        "segments": np.ones((N, L), np.int32),
    }


def pad_sequences(ids: Sequence[np.ndarray], length: int) -> TokenizedExamples:
    """Pads token sequences on the right to `length`; each is one row with one segment."""
    examples = {key: np.zeros((len(ids), length), np.int32) for key in ("tokens", "segments")}
    for n, tokens in enumerate(ids):
        examples["tokens"][n, : len(tokens)] = tokens
        examples["segments"][n, : len(tokens)] = 1
    positions = np.tile(np.arange(length, dtype=np.int32), (len(ids), 1))
    return examples | {"positions": positions}


def take(examples: TokenizedExamples, idx: np.ndarray) -> TokenizedExamples:
    """Returns the rows at indices `idx` of every array of `examples`."""
    return {key: value[idx] for key, value in examples.items()}


def pad_rows(examples: TokenizedExamples, length: int) -> TokenizedExamples:
    """Returns examples in rows of `length` tokens, zeros after their own.

    Positions of text go on counting within each segment only; those of padding do not matter.
    """
    missing = length - examples["segments"].shape[1]
    return {
        key: np.pad(value, [(0, 0), (0, missing), *[(0, 0)] * (value.ndim - 2)])
        for key, value in examples.items()
    }


def fixed_batches(
    segments_NL: np.ndarray, row_length: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yields (places, rows, length) of batches of `BATCH_SIZE` rows and one of two lengths.

    Args:
      segments_NL: int [N, L], 0 for padding.
      row_length: the shorter length; L is the other.

    Yields:
      `places`, the rows that a batch adds; `rows`, int [BATCH_SIZE], these and repeats of the
      first; and the length of the rows, in tokens.
    """
    L = segments_NL.shape[1]
    own_N = L - np.argmax(segments_NL[:, ::-1] > 0, axis=1)
    own_N[~segments_NL.any(axis=1)] = 0
    short_N = own_N <= row_length
    for length, idx in ((min(row_length, L), short_N), (L, ~short_N)):
        rows = np.flatnonzero(idx)
        for start in range(0, len(rows), BATCH_SIZE):
            places = rows[start : start + BATCH_SIZE]
            fill = np.repeat(places[:1], BATCH_SIZE - len(places))
            yield places, np.concatenate([places, fill]), length


def interleaved_chunks(
    examples: TokenizedExamples, chunk_length: int
) -> tuple[TokenizedExamples, np.ndarray]:
    """Splits each example into n chunks, chunk k holding tokens k, k + n, k + 2n and so on.

    An example of w tokens makes n = ceil(w / chunk_length) chunks, at least one; token l goes to
    chunk l % n, so that every chunk spans the example and only its last places can be padding.

    Args:
      examples: N examples.
      chunk_length: most tokens per chunk; 0 leaves the examples whole.

    Returns:
      M >= N chunks, and the example each belongs to, int [M], ascending.
    """
    N, L = examples["segments"].shape
    if not chunk_length or chunk_length >= L:
        return examples, np.arange(N)
    lengths_N = L - np.argmax(examples["segments"][:, ::-1] > 0, axis=1)
    num_chunks_N = -(-lengths_N // chunk_length)
    example_M = np.repeat(np.arange(N), num_chunks_N)
    chunk_M = np.arange(len(example_M)) - (np.cumsum(num_chunks_N) - num_chunks_N)[example_M]
    places_Ml = np.arange(chunk_length) * num_chunks_N[example_M][:, None] + chunk_M[:, None]
    inside_Ml = places_Ml < L
    places_Ml = np.where(inside_Ml, places_Ml, 0)
    chunks = {key: value[example_M[:, None], places_Ml] for key, value in examples.items()}
    chunks["segments"] = np.where(inside_Ml, chunks["segments"], 0)
    return chunks, example_M


def mean_over_chunks(
    sums: np.ndarray, chunks: TokenizedExamples, example_M: np.ndarray
) -> np.ndarray:
    """Returns the mean over each example's tokens, [N, ...], from sums per chunk, [M, ...].

    The chunks and `example_M` are those of `interleaved_chunks`; zero for nothing but padding.
    """
    first_N = np.searchsorted(example_M, np.arange(example_M[-1] + 1))
    tokens_N = np.add.reduceat(np.sum(chunks["segments"] > 0, axis=1), first_N)
    counts_N = np.maximum(tokens_N, 1).astype(np.float32)
    return np.add.reduceat(sums, first_N, axis=0) / counts_N.reshape(-1, *[1] * (sums.ndim - 1))


def map_batches(
    fn: BatchFn, operands: Any, examples: TokenizedExamples, batch_size: int = BATCH_SIZE
) -> np.ndarray:
    """Maps a function over equally long examples in batches, as one compiled loop: [N, ...].

    It is compiled once per shape for as long as `fn` is the same function.
    """
    N = len(examples["segments"])
    num_batches = -(-N // batch_size)
    # Padded to a power of 16 batches, which are never run: few shapes are compiled.
    padded = 16
    while padded < num_batches:
        padded *= 16
    idx = np.minimum(np.arange(padded * batch_size), N - 1).reshape(padded, batch_size)
    batches = {key: value[idx] for key, value in examples.items()}
    out = np.asarray(_run_batches(operands, batches, num_batches, fn))
    return out.reshape(-1, *out.shape[2:])[:N]


@functools.partial(jax.jit, static_argnames="fn")
def _run_batches(operands, batches, num_batches, fn):
    """Runs the first `num_batches`; a call per batch would map its memory afresh each time."""

    def body(n, out):
        batch = {key: constrain_batch(value[n]) for key, value in batches.items()}
        return out.at[n].set(fn(operands, batch))

    first = jax.eval_shape(fn, operands, {key: value[0] for key, value in batches.items()})
    out = jnp.zeros((len(batches["segments"]), *first.shape), first.dtype)
    return jax.lax.fori_loop(0, num_batches, body, out)


def map_bucketed(
    fn: BatchFn,
    operands: Any,
    ids: Sequence[np.ndarray],
    *,
    max_seq_len: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    own_length: bool = False,
) -> np.ndarray:
    """Returns `fn` of N token sequences, [N, ...], run in padded batches of similar length.

    The batches also have `length`, int32 [B], as each row is one sequence.

    Sequences are sorted by length and batched with their like; a batch is padded to the next
    multiple of 16 of its longest.

    Args:
      fn: compiled once per length for as long as it is the same function.
      operands: first argument of `fn`.
      ids: N sequences, int32 [tokens] each, none of them empty.
      max_seq_len: no batch is padded beyond it; 0 for no limit.
      batch_tokens: tokens per batch, about.
      own_length: whether a batch has only sequences that are padded to the same multiple, so that
        the numbers of a sequence do not depend on the others.

    Raises:
      UserError: no sequences, or an empty one.
    """
    lengths_N = np.array([len(tokens) for tokens in ids])
    if not len(lengths_N) or not lengths_N.min():
        raise UserError("a text without a single token cannot be read")
    order_N = np.argsort(-lengths_N, kind="stable")
    out, done = np.zeros(0), 0
    while done < len(order_N):
        length = -(-int(lengths_N[order_N[done]]) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        length = min(length, max_seq_len or length)
        batch_size = max(1, batch_tokens // length)
        chosen = order_N[done : done + batch_size]
        if own_length:
            chosen = chosen[lengths_N[chosen] > length - LENGTH_MULTIPLE]
        # The last batch is filled with repeats, so that it has no shape of its own.
        filled = np.concatenate([chosen, np.repeat(chosen[:1], batch_size - len(chosen))])
        batch = pad_sequences([ids[n] for n in filled], length)
        batch["length"] = lengths_N[filled].astype(np.int32)
        values = np.asarray(_run_batch(operands, batch, fn))
        if not done:
            out = np.zeros((len(order_N), *values.shape[1:]), values.dtype)
        out[chosen] = values[: len(chosen)]
        done += len(chosen)
    return out


@functools.partial(jax.jit, static_argnames="fn")
def _run_batch(operands, batch, fn):
    return fn(operands, batch)
