"""Instruction tuning: tasks as text, one model trained on the answers of all of them.

One set of weights does every task it can be asked (Wei et al. 2022; Sanh et al. 2022). An example
is [instruction][input of any modality][" answer:"][answer, EOS], one row of typed segments; only
the answer is predicted.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fm.adaptation.batching import BatchFn, TokenizedExamples, map_batches
from fm.adaptation.finetune import FinetuneConfig, batch_order, pad_with_first_row, run_adamw
from fm.data.batches import batch_size_per_group
from fm.data.packing import PackedMultimodalRowSource, Row, Segment, build_row
from fm.data.tokenizer import Tokenizer
from fm.errors import UserError
from fm.model import embeddings, kv_cache
from fm.model.config import ModelConfig
from fm.model.embeddings import patch_head_names
from fm.model.row_mask import row_mask
from fm.model.sampling import greedy_tokens
from fm.model.transformer import forward

ANSWER_MARKER = "\nanswer:"
# Rows are padded to multiples of it, so that few programs are compiled.
_LENGTH_MULTIPLE = 32
# Answer lengths are rounded up to multiples of it, so that other seeds reuse the program.
_ANSWER_MULTIPLE = 16
# A group's share of a step is its size to this power: mixing temperature 2 (Raffel et al. 2020,
# sec. 3.5.2). In proportion to size, small groups would hardly be seen.
_MIXING_EXPONENT = 0.5


@dataclasses.dataclass(frozen=True)
class InstructionPhrasings:
    """A task's instruction in several phrasings (the last held out), with an answer per class.

    Attributes:
      task: name of the task.
      phrasings: ways to ask; the last is held out from training.
      answers: one per class, in their order; None for free text.
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
        """Returns the phrasings used in training."""
        return self.phrasings[:-1]

    @property
    def held_out_phrasing(self) -> str:
        """Returns the phrasing used in testing only."""
        return self.phrasings[-1]

    def sample_phrasings(self, count: int, seed: int) -> list[str]:
        """Returns `count` randomly drawn training phrasings."""
        rng = np.random.default_rng(seed)
        draws = rng.integers(0, len(self.train_phrasings), count)
        return [self.train_phrasings[draw] for draw in draws]


