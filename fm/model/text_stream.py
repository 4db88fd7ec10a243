"""Text as it is made: tokens to characters, and an end where a stop string begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fm.errors import UserError
from fm.model.generate import Generation

# What a decoder writes for bytes that are no character, or not yet.
_BROKEN = "\N{REPLACEMENT CHARACTER}"


def stream_text(
    generation: Generation,
    decode: Callable[[np.ndarray], str],
    *,
    stop_strings: Sequence[str] = (),
    tokens_per_chunk: int = 8,
) -> Iterator[list[str]]:
    """Goes on with a generation to its end.

    What may yet become part of a stop string, or is half a character, is held back until it is
    known, so a piece once given stays as it is.

    Args:
      generation: just made.
      decode: text of the tokens of a row.
      stop_strings: strings that end a row where the first of them begins; they may straddle tokens.
      tokens_per_chunk: tokens from piece to piece.

    Yields:
      What is new in each row; joined, the text without prompt and stop string.

    Raises:
      UserError: an empty stop string.
    """
    if "" in stop_strings:
        raise UserError("a stop string must hold at least one character")
    ids: list[list[int]] = [[] for _ in range(generation.batch_size)]
    shown, over = [""] * len(ids), [False] * len(ids)
    while not generation.finished:
        asked = min(tokens_per_chunk, generation.remaining)
        drawn = generation.next_tokens(asked)
        pieces = []
        for row, new in enumerate(drawn):
            if over[row]:
                pieces.append("")
                continue
            ids[row] += new.tolist()
            text = decode(np.asarray(ids[row], np.int32))
            end = min((at for each in stop_strings if (at := text.find(each)) >= 0), default=None)
            over[row] = end is not None or len(new) < asked or generation.remaining == 0
            sure = (
                text[:end]
                if over[row]
                else text[: len(text) - num_unsettled_chars(text, stop_strings)]
            )
            pieces.append(sure[len(shown[row]) :])
            shown[row] = sure
        generation.stop_rows([row for row, done in enumerate(over) if done])
        yield pieces


def continuation_decoder(
    prompt: np.ndarray, decode: Callable[[np.ndarray], str]
) -> Callable[[np.ndarray], str]:
    """A decoder of what follows a prompt of token ids.

    A tokenizer whose words bring the space before them leaves it out where a text begins, so what
    follows cannot be decoded alone.
    """
    begun = len(decode(prompt))
    return lambda ids: decode(np.concatenate([prompt, ids]))[begun:]


def num_unsettled_chars(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of a text may yet change or belong to a stop string."""
    broken = len(text) - len(text.rstrip(_BROKEN))
    starts = (
        size
        for each in stop
        for size in range(1, min(len(each), len(text) + 1))
        if text.endswith(each[:size])
    )
    return max(broken, *starts, 0)
