"""Classification by prompting: the answer a language model finds likeliest (Brown et al. 2020).

Nothing is trained. An answer's score is the log probability of its tokens after the prompt;
calibration (Zhao et al. 2021, sec. 4) divides out the scores of prompts without content.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fm.adaptation.batching import BatchFn, map_bucketed
from fm.errors import UserError
from fm.model import embeddings
from fm.model.config import ModelConfig
from fm.model.row_mask import row_mask
from fm.model.transformer import forward

CONTENT_FREE = ("N/A", "[MASK]", "nothing")


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """A template that turns a text to classify into a prompt, with the answer word of each class.

    Attributes:
      text: contains {text} and ends with {answer}, once each.
      answers: one per class, in their order.
      separator: between solved examples and the question.
    """

    text: str
    answers: tuple[str, ...]
    separator: str = "\n\n"

    def __post_init__(self):
        fields = re.findall(r"\{(\w*)\}", self.text)
        if fields != ["text", "answer"] or not self.text.endswith("{answer}"):
            raise UserError(
                f"the template {self.text!r} takes {{text}}, then at its end {{answer}}, once "
                "each, such as 'Review: {text} Sentiment: {answer}'"
            )
        if len(self.answers) < 2 or len(set(self.answers)) < len(self.answers):
            raise UserError(f"answers={','.join(self.answers)}: one for each class, all different")
        if not all(answer.strip() for answer in self.answers):
            raise UserError("answers may not be blank")

    def split_at_text(self) -> tuple[str, str]:
        """Returns the parts of the template before and after the text.

        White space belongs to what follows it, as in byte-level tokenizers, so that parts encoded
        separately give the tokens of the whole.
        """
        before, after = self.text.removesuffix("{answer}").split("{text}")
        return before.rstrip(), after.rstrip()

    def leading_space(self) -> str:
        """Returns the white space before the text."""
        before, _ = self.text.split("{text}")
        return before[len(before.rstrip()) :]

    def spaced_answers(self) -> list[str]:
        """Returns the answers with the white space that precedes them."""
        before = self.text.removesuffix("{answer}")
        return [before[len(before.rstrip()) :] + answer for answer in self.answers]


class TextEncoder(Protocol):
    """Protocol of a tokenizer for prompts and word tagging: BOS id, and texts to token ids."""

    @property
    def bos(self) -> int | None:
        """Returns the id that starts a text; None if there is none."""
        ...

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the token ids of each text, int32 [tokens], without special tokens."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class PromptEncoder:
    """Encodes zero-shot and few-shot prompts as token ids for one model.

    Attributes:
      template: see `PromptTemplate`.
      tokenizer: the model's.
      max_length: most tokens of a prompt with its answer.
    """

    template: PromptTemplate
    tokenizer: TextEncoder
    max_length: int

    def encode_answers(self) -> list[np.ndarray]:
        """Returns the token ids of each answer.

        Raises:
          UserError: two answers have the same tokens, or one has none.
        """
        ids = self.tokenizer.encode(self.template.spaced_answers())
        if len({tuple(tokens.tolist()) for tokens in ids}) < len(ids) or not all(map(len, ids)):
            raise UserError(
                f"the tokenizer cannot tell the answers {', '.join(self.template.answers)} apart"
            )
        return ids

    def encode_prompts(
        self, texts: Sequence[str], fewshot_examples: Sequence[tuple[str, int]] = ()
    ) -> list[np.ndarray]:
        """Returns the token ids of each text's prompt, up to where the answer starts.

        A text too long is truncated, never the template; solved examples and the question get
        equally many tokens.

        Args:
          texts: N texts.
          fewshot_examples: solved examples (text, class) that lead every prompt.

        Raises:
          UserError: the template leaves no room for any text.
        """
        before, after = self.tokenizer.encode(self.template.split_at_text())
        separator = self.tokenizer.encode([self.template.separator])[0]
        answers = self.encode_answers()
        bos = [] if self.tokenizer.bos is None else [self.tokenizer.bos]
        overhead = len(before) + len(after) + len(separator)
        fixed = len(bos) + len(before) + len(after) + max(map(len, answers))
        fixed += sum(overhead + len(answers[label]) for _, label in fewshot_examples)
        room = (self.max_length - fixed) // (len(fewshot_examples) + 1)
        if room < 1:
            raise UserError(
                f"{self.max_length} tokens leave no room for the text: the template takes {fixed} "
                f"with {len(fewshot_examples)} solved examples"
            )
        space = self.template.leading_space()
        encoded = self.tokenizer.encode([space + text for text, _ in fewshot_examples])
        parts = [np.array(bos, np.int32)]
        for ids, (_, label) in zip(encoded, fewshot_examples, strict=True):
            parts += [before, ids[:room], after, answers[label], separator]
        prefix = np.concatenate([*parts, before]).astype(np.int32)
        return [
            np.concatenate([prefix, ids[:room], after]).astype(np.int32)
            for ids in self.tokenizer.encode([space + text for text in texts])
        ]


def answer_logprobs(
    params: dict,
    config: ModelConfig,
    prompts: Sequence[np.ndarray],
    answers: Sequence[np.ndarray],
    *,
    mean_over_tokens: bool = False,
    own_length: bool = False,
) -> np.ndarray:
    """Returns the log probability of every answer after every prompt, in nats, float32 [N, A].

    Answers of one token share one forward pass; longer ones take a pass each. `mean_over_tokens`
    averages over an answer's tokens, so that long answers are not penalized; for `own_length` see
    `fm.adaptation.batching.map_bucketed`.

    Raises:
      UserError: a prompt with its answer is longer than `config.max_seq_len`.
    """
    config.check_length(max(map(len, prompts)) + max(map(len, answers)) - 1)
    if all(len(answer) == 1 for answer in answers):
        operands = params, jnp.asarray(np.concatenate(answers))
        return map_bucketed(
            _first_token_fn(config),
            operands,
            prompts,
            max_seq_len=config.max_seq_len,
            own_length=own_length,
        )
    columns = []
    for answer in answers:
        sequences = [np.concatenate([prompt, answer[:-1]]) for prompt in prompts]
        logprobs = map_bucketed(
            _answer_fn(config, len(answer)),
            (params, jnp.asarray(answer)),
            sequences,
            max_seq_len=config.max_seq_len,
            own_length=own_length,
        )
        columns.append(logprobs.mean(axis=1) if mean_over_tokens else logprobs.sum(axis=1))
    return np.stack(columns, axis=1)


def calibrate(logprobs_NA: np.ndarray, content_free_FA: np.ndarray) -> np.ndarray:
    """Returns answer scores minus those of content-free prompts (Zhao et al. 2021, sec. 4).

    The scores of the F prompts without content are averaged as probabilities; the result [N, A] is
    not normalized again.
    """
    bias_A = np.log(np.mean(np.exp(_normalize_over_answers(content_free_FA)), axis=0))
    return _normalize_over_answers(logprobs_NA) - bias_A


def _normalize_over_answers(logprobs: np.ndarray) -> np.ndarray:
    logprobs = np.asarray(logprobs, np.float64)
    top = logprobs.max(axis=-1, keepdims=True)
    return logprobs - top - np.log(np.sum(np.exp(logprobs - top), axis=-1, keepdims=True))


@functools.lru_cache(maxsize=16)
def _first_token_fn(config: ModelConfig) -> BatchFn:
    """(params, tokens [A]) and a batch to the log probability of each as the next token [B, A]."""

    def fn(operands, batch):
        params, answers_A = operands
        final_BD = _final_at_end(params, batch, config, 1)[:, 0]
        logits_BV = embeddings.token_logits(params["streams"], final_BD, config)
        return jax.nn.log_softmax(logits_BV, axis=-1)[:, answers_A]

    return fn


@functools.lru_cache(maxsize=64)
def _answer_fn(config: ModelConfig, num_tokens: int) -> BatchFn:
    """(params, answer [T]) and a batch to the log probability of each answer token [B, T]."""

    def fn(operands, batch):
        params, answer_T = operands
        final_BTD = _final_at_end(params, batch, config, num_tokens)
        logits_BTV = embeddings.token_logits(params["streams"], final_BTD, config)
        logprobs_BTV = jax.nn.log_softmax(logits_BTV, axis=-1)
        return jnp.take_along_axis(logprobs_BTV, answer_T[None, :, None], axis=-1)[..., 0]

    return fn


def _final_at_end(params, batch, config, count) -> jax.Array:
    """The final output at the last `count` tokens of every sequence, [B, count, D]."""
    final_BLD = forward(params, batch, config, mask=row_mask(batch, causal=True))["final"]
    ends_B = jnp.sum(batch["segments"] > 0, axis=1)
    places_BT = ends_B[:, None] - count + jnp.arange(count)
    return jnp.take_along_axis(final_BLD, places_BT[..., None], axis=1)
