"""Named entities by a head: a tag for each word, read at the word's first piece.

Fine-tuning is `fm.transfer.finetune` with a reading of each piece and labels [N, L]; a linear
probe is logistic regression on frozen features of those pieces. Either way the tags of a sentence
are the best well-formed ones (`fm.evaluation.entities.decode`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from fm.evaluation.entities import decode
from fm.evaluation.probe import Probe, fit_probe
from fm.model.config import ModelConfig
from fm.transfer.examples import Rows, take
from fm.transfer.features import Reading, features, side_by_side
from fm.transfer.finetune import scores
from fm.transfer.sweep import BATCH_SIZE

# Both directions: what a word is, later words tell as well.
EACH = Reading(pool="each")
# Rows whose features are held at once: those of every piece are many.
_AT_ONCE = 1024

Sentences = Sequence[Sequence[str]]


class Encoder(Protocol):
    """What word rows need of a tokenizer."""

    @property
    def bos(self) -> int | None:
        """What leads a text, if anything does."""
        ...

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 [tokens] of each text, without special ids."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class WordRows:
    """Sentences as rows, and where their words begin.

    Attributes:
      rows: `tokens`, `segments` (0 is padding) and `positions`, int32 [N, L]; BOS leads.
      first: int32 [N, W], the place of each word's first piece; -1 past the last word, and for
        words that did not fit.
      words: int [N], how many words each sentence has.
    """

    rows: Rows
    first: np.ndarray
    words: np.ndarray

    def __len__(self) -> int:
        return len(self.words)

    def take(self, indices: np.ndarray) -> WordRows:
        """The sentences at `indices`."""
        return WordRows(take(self.rows, indices), self.first[indices], self.words[indices])


def word_rows(tokenizer: Encoder, sentences: Sentences, length: int) -> WordRows:
    """Sentences one to a row, words with a space between, as in running text.

    Each word is encoded by itself with the space before it: a byte-level tokenizer never merges
    across one, so these are the tokens of the whole text.

    Args:
      tokenizer: of the model.
      sentences: the words of each.
      length: tokens a row may hold; words that do not fit are cut, and tagged O.

    Returns:
      Rows as short as the longest sentence allows, to a multiple of 16.
    """
    spaced = [" " * (place > 0) + word for own in sentences for place, word in enumerate(own)]
    ids = iter(tokenizer.encode(spaced))
    lead = [] if tokenizer.bos is None else [tokenizer.bos]
    N, W = len(sentences), max(map(len, sentences), default=0)
    tokens, first_NW = np.zeros((N, length), np.int32), np.full((N, W), -1, np.int32)
    ends_N = np.full(N, len(lead))
    for n, own in enumerate(sentences):
        tokens[n, : len(lead)] = lead
        at = len(lead)
        for w in range(len(own)):
            word = next(ids)
            # A word whose marks a tokenizer drops has no piece to read.
            if len(word) and at + len(word) <= length:
                tokens[n, at : at + len(word)] = word
                first_NW[n, w], ends_N[n] = at, at + len(word)
            at += len(word)
    L = min(-(-int(ends_N.max(initial=1)) // 16) * 16, length)
    rows = {
        "tokens": tokens[:, :L],
        "segments": (np.arange(L) < ends_N[:, None]).astype(np.int32),
        "positions": np.tile(np.arange(L, dtype=np.int32), (N, 1)),
    }
    return WordRows(rows, first_NW, np.array([len(own) for own in sentences], int))


def piece_labels(made: WordRows, tags: Sentences, names: Sequence[str]) -> np.ndarray:
    """Labels for `finetune`, int32 [N, L]: a word's tag at its first piece, -1 elsewhere.

    Args:
      made: rows of the sentences.
      tags: of every word.
      names: of the tags, in the order of the classes.

    Raises:
      KeyError: a tag is not among the names.
    """
    number = {name: index for index, name in enumerate(names)}
    labels = np.full(made.rows["tokens"].shape, -1, np.int32)
    for n, own in enumerate(tags):
        for w, tag in enumerate(own):
            if made.first[n, w] >= 0:
                labels[n, made.first[n, w]] = number[tag]
    return labels


def predict_tags(
    tuned: dict,
    made: WordRows,
    model: ModelConfig,
    names: Sequence[str],
    *,
    reading: Reading = EACH,
    batch_size: int = BATCH_SIZE,
) -> list[list[str]]:
    """Well-formed tags of every sentence by a model that `finetune` tuned to `piece_labels`."""
    tags = []
    for part in _parts(made):
        found = scores(tuned, part.rows, model, reading=reading, batch_size=batch_size)
        tags += _decoded(part, [found[n, part.first[n]] for n in range(len(part))], names)
    return tags


def word_features(
    params: dict,
    made: WordRows,
    model: ModelConfig,
    *,
    reading: Reading = EACH,
    batch_size: int = BATCH_SIZE,
) -> list[np.ndarray]:
    """Frozen features of every sentence's words, float32 [words, depths read x D] each.

    A depth's features are scaled to unit length, as `frozen_features` does; of a word that did
    not fit they are zero.
    """
    found = []
    for part in _parts(made):
        every = features(params, part.rows, model, reading=reading, batch_size=batch_size)
        for n, words in enumerate(part.words):
            first_W = part.first[n, :words]
            own = every[n][:, first_W].swapaxes(0, 1)
            own = (
                side_by_side(own, reading)
                if words
                else np.zeros((0, every[n, :, 0].size), np.float32)
            )
            found.append(own * (first_W >= 0)[:, None])
    return found


@dataclasses.dataclass(frozen=True)
class TagProbe:
    """A linear probe of words; `names` are the tags it has seen."""

    probe: Probe
    names: tuple[str, ...]

    def predict(self, sentences: Sequence[np.ndarray]) -> list[list[str]]:
        """Well-formed tags of sentences of `word_features`."""
        lengths = [len(own) for own in sentences]
        scores_WT = np.log(self.probe.predict_proba(np.concatenate(sentences)) + 1e-30)
        parts = np.split(scores_WT, np.cumsum(lengths)[:-1])
        return [decode(part, self.names) for part in parts]


def fit_tag_probe(
    sentences: Sequence[np.ndarray], tags: Sentences, config: dict[str, Any]
) -> TagProbe:
    """A probe with the `l2` and `scale` of a configuration (`fm.evaluation.probe`).

    Args:
      sentences: `word_features` of each.
      tags: of every word.
      config: see `fm.evaluation.probe.probe_grid`.

    Raises:
      ValueError: all words have one tag.
    """
    wanted = [tag for own in tags for tag in own]
    names = sorted(set(wanted))
    number = {name: index for index, name in enumerate(names)}
    labels = np.array([number[tag] for tag in wanted])
    return TagProbe(fit_probe(np.concatenate(sentences), labels, config), tuple(names))


def _parts(made: WordRows) -> list[WordRows]:
    N = len(made)
    return [made.take(np.arange(at, min(at + _AT_ONCE, N))) for at in range(0, N, _AT_ONCE)]


def _decoded(made: WordRows, scores: list[np.ndarray], names: Sequence[str]) -> list[list[str]]:
    """Tags of sentences from scores [W, T]; O for words that did not fit."""
    tags = []
    for n, words in enumerate(made.words):
        fit_W = made.first[n, :words] >= 0
        found = iter(decode(scores[n][:words][fit_W], names))
        tags.append([next(found) if fit else "O" for fit in fit_W])
    return tags
