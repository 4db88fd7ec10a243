"""A task as text: what is wanted, the input in any format, and the answer as text.

One set of weights does every task that can be asked of it (Wei et al. 2022; Sanh et al. 2022).
An example is [instruction][input][" answer:"][answer, EOS], one run of typed segments; only the
answer is predicted.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fm.adaptation.batching import BATCH_SIZE, BatchFn, TokenizedExamples, map_batches
from fm.adaptation.finetune import FinetuneConfig, batch_order, pad_rows, run_adamw
from fm.attention import Mask
from fm.data.batches import batch_size_per_group
from fm.data.packing import PackedMultimodalRows, Row, Segment, build_row
from fm.data.tokenizer import Tokenizer
from fm.errors import UserError
from fm.model import embeddings, kv_cache
from fm.model.config import CONTINUOUS_MODALITIES, ModelConfig
from fm.model.sampling import greedy_tokens
from fm.model.transformer import forward

ANSWER_MARKER = "\nanswer:"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """What is wanted, in words.

    Attributes:
      task: its name.
      phrasings: ways to ask; the last is held out, never trained on.
      answers: one for each class, in their order; None where the answer is free text.
    """

    task: str
    phrasings: tuple[str, ...]
    answers: tuple[str, ...] | None = None

    def __post_init__(self):
        _check_distinct(self.task, "phrasings", self.phrasings)
        if self.answers is not None:
            _check_distinct(self.task, "answers", self.answers)

    @property
    def train_phrasings(self) -> tuple[str, ...]:
        """The wordings to train on."""
        return self.phrasings[:-1]

    @property
    def held_out_phrasing(self) -> str:
        """The wording to test with."""
        return self.phrasings[-1]

    def sample_phrasings(self, count: int, seed: int) -> list[str]:
        """`count` wordings out of those trained on, by seed."""
        draws = np.random.default_rng(seed).integers(0, len(self.train_phrasings), count)
        return [self.train_phrasings[draw] for draw in draws]


@dataclasses.dataclass(frozen=True, eq=False)
class InstructionEncoder:
    """Instructions in the pieces of a model.

    Attributes:
      tokenizer: of the model.
      model_config: its config; an input may be of any of its streams.
      max_length: the most pieces of an example, question and answer.
    """

    tokenizer: Tokenizer
    model_config: ModelConfig
    max_length: int

    def encode_examples(
        self,
        wordings: Sequence[str],
        inputs: Sequence[str] | Sequence[Segment],
        answers: Sequence[str],
        *,
        reserved_tokens: int = 0,
    ) -> list[Row]:
        """Questions with their answers, each as `fm.data.packing.build_row` has it.

        A text too long is cut at its end, never the wording or the answer.

        Args:
          wordings: N ways to ask; "" drops the instruction.
          inputs: N texts; or N segments of continuous pieces, see `segments`.
          answers: N texts to write.
          room: pieces to keep free for the longest answer, where that is longer than this one: so
            that a text is cut in the same place whatever its answer.

        Raises:
          UserError: there is no room for the input.
        """
        written = self.encode_answers(answers)
        parts = zip(wordings, self._inputs(inputs), written, strict=True)
        return [
            self._lay(wording, given, answer, reserved_tokens) for wording, given, answer in parts
        ]

    def encode_questions(
        self,
        wordings: Sequence[str],
        inputs: Sequence[str] | Sequence[Segment],
        reserved_tokens: int,
    ) -> list[Row]:
        """Questions alone, with room for an answer of so many pieces; see `examples`."""
        empty = np.zeros(0, np.int32)
        parts = zip(wordings, self._inputs(inputs), strict=True)
        return [self._lay(wording, given, empty, reserved_tokens) for wording, given in parts]

    def encode_answers(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Tokens of answers, each led by a space and closed by EOS."""
        ids = self.tokenizer.encode([" " + " ".join(text.split()) for text in texts])
        return [np.append(each, self.tokenizer.eos).astype(np.int32) for each in ids]

    def _inputs(self, inputs: Sequence[str] | Sequence[Segment]) -> Iterable[Segment]:
        texts = ["\n" + each for each in inputs if isinstance(each, str)]
        ids = iter(self.tokenizer.encode(texts))
        for each in inputs:
            if isinstance(each, Segment):
                # Led by a start piece, as in pretraining on its format alone.
                yield dataclasses.replace(each, answer=False, with_start=True)
            else:
                yield Segment("tokens", next(ids), answer=False)

    def _lay(self, wording: str, given: Segment, answer: np.ndarray, room: int) -> Row:
        asked, closing = self.tokenizer.encode([wording, ANSWER_MARKER])
        asked = np.concatenate([[self.tokenizer.bos], asked]).astype(np.int32)
        left = self.max_length - len(asked) - len(closing) - max(len(answer), room)
        needed = 1 if given.modality == "tokens" else len(given.tokens) + given.with_start
        if left < needed:
            raise UserError(
                f"{self.max_length} pieces leave {max(left, 0)} for the input, which takes {needed} "
                f"or more: the instruction {wording!r} takes {len(asked)}"
            )
        if given.modality == "tokens":
            given = dataclasses.replace(given, tokens=given.tokens[:left])
        parts = [Segment("tokens", asked, answer=False), given]
        parts += [Segment("tokens", closing, answer=False), Segment("tokens", answer)]
        return build_row(parts, self.model_config.modalities)


