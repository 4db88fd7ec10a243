"""A task as text: what is wanted, the input in any format, and the answer as text.

One set of weights does every task that can be asked of it (Wei et al. 2022; Sanh et al. 2022).
An example is [instruction][input][" answer:"][answer, EOS], one run of typed segments; only the
answer is predicted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from fm.data.mixed import MixedRows, Row, Segment, lay
from fm.data.tokenizer import Tokenizer
from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.transfer.examples import Rows

ANSWER = "\nanswer:"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """What is wanted, in words.

    Attributes:
      task: its name.
      wordings: ways to ask; the last is held out, never trained on.
      answers: one for each class, in their order; None where the answer is free text.
    """

    task: str
    wordings: tuple[str, ...]
    answers: tuple[str, ...] | None = None

    def __post_init__(self):
        _check(self.task, "wordings", self.wordings)
        if self.answers is not None:
            _check(self.task, "answers", self.answers)

    @property
    def trained(self) -> tuple[str, ...]:
        """The wordings to train on."""
        return self.wordings[:-1]

    @property
    def held_out(self) -> str:
        """The wording to test with."""
        return self.wordings[-1]

    def drawn(self, count: int, seed: int) -> list[str]:
        """`count` wordings out of those trained on, by seed."""
        draws = np.random.default_rng(seed).integers(0, len(self.trained), count)
        return [self.trained[draw] for draw in draws]


@dataclasses.dataclass(frozen=True, eq=False)
class Asker:
    """Instructions in the pieces of a model.

    Attributes:
      tokenizer: of the model.
      model: its config; an input may be of any of its streams.
      length: the most pieces of an example, question and answer.
    """

    tokenizer: Tokenizer
    model: ModelConfig
    length: int

    def examples(
        self,
        wordings: Sequence[str],
        inputs: Sequence[str] | Sequence[Segment],
        answers: Sequence[str],
        *,
        room: int = 0,
    ) -> list[Row]:
        """Questions with their answers, each as `fm.data.mixed.lay` has it.

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
        written = self.answers(answers)
        parts = zip(wordings, self._inputs(inputs), written, strict=True)
        return [self._lay(wording, given, answer, room) for wording, given, answer in parts]

    def questions(
        self, wordings: Sequence[str], inputs: Sequence[str] | Sequence[Segment], room: int
    ) -> list[Row]:
        """Questions alone, with room for an answer of so many pieces; see `examples`."""
        empty = np.zeros(0, np.int32)
        parts = zip(wordings, self._inputs(inputs), strict=True)
        return [self._lay(wording, given, empty, room) for wording, given in parts]

    def answers(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Tokens of answers, each led by a space and closed by EOS."""
        ids = self.tokenizer.encode([" " + " ".join(text.split()) for text in texts])
        return [np.append(each, self.tokenizer.eos).astype(np.int32) for each in ids]

    def _inputs(self, inputs: Sequence[str] | Sequence[Segment]) -> Iterable[Segment]:
        texts = ["\n" + each for each in inputs if isinstance(each, str)]
        ids = iter(self.tokenizer.encode(texts))
        for each in inputs:
            if isinstance(each, Segment):
                # Led by a start piece, as in pretraining on its format alone.
                yield dataclasses.replace(each, answer=False, start=True)
            else:
                yield Segment("tokens", next(ids), answer=False)

    def _lay(self, wording: str, given: Segment, answer: np.ndarray, room: int) -> Row:
        asked, closing = self.tokenizer.encode([wording, ANSWER])
        asked = np.concatenate([[self.tokenizer.bos], asked]).astype(np.int32)
        left = self.length - len(asked) - len(closing) - max(len(answer), room)
        needed = 1 if given.stream == "tokens" else len(given.pieces) + given.start
        if left < needed:
            raise UserError(
                f"{self.length} pieces leave {max(left, 0)} for the input, which takes {needed} "
                f"or more: the instruction {wording!r} takes {len(asked)}"
            )
        if given.stream == "tokens":
            given = dataclasses.replace(given, pieces=given.pieces[:left])
        parts = [Segment("tokens", asked, answer=False), given]
        parts += [Segment("tokens", closing, answer=False), Segment("tokens", answer)]
        return lay(parts, self.model.streams)


def segments(stream: str, pieces: np.ndarray, positions: np.ndarray) -> list[Segment]:
    """Inputs of a continuous format: [N, L, P] pieces, and int [L, A] where they lie in each."""
    return [Segment(stream, each, positions) for each in pieces]


def rows(examples: Sequence[Row], model: ModelConfig, length: int, *, share_rows: bool) -> Rows:
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
    used = {name for each in examples for name in each} & set(model.streams) | {"tokens"}
    widths = [(name, 0 if name == "tokens" else model.piece(name)) for name in sorted(used)]
    packed = MixedRows(examples, length, widths, share_rows=share_rows)
    every = [packed[n] for n in range(len(packed))]
    made = {key: np.stack([row[key] for row in every]) for key in every[0]}
    if len(used) == 1:
        del made["modality"]
    # Text lies at the same place on every axis.
    made["positions"] = made["positions"][..., : model.axes]
    if model.axes == 1:
        made["positions"] = made["positions"][..., 0]
    return made


def prefix(made: Rows) -> np.ndarray:
    """Pieces before the answer of each row of one example, int32 [B].

    Given to the model as `prefix`, the question is read in both directions.
    """
    asked = (made["segments"] > 0) & ~made["answer"]
    return np.asarray(np.sum(asked, axis=1), np.int32)


def _check(task: str, what: str, given: tuple[str, ...]) -> None:
    if len(given) < 2 or len(set(given)) < len(given) or not all(map(str.strip, given)):
        raise UserError(
            f"task {task!r} takes two {what} or more, all different and none blank, not "
            f"{', '.join(map(repr, given)) or 'none'}"
        )
