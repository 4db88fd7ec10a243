"""What pretraining must know of a corpus, whatever its format."""

from __future__ import annotations

import hashlib

import numpy as np

from fm.data.splits import Split
from fm.data.tokenizer import SPECIALS

_HELD_OUT = 0.02


def held_out(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of so many examples those to train on, ascending, and those for validation."""
    order = np.random.default_rng(seed).permutation(count)
    held = max(1, min(500, round(_HELD_OUT * count)))
    return np.sort(order[held:]), order[:held]


def token_counts(pieces: list[np.ndarray], vocab: int) -> np.ndarray:
    """How often each token occurs, specials left out, int [V]."""
    counts = np.bincount(np.concatenate(pieces), minlength=vocab)
    counts[:SPECIALS] = 0
    return counts


def corpus_digest(corpus: Split) -> str:
    """SHA-256 over the ids of the examples, in order."""
    return hashlib.sha256("".join(corpus.ids).encode()).hexdigest()


def bytes_per_token(texts: list[str], counts_V: np.ndarray) -> float:
    """UTF-8 bytes of the texts over their tokens."""
    return sum(len(text.encode()) for text in texts) / max(int(counts_V.sum()), 1)
