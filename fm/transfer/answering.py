"""Answers of a model to instructions: the likeliest of a closed set, or written freely."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fm.attention import Mask
from fm.data.mixed import Row
from fm.errors import UserError
from fm.model import cached, streams
from fm.model.config import ModelConfig
from fm.model.sampling import likeliest
from fm.model.transformer import forward
from fm.transfer.examples import Rows
from fm.transfer.instructions import Asker, prefix, rows
from fm.transfer.sweep import BATCH_SIZE, Read, sweep

# Rows are padded to multiples of this, so that few programs are compiled.
_ROUND = 32


def closed(
    params: dict,
    asker: Asker,
    wordings: Sequence[str],
    inputs: Sequence,
    candidates: Sequence[str],
    *,
    both_ways: bool = False,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Log probability of each candidate as the answer, in nats, float32 [N, A].

    Candidates that differ in their first token share one pass over the question, and are judged
    by that token (how likely the rest of each follows is left out); others take a row each.

    Args:
      params: of the model.
      asker: see `Asker`.
      wordings: N ways to ask.
      inputs: N inputs, see `Asker.examples`.
      candidates: A answers.
      both_ways: whether the question was trained to be read in both directions (`prefix`).
      batch_size: rows read at a time.

    Raises:
      UserError: the tokenizer cannot tell two candidates apart.
    """
    ids = asker.answers(candidates)
    if len({tuple(each.tolist()) for each in ids}) < len(ids):
        raise UserError(f"the tokenizer cannot tell the answers {', '.join(candidates)} apart")
    longest = max(map(len, ids))
    if len({each[0] for each in ids}) == len(ids):
        questions = asker.questions(wordings, inputs, room=longest)
        firsts = jnp.asarray([each[0] for each in ids])
        made = _batch(questions, asker, both_ways)
        return sweep(_first(asker.model), (params, firsts), made, batch_size)
    columns = []
    for candidate in candidates:
        answers = [candidate] * len(wordings)
        examples = asker.examples(wordings, inputs, answers, room=longest)
        made = _batch(examples, asker, both_ways)
        columns.append(sweep(_whole(asker.model, longest), params, made, batch_size))
    return np.stack(columns, axis=1)


def write(
    params: dict,
    asker: Asker,
    wordings: Sequence[str],
    inputs: Sequence,
    *,
    most: int,
    both_ways: bool = False,
    batch_size: int = BATCH_SIZE,
) -> list[str]:
    """The answer to each question, each token the likeliest one, up to EOS or `most` tokens.

    Args:
      params: of the model.
      asker: see `Asker`.
      wordings: N ways to ask.
      inputs: N inputs, see `Asker.examples`.
      most: tokens of an answer.
      both_ways: see `closed`.
      batch_size: rows written at a time.
    """
    made = _batch(asker.questions(wordings, inputs, room=most), asker, both_ways)
    read = _written(asker.model, most, asker.tokenizer.eos)
    tokens = sweep(read, cached.prepare(params, asker.model), made, batch_size)
    ends = [np.flatnonzero(own == asker.tokenizer.eos) for own in tokens]
    return [
        asker.tokenizer.decode(own[: end[0]] if len(end) else own).strip()
        for own, end in zip(tokens, ends, strict=True)
    ]


def _batch(examples: Sequence[Row], asker: Asker, both_ways: bool) -> Rows:
    longest = max(len(each["answer"]) for each in examples)
    length = min(-(-longest // _ROUND) * _ROUND, asker.length)
    made = rows(examples, asker.model, length, share_rows=False)
    return made | {"prefix": prefix(made)} if both_ways else made


def final(params: dict, batch: dict[str, jax.Array], config: ModelConfig) -> jax.Array:
    """What the heads read [B, L, D], the question in both directions where it has a prefix."""
    segments = batch["segments"]
    mask = Mask(True, prefix=batch.get("prefix"), q_segments=segments, kv_segments=segments)
    return forward(params, batch, config, mask=mask)["final"]


def _log_chances(params: dict, final_BLD: jax.Array, places_BT: jax.Array) -> jax.Array:
    """Log probabilities of the token after each place, float32 [B, T, V]."""
    h_BTD = jnp.take_along_axis(final_BLD, places_BT[..., None], axis=1)
    return jax.nn.log_softmax(streams.token_logits(params["streams"], h_BTD), axis=-1)


@functools.lru_cache(maxsize=16)
def _first(config: ModelConfig) -> Read:
    """(params, tokens [A]) and questions to the log probability of each as the next, [B, A]."""

    def read(operands, batch):
        params, tokens_A = operands
        ends_B1 = jnp.sum(batch["segments"] > 0, axis=1, keepdims=True)
        return _log_chances(params, final(params, batch, config), ends_B1 - 1)[:, 0, tokens_A]

    return read


@functools.lru_cache(maxsize=16)
def _whole(config: ModelConfig, longest: int) -> Read:
    """Params and examples to the log probability of their answers of `longest` tokens at most."""

    def read(params, batch):
        ends_B1 = jnp.sum(batch["segments"] > 0, axis=1, keepdims=True)
        places_BT = ends_B1 - longest + jnp.arange(longest)
        nats_BTV = _log_chances(params, final(params, batch, config), places_BT - 1)
        tokens_BT = jnp.take_along_axis(batch["tokens"], places_BT, axis=1)
        answer_BT = jnp.take_along_axis(batch["answer"], places_BT, axis=1)
        nats_BT = jnp.take_along_axis(nats_BTV, tokens_BT[..., None], axis=-1)[..., 0]
        return jnp.sum(nats_BT * answer_BT, axis=1)

    return read


@functools.lru_cache(maxsize=16)
def _written(config: ModelConfig, most: int, eos: int) -> Read:
    """`cached.Weights` and questions to the tokens that follow, int [B, most]; after EOS zeros."""

    def read(weights, batch):
        B, L = batch["segments"].shape
        ends_B = jnp.sum(batch["segments"] > 0, axis=1)
        pieces = {key: batch[key] for key in batch if key not in ("segments", "prefix", "answer")}
        final_BLD, cache = cached.prefill(
            weights, pieces, ends_B, config, room=most, prefix_B=batch.get("prefix")
        )
        final_B1D = jnp.take_along_axis(final_BLD, (ends_B - 1)[:, None, None], axis=1)
        positions = batch["positions"]
        last_B = jnp.max(positions, axis=tuple(range(1, positions.ndim)))
        ones = (1,) * (positions.ndim - 1)

        def more(carry):
            number, *_, done_B = carry
            return (number < most) & ~jnp.all(done_B)

        def one(carry):
            number, final_B1D, cache, out_BT, done_B = carry
            chosen_B = likeliest(streams.token_logits(weights.streams, final_B1D[:, 0]))
            out_BT = out_BT.at[:, number].set(jnp.where(done_B, 0, chosen_B))
            # Text lies at the same place on every axis.
            places = (last_B + 1 + number).reshape(B, *ones)
            written = {
                "tokens": chosen_B[:, None],
                "positions": jnp.broadcast_to(places, (B, 1, *positions.shape[2:])),
            }
            final_B1D, cache = cached.extend(weights, written, cache, L + number, config)
            return number + 1, final_B1D, cache, out_BT, done_B | (chosen_B == eos)

        start = jnp.zeros((B, most), jnp.int32), jnp.zeros(B, bool)
        return jax.lax.while_loop(more, one, (jnp.int32(0), final_B1D, cache, *start))[3]

    return read
