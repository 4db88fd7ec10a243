"""Streaming of generated text: token ids to text, cut at the first stop string."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fm.errors import UserError
from fm.model.generate import IncrementalGenerator

# What a decoder writes for bytes that are not a character (yet).
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def stream_text(
    generation: IncrementalGenerator,
    decode: Callable[[np.ndarray], str],
    *,
    stop_strings: Sequence[str] = (),
    tokens_per_chunk: int = 8,
) -> Iterator[list[str]]:
    """Runs a generator to its end; yields each row's new text, cut at the first stop string.

    Text that may become part of a stop string, or is an incomplete character, is held back until it
    is certain, so yielded text never changes.

    Args:
      generation: with no token generated yet.
      decode: maps the token ids of a row to text.
      stop_strings: a row ends where the first of them begins; they may span tokens.
      tokens_per_chunk: tokens between yields.

    Yields:
      New text per row; joined, the row's text without prompt and stop string.

    Raises:
      UserError: an empty stop string.
    """
    if "" in stop_strings:
        raise UserError("a stop string must hold at least one character")
    ids: list[list[int]] = [[] for _ in range(generation.batch_size)]
    emitted, ended = [""] * len(ids), [False] * len(ids)
    while not generation.finished:
        requested = min(tokens_per_chunk, generation.remaining)
        chunk = []
        for row, new in enumerate(generation.next_tokens(requested)):
            if ended[row]:
                chunk.append("")
                continue
            ids[row] += new.tolist()
            text = decode(np.asarray(ids[row], np.int32))
            stop = min((at for each in stop_strings if (at := text.find(each)) >= 0), default=None)
            ended[row] = stop is not None or len(new) < requested or generation.finished
            unsettled = 0 if ended[row] else num_unsettled_chars(text, stop_strings)
            settled = text[:stop] if ended[row] else text[: len(text) - unsettled]
            chunk.append(settled[len(emitted[row]) :])
            emitted[row] = settled
        generation.stop_rows([row for row, done in enumerate(ended) if done])
        yield chunk


def continuation_decoder(
    prompt: np.ndarray, decode: Callable[[np.ndarray], str]
) -> Callable[[np.ndarray], str]:
    """Returns a function that decodes the token ids generated after `prompt` to text.

    Tokenizers whose words begin with a space drop it at the start of a text, so a continuation
    cannot be decoded alone.
    """
    prompt_chars = len(decode(prompt))
    return lambda ids: decode(np.concatenate([prompt, ids]))[prompt_chars:]


def num_unsettled_chars(text: str, stop_strings: Sequence[str]) -> int:
    """Returns how many trailing characters may still change or become part of a stop string."""
    broken = len(text) - len(text.rstrip(_REPLACEMENT))
    prefixes = (
        size
        for each in stop_strings
        for size in range(1, min(len(each), len(text) + 1))
        if text.endswith(each[:size])
    )
    return max(broken, *prefixes, 0)