def continuous_segments(stream: str, pieces: np.ndarray, positions: np.ndarray) -> list[Segment]:
    """Inputs of a continuous format: [N, L, P] pieces, and int [L, A] where they lie in each."""
    return [Segment(stream, each, positions) for each in pieces]


def pack_examples(
    examples: Sequence[Row], model: ModelConfig, length: int, *, share_rows: bool
) -> TokenizedExamples:
    """Examples packed into rows of `length` pieces, as the model reads them.

    Args:
      examples: of `Asker`.
      model: the model's config.
      length: pieces in a row.
      share_rows: several examples to a row where they fit, apart by `segments`; or one to a row,
        in their order.

    Returns:
      `tokens` int32 [B, length], pieces of each continuous stream the examples have, `positions`,
      `segments` (0 is padding), `answer` bool (the pieces to predict), and `modality` where a row
      mixes streams.
    """
    used = {name for each in examples for name in each} & set(model.modalities) | {"tokens"}
    widths = [(name, 0 if name == "tokens" else model.patch_dim(name)) for name in sorted(used)]
    packed = PackedMultimodalRows(examples, length, widths, share_rows=share_rows)
    every = [packed[n] for n in range(len(packed))]
    made = {key: np.stack([row[key] for row in every]) for key in every[0]}
    if len(used) == 1:
        del made["modality"]
    # Text lies at the same place on every axis.
    made["positions"] = made["positions"][..., : model.position_axes]
    if model.position_axes == 1:
        made["positions"] = made["positions"][..., 0]
    return made


def prefix_lengths(made: TokenizedExamples) -> np.ndarray:
    """Pieces before the answer of each row of one example, int32 [B].

    Given to the model as `prefix`, the question is read in both directions.
    """
    asked = (made["segments"] > 0) & ~made["answer"]
    return np.asarray(np.sum(asked, axis=1), np.int32)


def _check_distinct(task: str, what: str, given: tuple[str, ...]) -> None:
    if len(given) < 2 or len(set(given)) < len(given) or not all(map(str.strip, given)):
        raise UserError(
            f"task {task!r} takes two {what} or more, all different and none blank, not "
            f"{', '.join(map(repr, given)) or 'none'}"
        )


# Rows are padded to multiples of this, so that few programs are compiled.
_LENGTH_MULTIPLE = 32


