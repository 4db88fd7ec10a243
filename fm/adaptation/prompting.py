"""Prompts: a task put into words, and the answer the model finds likeliest (Brown et al. 2020).

Nothing is trained. An answer's score is the log probability of its tokens after the prompt;
calibration (Zhao et al. 2021, sec. 4) divides out what the model would say to no text at all.
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

from fm.adaptation.batching import map_bucketed
from fm.attention import Mask
from fm.errors import UserError
from fm.model import embeddings
from fm.model.config import ModelConfig
from fm.model.transformer import forward

CONTENT_FREE = ("N/A", "[MASK]", "nothing")


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """A task in words.

    Attributes:
      text: with {text}, then at the end {answer}, once each.
      answers: one for each class, in their order.
      separator: stands between solved examples and the question.
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
        """What comes before and after the text.

        White space goes to what follows it, as byte-level tokenizers do, so that parts encoded
        apart are the tokens of the whole.
        """
        before, after = self.text.removesuffix("{answer}").split("{text}")
        return before.rstrip(), after.rstrip()

    def leading_space(self) -> str:
        """White space that leads the text and, after it, the answers."""
        before, _ = self.text.split("{text}")
        return before[len(before.rstrip()) :]

    def spaced_answers(self) -> list[str]:
        """The answers with the white space before them."""
        words = self.text.removesuffix("{answer}")
        return [words[len(words.rstrip()) :] + answer for answer in self.answers]


class TextEncoder(Protocol):
    """What prompts need of a tokenizer."""

    bos: int | None

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 [tokens] of each text, without special ids."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class PromptEncoder:
    """A template in the tokens of a model.

    Attributes:
      template: see `Template`.
      tokenizer: of the model.
      max_length: the most tokens of a prompt with its answer.
    """

    template: PromptTemplate
    tokenizer: TextEncoder
    max_length: int

    def encode_answers(self) -> list[np.ndarray]:
        """Tokens of each answer.

        Raises:
          UserError: two of them are the same tokens, or one has none.
        """
        ids = self.tokenizer.encode(self.template.spaced_answers())
        if len({tuple(each.tolist()) for each in ids}) < len(ids) or not all(map(len, ids)):
            raise UserError(
                f"the tokenizer cannot tell the answers {', '.join(self.template.answers)} apart"
            )
        return ids

    def encode_prompts(
        self, texts: Sequence[str], fewshot_examples: Sequence[tuple[str, int]] = ()
    ) -> list[np.ndarray]:
        """Tokens of each text's prompt, up to where the answer goes.

        A text too long is cut at its end, never the template; solved examples and the question
        share the room equally.

        Args:
          texts: N of them.
          shots: solved examples (text, class) that lead every prompt.

        Raises:
          UserError: the template leaves no room for any text.
        """
        before, after = self.tokenizer.encode(self.template.split_at_text())
        between = self.tokenizer.encode([self.template.separator])[0]
        answers = self.encode_answers()
        start = [] if self.tokenizer.bos is None else [self.tokenizer.bos]
        longest = max(map(len, answers))
        solved = sum(
            len(before) + len(after) + len(between) + len(answers[y]) for _, y in fewshot_examples
        )
        fixed = len(start) + len(before) + len(after) + longest + solved
        room = (self.max_length - fixed) // (len(fewshot_examples) + 1)
        if room < 1:
            raise UserError(
                f"{self.max_length} tokens leave no room for the text: the template takes {fixed} with "
                f"{len(fewshot_examples)} solved examples"
            )
        lead = self.template.leading_space()
        encoded = self.tokenizer.encode([lead + text for text, _ in fewshot_examples])
        head = [np.array(start, np.int32)]
        for ids, (_, label) in zip(encoded, fewshot_examples, strict=True):
            head += [before, ids[:room], after, answers[label], between]
        shared = np.concatenate([*head, before]).astype(np.int32)
        return [
            np.concatenate([shared, ids[:room], after]).astype(np.int32)
            for ids in self.tokenizer.encode([lead + text for text in texts])
        ]


