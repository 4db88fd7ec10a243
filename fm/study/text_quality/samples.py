"""Samples: so many texts of so many tokens, written by a model or by people, kept as JSON."""

from __future__ import annotations

import codecs
import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from fm import kept
from fm.data.tokenizer import SPECIALS, Tokenizer
from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.model.generate import generate
from fm.model.sampling import Decoding


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Texts that go on from prompts.

    Attributes:
      tokens_NL: int32, BOS, the prompt, then what was written.
      given: tokens of BOS and prompt.
      prompts: the prompts as text.
      texts: what was written, as text.
    """

    tokens_NL: np.ndarray
    given: int
    prompts: list[str]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)


def real(
    tokenizer: Tokenizer, texts: list[str], prompt_tokens: int, new_tokens: int, count: int
) -> tuple[Sample, Sample]:
    """Two samples of how people went on: the first for prompts, the second to compare.

    Raises:
      UserError: too few of the texts are long enough.
    """
    length = prompt_tokens + new_tokens
    long = [ids[:length] for ids in tokenizer.encode(texts) if len(ids) >= length]
    if len(long) < 2 * count:
        raise UserError(
            f"only {len(long)} of {len(texts)} texts set aside have {length} tokens; "
            f"{2 * count} are needed"
        )
    tokens = np.array(long[: 2 * count], np.int32)
    led = np.pad(tokens, ((0, 0), (1, 0)), constant_values=tokenizer.bos)
    given = 1 + prompt_tokens
    return _sample(tokenizer, led[:count], given), _sample(tokenizer, led[count:], given)


def written(
    params: Callable[[], dict],
    like: Sample,
    tokenizer: Tokenizer,
    model: ModelConfig,
    decoding: Decoding,
    *,
    seed: int,
    path: pathlib.Path,
) -> Sample:
    """A model's sample for the prompts of another, read back if it was written before.

    The end of a text is never drawn: all have one length, or the metrics would not compare.
    `params` is called only where there is something to write.
    """
    if path.exists():
        return _sample(tokenizer, np.array(kept.read(path), np.int32), like.given)
    prompts_NP = like.tokens_NL[:, : like.given]
    new = generate(
        params(),
        list(prompts_NP),
        model,
        decoding=decoding,
        max_tokens=like.tokens_NL.shape[1] - like.given,
        seeds=[seed * len(like) + row for row in range(len(like))],
        barred=range(SPECIALS),
    )
    made = np.concatenate([prompts_NP, np.stack(new)], axis=1)
    kept.keep(path, made.tolist())
    return _sample(tokenizer, made, like.given)


def _sample(tokenizer: Tokenizer, tokens_NL: np.ndarray, given: int) -> Sample:
    prompts = [decoded(tokenizer, ids) for ids in tokens_NL[:, :given]]
    texts = [decoded(tokenizer, ids) for ids in tokens_NL[:, given:]]
    return Sample(tokens_NL, given, prompts, texts)


def decoded(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """The text of tokens; a character cut off by the end is left out, broken ones are U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(b"".join(tokenizer.spelled(ids)))