def _check_distinct(task: str, name: str, values: tuple[str, ...]) -> None:
    if len(values) < 2 or len(set(values)) < len(values) or not all(map(str.strip, values)):
        raise UserError(
            f"task {task!r} takes two {name} or more, all different and none blank, not "
            f"{', '.join(map(repr, values)) or 'none'}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class InstructionEncoder:
    """Encoder of instructions, inputs (text or patches) and answers as one model's input rows.

    Attributes:
      tokenizer: the model's.
      model_config: architecture; an input may be of any of its modalities.
      max_length: most tokens of an example, question and answer.
    """

    tokenizer: Tokenizer
    model_config: ModelConfig
    max_length: int

    def encode_examples(
        self,
        phrasings: Sequence[str],
        inputs: Sequence[str] | Sequence[Segment],
        answers: Sequence[str],
        *,
        reserved_tokens: int = 0,
    ) -> list[Row]:
        """Returns a row of model inputs per example: instruction, input and answer in sequence.

        A text too long is truncated, never the phrasing or the answer.

        Args:
          phrasings: ways to ask; "" leaves out the instruction.
          inputs: texts, or segments of patches, see `continuous_segments`.
          answers: texts.
          reserved_tokens: room for the longest answer, so that a text is truncated at the same
            place whatever its answer.

        Raises:
          UserError: there is no room for the input.
        """
        encoded = self.encode_answers(answers)
        parts = zip(phrasings, self._encode_inputs(inputs), encoded, strict=True)
        return [self._build_row(*part, reserved_tokens) for part in parts]

    def encode_questions(
        self,
        phrasings: Sequence[str],
        inputs: Sequence[str] | Sequence[Segment],
        reserved_tokens: int,
    ) -> list[Row]:
        """Returns a row per example of instruction and input alone, with room for an answer."""
        no_answer = np.zeros(0, np.int32)
        parts = zip(phrasings, self._encode_inputs(inputs), strict=True)
        return [self._build_row(*part, no_answer, reserved_tokens) for part in parts]

    def encode_answers(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns token ids of answers, each with a leading space and a final EOS."""
        ids = self.tokenizer.encode([" " + " ".join(text.split()) for text in texts])
        return [np.append(tokens, self.tokenizer.eos).astype(np.int32) for tokens in ids]

    def _encode_inputs(self, inputs: Sequence[str] | Sequence[Segment]) -> Iterable[Segment]:
        texts = ["\n" + each for each in inputs if isinstance(each, str)]
        ids = iter(self.tokenizer.encode(texts))
        for each in inputs:
            if isinstance(each, Segment):
                # With a start patch, as in pretraining on its modality alone.
                yield dataclasses.replace(each, answer=False, with_start=True)
            else:
                yield Segment("tokens", next(ids), answer=False)

    def _build_row(
        self, phrasing: str, segment: Segment, answer: np.ndarray, reserved_tokens: int
    ) -> Row:
        question, marker = self.tokenizer.encode([phrasing, ANSWER_MARKER])
        question = np.concatenate([[self.tokenizer.bos], question]).astype(np.int32)
        room = self.max_length - len(question) - len(marker) - max(len(answer), reserved_tokens)
        is_text = segment.modality == "tokens"
        needed = 1 if is_text else len(segment.tokens) + segment.with_start
        if room < needed:
            raise UserError(
                f"{self.max_length} tokens leave {max(room, 0)} for the input, which takes "
                f"{needed} or more: the instruction {phrasing!r} takes {len(question)}"
            )
        if is_text:
            segment = dataclasses.replace(segment, tokens=segment.tokens[:room])
        parts = [Segment("tokens", question, answer=False), segment]
        parts += [Segment("tokens", marker, answer=False), Segment("tokens", answer)]
        return build_row(parts, self.model_config.modalities)


def continuous_segments(modality: str, patches: np.ndarray, positions: np.ndarray) -> list[Segment]:
    """Returns one segment per example: its patches [L, P] at the shared positions, int [L, A]."""
    return [Segment(modality, each, positions) for each in patches]


def pack_examples(
    rows: Sequence[Row], model_config: ModelConfig, length: int, *, share_rows: bool
) -> TokenizedExamples:
    """Packs encoded examples into padded arrays [B, length] with segment ids and an answer mask.

    `share_rows` packs several examples per row, kept apart by `segments`; else one each, in order.

    Returns:
      `tokens`, patches of each continuous modality used, `positions`, `segments` (0 is padding),
      `answer` (bool, the tokens to predict), and `modality` if a row mixes them.
    """
    used = {name for row in rows for name in row} & set(model_config.modalities) | {"tokens"}
    patch_dims = [
        (name, 0 if name == "tokens" else model_config.patch_dim(name)) for name in sorted(used)
    ]
    packed = PackedMultimodalRowSource(rows, length, patch_dims, share_rows=share_rows)
    every = [packed[n] for n in range(len(packed))]
    examples = {key: np.stack([row[key] for row in every]) for key in every[0]}
    if len(used) == 1:
        del examples["modality"]
    # Text has the same position on every axis.
    examples["positions"] = examples["positions"][..., : model_config.position_axes]
    if model_config.position_axes == 1:
        examples["positions"] = examples["positions"][..., 0]
    return examples


def prefix_lengths(examples: TokenizedExamples) -> np.ndarray:
    """Returns the number of tokens before the answer in each row, int32 [B].

    As `prefix` of a batch it makes attention to the question bidirectional.
    """
    question = (examples["segments"] > 0) & ~examples["answer"]
    return np.asarray(np.sum(question, axis=1), np.int32)


def instruction_tune(
    params: dict,
    groups: Mapping[str, TokenizedExamples],
    model_config: ModelConfig,
    config: FinetuneConfig,
    *,
    seed: int,
    pad_to: Mapping[str, int],
) -> dict:
    """Returns params finetuned on instruction examples' answers; each step mixes all groups.

    The output heads of continuous modalities stay unchanged.

    Args:
      params: initial parameters.
      groups: examples of `pack_examples` by group name, each group with its own length and
        modalities; every step takes its share of each. `prefix` makes questions bidirectional.
      model_config: architecture.
      config: learning rate, steps, epochs, batch size (rows of all groups) and weight decay.
      seed: decides the order.
      pad_to: rows that each group is padded to, see `fm.adaptation.finetune.finetune`.

    Raises:
      UserError: a group is too small to have a row in every step.
    """
    counts = {name: len(rows["segments"]) for name, rows in groups.items()}
    batch_sizes = rows_per_group(counts, config.batch_size)
    num_steps = config.num_steps(sum(pad_to.values()))
    orders = {
        name: batch_order(count, num_steps, batch_sizes[name], seed)
        for name, count in counts.items()
    }
    streams = params["streams"]
    unused = patch_head_names(streams)
    trained = _run(
        {**params, "streams": {key: each for key, each in streams.items() if key not in unused}},
        {
            name: {key: pad_with_first_row(value, pad_to[name]) for key, value in rows.items()}
            for name, rows in groups.items()
        },
        orders,
        jnp.float32(config.learning_rate),
        jnp.int32(config.num_steps(sum(counts.values()))),
        model_config,
        config.weight_decay,
        tuple((name, _max_answer_tokens(rows)) for name, rows in groups.items()),
    )
    return trained | {"streams": {**streams, **trained["streams"]}}


def rows_per_group(counts: Mapping[str, int], batch_size: int) -> dict[str, int]:
    """Returns each group's rows in a batch, in proportion to the square root of its count.

    Raises:
      UserError: see `fm.data.batches.batch_size_per_group`.
    """
    weights = {name: count**_MIXING_EXPONENT for name, count in counts.items()}
    return batch_size_per_group(weights, batch_size)


def _max_answer_tokens(examples: TokenizedExamples) -> int:
    longest = int(np.sum(examples["answer"], axis=1).max())
    rounded = -(-longest // _ANSWER_MULTIPLE) * _ANSWER_MULTIPLE
    return min(rounded, examples["answer"].shape[1])


@functools.partial(jax.jit, static_argnames=("model_config", "weight_decay", "max_answer_tokens"))
def _run(params, groups, orders, peak_lr, num_steps, model_config, weight_decay, max_answer_tokens):
    def loss(params, batches):
        parts = [
            answer_cross_entropy_sums(params, batches[name], model_config, count)
            for name, count in max_answer_tokens
        ]
        total, count = map(sum, zip(*parts, strict=True))
        return total / jnp.maximum(count, 1)

    def gradient(params, step):
        batches = {
            name: {key: value[orders[name][step]] for key, value in rows.items()}
            for name, rows in groups.items()
        }
        return jax.grad(loss)(params, batches)

    return run_adamw(gradient, params, peak_lr, num_steps, weight_decay)


def answer_cross_entropy_sums(
    params: dict, batch: dict[str, jax.Array], model_config: ModelConfig, max_answer_tokens: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the sum over answers of their mean nats per token, and the number of answers.

    Every answer has weight one, whatever its length: by tokens, tasks answered in sentences would
    drown those answered in a word. Logits are computed at answers alone: `max_answer_tokens` per
    row, at least as many as any row has.
    """
    final_BLD = final_hidden(params, batch, model_config)
    is_answer_BT, places_BT = jax.lax.top_k(batch["answer"].astype(jnp.int32), max_answer_tokens)
    h_BTD = jnp.take_along_axis(final_BLD, places_BT[..., None] - 1, axis=1)
    logits_BTV = embeddings.token_logits(params["streams"], h_BTD, model_config)
    tokens_BT = jnp.take_along_axis(batch["tokens"], places_BT, axis=1)
    nats_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, tokens_BT)
    segments_BT = jnp.take_along_axis(batch["segments"], places_BT, axis=1)
    weights_BT = _answer_weights(segments_BT, is_answer_BT)
    return jnp.sum(nats_BT * weights_BT), jnp.sum(weights_BT)


def _answer_weights(segments_BT: jax.Array, is_answer_BT: jax.Array) -> jax.Array:
    """One over the answer tokens of the same segment, [B, T]; 0 elsewhere."""
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    tokens_BT = jnp.sum(same_BTT * is_answer_BT[:, None, :], axis=-1)
    return is_answer_BT / jnp.maximum(tokens_BT, 1)


def final_hidden(params: dict, batch: dict[str, jax.Array], config: ModelConfig) -> jax.Array:
    """Returns final hidden states [B, L, D]; a `prefix` in the batch is read bidirectionally."""
    return forward(params, batch, config, mask=row_mask(batch, causal=True))["final"]


def loglikelihood(
    params: dict,
    encoder: InstructionEncoder,
    phrasings: Sequence[str],
    inputs: Sequence,
    candidates: Sequence[str],
    *,
    bidirectional_prefix: bool = False,
) -> np.ndarray:
    """Returns log probabilities [N, A] of candidate answers to inputs, with one phrasing each.

    Candidates that differ in their first token share one forward pass and are judged by that token
    alone; others take a pass each.

    `phrasings` and `inputs` are those of `InstructionEncoder.encode_examples`;
    `bidirectional_prefix` says whether the question was trained with bidirectional attention.

    Raises:
      UserError: two candidates have the same tokens.
    """
    ids = encoder.encode_answers(candidates)
    if len({tuple(tokens.tolist()) for tokens in ids}) < len(ids):
        raise UserError(f"the tokenizer cannot tell the answers {', '.join(candidates)} apart")
    longest = max(map(len, ids))
    if len({tokens[0] for tokens in ids}) == len(ids):
        rows = encoder.encode_questions(phrasings, inputs, reserved_tokens=longest)
        operands = params, jnp.asarray([tokens[0] for tokens in ids])
        batch = _make_batch(rows, encoder, bidirectional_prefix)
        return map_batches(_first_token_fn(encoder.model_config), operands, batch)
    columns = []
    for candidate in candidates:
        answers = [candidate] * len(phrasings)
        rows = encoder.encode_examples(phrasings, inputs, answers, reserved_tokens=longest)
        batch = _make_batch(rows, encoder, bidirectional_prefix)
        fn = _whole_answer_fn(encoder.model_config, longest)
        columns.append(map_batches(fn, params, batch))
    return np.stack(columns, axis=1)


def generate_until(
    params: dict,
    encoder: InstructionEncoder,
    phrasings: Sequence[str],
    inputs: Sequence,
    *,
    max_new_tokens: int,
    bidirectional_prefix: bool = False,
) -> list[str]:
    """Returns greedily decoded answers, as text, up to EOS or `max_new_tokens`."""
    rows = encoder.encode_questions(phrasings, inputs, reserved_tokens=max_new_tokens)
    batch = _make_batch(rows, encoder, bidirectional_prefix)
    eos = encoder.tokenizer.eos
    fn = _generate_fn(encoder.model_config, max_new_tokens, eos)
    prepared = kv_cache.prepare_params(params, encoder.model_config)
    tokens_NT = map_batches(fn, prepared, batch)
    ends = [np.flatnonzero(tokens_T == eos) for tokens_T in tokens_NT]
    return [
        encoder.tokenizer.decode(tokens_T[: end[0]] if len(end) else tokens_T).strip()
        for tokens_T, end in zip(tokens_NT, ends, strict=True)
    ]


def _make_batch(
    rows: Sequence[Row], encoder: InstructionEncoder, bidirectional_prefix: bool
) -> TokenizedExamples:
    longest = max(len(row["answer"]) for row in rows)
    length = min(-(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE, encoder.max_length)
    batch = pack_examples(rows, encoder.model_config, length, share_rows=False)
    return batch | {"prefix": prefix_lengths(batch)} if bidirectional_prefix else batch


def _next_token_logprobs(
    params: dict, final_BLD: jax.Array, places_BT: jax.Array, config: ModelConfig
) -> jax.Array:
    """Log probabilities of the token after each place, float32 [B, T, V]."""
    h_BTD = jnp.take_along_axis(final_BLD, places_BT[..., None], axis=1)
    logits_BTV = embeddings.token_logits(params["streams"], h_BTD, config)
    return jax.nn.log_softmax(logits_BTV, axis=-1)


@functools.lru_cache(maxsize=16)
def _first_token_fn(config: ModelConfig) -> BatchFn:
    """(params, tokens [A]) and questions to the log probability of each as next token [B, A]."""

    def fn(operands, batch):
        params, tokens_A = operands
        ends_B1 = jnp.sum(batch["segments"] > 0, axis=1, keepdims=True)
        final_BLD = final_hidden(params, batch, config)
        return _next_token_logprobs(params, final_BLD, ends_B1 - 1, config)[:, 0, tokens_A]

    return fn


@functools.lru_cache(maxsize=16)
def _whole_answer_fn(config: ModelConfig, max_answer_tokens: int) -> BatchFn:
    """Params and examples to the log probability of their answers [B]."""

    def fn(params, batch):
        ends_B1 = jnp.sum(batch["segments"] > 0, axis=1, keepdims=True)
        places_BT = ends_B1 - max_answer_tokens + jnp.arange(max_answer_tokens)
        final_BLD = final_hidden(params, batch, config)
        logprobs_BTV = _next_token_logprobs(params, final_BLD, places_BT - 1, config)
        tokens_BT = jnp.take_along_axis(batch["tokens"], places_BT, axis=1)
        answer_BT = jnp.take_along_axis(batch["answer"], places_BT, axis=1)
        logprobs_BT = jnp.take_along_axis(logprobs_BTV, tokens_BT[..., None], axis=-1)[..., 0]
        return jnp.sum(logprobs_BT * answer_BT, axis=1)

    return fn


@functools.lru_cache(maxsize=16)
def _generate_fn(config: ModelConfig, max_new_tokens: int, eos: int) -> BatchFn:
    """Prepared params and questions to generated tokens int [B, max_new_tokens]; 0 after EOS."""

    def fn(prepared, batch):
        B, L = batch["segments"].shape
        ends_B = jnp.sum(batch["segments"] > 0, axis=1)
        inputs = {key: batch[key] for key in batch if key not in ("segments", "prefix", "answer")}
        final_BLD, cache = kv_cache.prefill(
            prepared,
            inputs,
            ends_B,
            config,
            max_new_tokens=max_new_tokens,
            prefix_B=batch.get("prefix"),
        )
        final_B1D = jnp.take_along_axis(final_BLD, (ends_B - 1)[:, None, None], axis=1)
        positions = batch["positions"]
        last_B = jnp.max(positions, axis=tuple(range(1, positions.ndim)))
        ones = (1,) * (positions.ndim - 1)

        def unfinished(carry):
            step, *_, done_B = carry
            return (step < max_new_tokens) & ~jnp.all(done_B)

        def generate_one(carry):
            step, final_B1D, cache, out_BT, done_B = carry
            logits_BV = embeddings.token_logits(prepared.embeddings, final_B1D[:, 0], config)
            token_B = greedy_tokens(logits_BV)
            out_BT = out_BT.at[:, step].set(jnp.where(done_B, 0, token_B))
            # Text has the same position on every axis.
            position = (last_B + 1 + step).reshape(B, *ones)
            inputs = {
                "tokens": token_B[:, None],
                "positions": jnp.broadcast_to(position, (B, 1, *positions.shape[2:])),
            }
            final_B1D, cache = kv_cache.decode_step(prepared, inputs, cache, L + step, config)
            return step + 1, final_B1D, cache, out_BT, done_B | (token_B == eos)

        out_BT, done_B = jnp.zeros((B, max_new_tokens), jnp.int32), jnp.zeros(B, bool)
        start = jnp.int32(0), final_B1D, cache, out_BT, done_B
        return jax.lax.while_loop(unfinished, generate_one, start)[3]

    return fn