def answer_logprobs(
    params: dict,
    config: ModelConfig,
    prompts: Sequence[np.ndarray],
    answers: Sequence[np.ndarray],
    *,
    mean_over_tokens: bool = False,
) -> np.ndarray:
    """Log probability of each answer after each prompt, in nats, float32 [N, A].

    Answers of one token share one forward pass; longer ones take a pass each.

    Args:
      params: of a model that predicts the next token.
      config: the model's.
      prompts: N prompts, int32 [tokens] each.
      answers: A answers, int32 [tokens] each.
      mean_over_tokens: the mean over an answer's tokens, not the sum: long answers lose nothing by it.

    Raises:
      UserError: a prompt with its answer is over the context.
    """
    config.check_length(max(map(len, prompts)) + max(map(len, answers)) - 1)
    if all(len(answer) == 1 for answer in answers):
        first = jnp.asarray(np.concatenate(answers))
        return map_bucketed(
            _first(config), (params, first), prompts, max_seq_len=config.max_seq_len
        )
    columns = []
    for answer in answers:
        whole = [np.concatenate([prompt, answer[:-1]]) for prompt in prompts]
        operands = params, jnp.asarray(answer)
        found = map_bucketed(
            _each(config, len(answer)), operands, whole, max_seq_len=config.max_seq_len
        )
        columns.append(found.mean(axis=1) if mean_over_tokens else found.sum(axis=1))
    return np.stack(columns, axis=1)


def calibrate(scores_NA: np.ndarray, content_free_FA: np.ndarray) -> np.ndarray:
    """Scores less what the answers score without content (Zhao et al. 2021, sec. 4, W diagonal).

    Args:
      scores_NA: log probabilities of the answers.
      content_free_FA: those after F prompts whose text says nothing; their mean is over
        probabilities.

    Returns:
      [N, A] log probabilities over the answers, calibrated; not normalised again.
    """
    bias_A = np.log(np.mean(np.exp(_over_answers(content_free_FA)), axis=0))
    return _over_answers(scores_NA) - bias_A


def _over_answers(scores: np.ndarray) -> np.ndarray:
    """Log probabilities among the answers alone."""
    scores = np.asarray(scores, np.float64)
    top = scores.max(axis=-1, keepdims=True)
    return scores - top - np.log(np.sum(np.exp(scores - top), axis=-1, keepdims=True))


@functools.lru_cache(maxsize=16)
def _first(config: ModelConfig):
    """(params, answers [A]) and a batch to the log probability of each after the last token."""

    def read(operands, batch):
        params, answers_A = operands
        final_BD = _last(params, batch, config, 1)[:, 0]
        return _picked(params["streams"], final_BD, answers_A)

    return read


@functools.lru_cache(maxsize=64)
def _each(config: ModelConfig, count: int):
    """(params, answer [count]) and a batch to the log probability of each of its tokens."""

    def read(operands, batch):
        params, answer_T = operands
        final_BTD = _last(params, batch, config, count)
        logits_BTV = embeddings.token_logits(params["streams"], final_BTD)
        nats_BTV = jax.nn.log_softmax(logits_BTV, axis=-1)
        return jnp.take_along_axis(nats_BTV, answer_T[None, :, None], axis=-1)[..., 0]

    return read


def _last(params, batch, config, count) -> jax.Array:
    """The final output at the last `count` filled places of every row, [B, count, D]."""
    segments = batch["segments"]
    mask = Mask(causal=True, q_segments=segments, kv_segments=segments)
    final_BLD = forward(params, batch, config, mask=mask)["final"]
    ends_B = jnp.sum(segments > 0, axis=1)
    places_BT = ends_B[:, None] - count + jnp.arange(count)
    return jnp.take_along_axis(final_BLD, places_BT[..., None], axis=1)


def _picked(params: dict, final_BD: jax.Array, answers_A: jax.Array) -> jax.Array:
    logits_BV = embeddings.token_logits(params, final_BD)
    return jax.nn.log_softmax(logits_BV, axis=-1)[:, answers_A]