def loglikelihood(
    params: dict,
    encoder: InstructionEncoder,
    phrasings: Sequence[str],
    inputs: Sequence,
    candidates: Sequence[str],
    *,
    bidirectional_prefix: bool = False,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Log probability of each candidate as the answer, in nats, float32 [N, A].

    Candidates that differ in their first token share one pass over the question, and are judged
    by that token (how likely the rest of each follows is left out); others take a row each.

    Args:
      params: of the model.
      encoder: see `Asker`.
      phrasings: N ways to ask.
      inputs: N inputs, see `Asker.examples`.
      candidates: A answers.
      bidirectional_prefix: whether the question was trained to be read in both directions (`prefix`).
      batch_size: rows read at a time.

    Raises:
      UserError: the tokenizer cannot tell two candidates apart.
    """
    ids = encoder.encode_answers(candidates)
    if len({tuple(each.tolist()) for each in ids}) < len(ids):
        raise UserError(f"the tokenizer cannot tell the answers {', '.join(candidates)} apart")
    longest = max(map(len, ids))
    if len({each[0] for each in ids}) == len(ids):
        questions = encoder.encode_questions(phrasings, inputs, reserved_tokens=longest)
        firsts = jnp.asarray([each[0] for each in ids])
        made = _make_batch(questions, encoder, bidirectional_prefix)
        return map_batches(
            _first_token_fn(encoder.model_config), (params, firsts), made, batch_size
        )
    columns = []
    for candidate in candidates:
        answers = [candidate] * len(phrasings)
        examples = encoder.encode_examples(phrasings, inputs, answers, reserved_tokens=longest)
        made = _make_batch(examples, encoder, bidirectional_prefix)
        columns.append(
            map_batches(_whole_answer_fn(encoder.model_config, longest), params, made, batch_size)
        )
    return np.stack(columns, axis=1)


def generate_until(
    params: dict,
    encoder: InstructionEncoder,
    phrasings: Sequence[str],
    inputs: Sequence,
    *,
    max_new_tokens: int,
    bidirectional_prefix: bool = False,
    batch_size: int = BATCH_SIZE,
) -> list[str]:
    """The answer to each question, each token the likeliest one, up to EOS or `max_new_tokens` tokens.

    Args:
      params: of the model.
      encoder: see `Asker`.
      phrasings: N ways to ask.
      inputs: N inputs, see `Asker.examples`.
      max_new_tokens: tokens of an answer.
      bidirectional_prefix: see `closed`.
      batch_size: rows written at a time.
    """
    made = _make_batch(
        encoder.encode_questions(phrasings, inputs, reserved_tokens=max_new_tokens),
        encoder,
        bidirectional_prefix,
    )
    read = _generate_fn(encoder.model_config, max_new_tokens, encoder.tokenizer.eos)
    tokens = map_batches(
        read, kv_cache.prepare_params(params, encoder.model_config), made, batch_size
    )
    ends = [np.flatnonzero(own == encoder.tokenizer.eos) for own in tokens]
    return [
        encoder.tokenizer.decode(own[: end[0]] if len(end) else own).strip()
        for own, end in zip(tokens, ends, strict=True)
    ]


def _make_batch(
    examples: Sequence[Row], asker: InstructionEncoder, both_ways: bool
) -> TokenizedExamples:
    longest = max(len(each["answer"]) for each in examples)
    length = min(-(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE, asker.max_length)
    made = pack_examples(examples, asker.model_config, length, share_rows=False)
    return made | {"prefix": prefix_lengths(made)} if both_ways else made


def final_hidden(params: dict, batch: dict[str, jax.Array], config: ModelConfig) -> jax.Array:
    """What the heads read [B, L, D], the question in both directions where it has a prefix."""
    segments = batch["segments"]
    mask = Mask(True, prefix=batch.get("prefix"), q_segments=segments, kv_segments=segments)
    return forward(params, batch, config, mask=mask)["final"]


def _next_token_logprobs(params: dict, final_BLD: jax.Array, places_BT: jax.Array) -> jax.Array:
    """Log probabilities of the token after each place, float32 [B, T, V]."""
    h_BTD = jnp.take_along_axis(final_BLD, places_BT[..., None], axis=1)
    return jax.nn.log_softmax(embeddings.token_logits(params["streams"], h_BTD), axis=-1)


@functools.lru_cache(maxsize=16)
def _first_token_fn(config: ModelConfig) -> BatchFn:
    """(params, tokens [A]) and questions to the log probability of each as the next, [B, A]."""

    def read(operands, batch):
        params, tokens_A = operands
        ends_B1 = jnp.sum(batch["segments"] > 0, axis=1, keepdims=True)
        return _next_token_logprobs(params, final_hidden(params, batch, config), ends_B1 - 1)[
            :, 0, tokens_A
        ]

    return read


@functools.lru_cache(maxsize=16)
def _whole_answer_fn(config: ModelConfig, longest: int) -> BatchFn:
    """Params and examples to the log probability of their answers of `longest` tokens at most."""

    def read(params, batch):
        ends_B1 = jnp.sum(batch["segments"] > 0, axis=1, keepdims=True)
        places_BT = ends_B1 - longest + jnp.arange(longest)
        nats_BTV = _next_token_logprobs(params, final_hidden(params, batch, config), places_BT - 1)
        tokens_BT = jnp.take_along_axis(batch["tokens"], places_BT, axis=1)
        answer_BT = jnp.take_along_axis(batch["answer"], places_BT, axis=1)
        nats_BT = jnp.take_along_axis(nats_BTV, tokens_BT[..., None], axis=-1)[..., 0]
        return jnp.sum(nats_BT * answer_BT, axis=1)

    return read


@functools.lru_cache(maxsize=16)
def _generate_fn(config: ModelConfig, most: int, eos: int) -> BatchFn:
    """`cached.Weights` and questions to the tokens that follow, int [B, most]; after EOS zeros."""

    def read(weights, batch):
        B, L = batch["segments"].shape
        ends_B = jnp.sum(batch["segments"] > 0, axis=1)
        pieces = {key: batch[key] for key in batch if key not in ("segments", "prefix", "answer")}
        final_BLD, cache = kv_cache.prefill(
            weights, pieces, ends_B, config, max_new_tokens=most, prefix_B=batch.get("prefix")
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
            chosen_B = greedy_tokens(embeddings.token_logits(weights.streams, final_B1D[:, 0]))
            out_BT = out_BT.at[:, number].set(jnp.where(done_B, 0, chosen_B))
            # Text lies at the same place on every axis.
            places = (last_B + 1 + number).reshape(B, *ones)
            written = {
                "tokens": chosen_B[:, None],
                "positions": jnp.broadcast_to(places, (B, 1, *positions.shape[2:])),
            }
            final_B1D, cache = kv_cache.decode_step(weights, written, cache, L + number, config)
            return number + 1, final_B1D, cache, out_BT, done_B | (chosen_B == eos)

        start = jnp.zeros((B, most), jnp.int32), jnp.zeros(B, bool)
        return jax.lax.while_loop(more, one, (jnp.int32(0), final_B1D, cache, *start))[3]

    return read


_ANSWER_MULTIPLE = 16
# Power of a group's size that its share of a step goes by: a mixing temperature of 2 (Raffel et al.
# 2020, section 3.5.2), or small groups would be seen as seldom as they are small.
_MIXING_EXPONENT = 0.5


def instruction_tune(
    params: dict,
    groups: Mapping[str, TokenizedExamples],
    model_config: ModelConfig,
    config: FinetuneConfig,
    *,
    seed: int,
    pad_to: Mapping[str, int],
) -> dict:
    """Trains all of a model on answers, and on nothing else.

    Args:
      params: start of the model.
      groups: rows of `fm.adaptation.instruction_tuning.pack_examples` in groups, by name, each of its own length and
        streams: every step takes its share of each. With `prefix` the questions are read in both
        directions.
      model_config: architecture.
      config: learning rate, steps, epochs, batch size (rows, of all groups) and decay; its `keep`,
        `reading` and `lora` are not read.
      seed: decides the order.
      pad_to: rows that each group is padded to (never drawn), so that one compiled program serves
        all label budgets.

    Raises:
      UserError: a group is too small to have a row in every step.

    Returns:
      The tuned parameters. The heads of continuous streams are those given.
    """
    counts = {name: len(rows["segments"]) for name, rows in groups.items()}
    share = rows_per_group(counts, config.batch_size)
    updates = config.num_steps(sum(pad_to.values()))
    orders = {name: batch_order(counts[name], updates, share[name], seed) for name in groups}
    idle = {f"{name}_{part}" for name in CONTINUOUS_MODALITIES for part in ("head", "bias")}
    given = params["streams"]
    used = {name: value for name, value in given.items() if name not in idle}
    tuned = _run(
        {**params, "streams": used},
        {
            name: {key: pad_rows(value, pad_to[name]) for key, value in rows.items()}
            for name, rows in groups.items()
        },
        orders,
        jnp.float32(config.learning_rate),
        jnp.int32(config.num_steps(sum(counts.values()))),
        model_config,
        config.weight_decay,
        tuple((name, _max_answer_tokens(rows)) for name, rows in groups.items()),
    )
    return tuned | {"streams": {**given, **tuned["streams"]}}


def rows_per_group(counts: Mapping[str, int], batch_size: int) -> dict[str, int]:
    """Rows of a step from each group of so many.

    Raises:
      UserError: see `fm.data.batches.batch_size_per_group`.
    """
    return batch_size_per_group(
        {name: count**_MIXING_EXPONENT for name, count in counts.items()}, batch_size
    )


def _max_answer_tokens(rows: TokenizedExamples) -> int:
    """The most answer tokens of a row, rounded up so that other seeds find the program compiled."""
    longest = int(np.sum(rows["answer"], axis=1).max())
    return min(-(-longest // _ANSWER_MULTIPLE) * _ANSWER_MULTIPLE, rows["answer"].shape[1])


def answer_cross_entropy(
    params: dict, batch: dict[str, jax.Array], model: ModelConfig, most: int
) -> tuple[jax.Array, jax.Array]:
    """Nats a token of answers, each given all before it, added up over them; and their number.

    An answer counts as one whatever its length: by tokens, tasks answered in sentences would drown
    those answered in a word. Logits are computed for answers alone: at most `most` tokens in a row,
    and at least as many as any row has.
    """
    final_BLD = final_hidden(params, batch, model)
    chosen, places_BT = jax.lax.top_k(batch["answer"].astype(jnp.int32), most)
    h_BTD = jnp.take_along_axis(final_BLD, places_BT[..., None] - 1, axis=1)
    logits_BTV = embeddings.token_logits(params["streams"], h_BTD)
    tokens_BT = jnp.take_along_axis(batch["tokens"], places_BT, axis=1)
    nats_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, tokens_BT)
    weights_BT = _answer_weights(jnp.take_along_axis(batch["segments"], places_BT, axis=1), chosen)
    return jnp.sum(nats_BT * weights_BT), jnp.sum(weights_BT)


def _answer_weights(segments_BT: jax.Array, chosen_BT: jax.Array) -> jax.Array:
    """One over the chosen tokens of the same segment, [B, T]; 0 where not chosen."""
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    tokens_BT = jnp.sum(same_BTT * chosen_BT[:, None, :], axis=-1)
    return chosen_BT / jnp.maximum(tokens_BT, 1)


@functools.partial(jax.jit, static_argnames=("model", "weight_decay", "most"))
def _run(params, groups, orders, peak, steps, model, weight_decay, most):
    def loss(params, batches):
        parts = [answer_cross_entropy(params, batches[name], model, each) for name, each in most]
        total, count = map(sum, zip(*parts, strict=True))
        return total / jnp.maximum(count, 1)

    def gradient(params, number):
        batches = {
            name: {key: value[orders[name][number]] for key, value in rows.items()}
            for name, rows in groups.items()
        }
        return jax.grad(loss)(params, batches)

    return run_adamw(gradient, params, peak, steps, weight_decay)
