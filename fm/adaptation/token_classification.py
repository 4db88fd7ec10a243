"""Named entities by a head: a tag for each word, read at the word's first piece.

Fine-tuning is `fm.adaptation.finetune` with a reading of each piece and labels [N, L]; a linear
probe is logistic regression on frozen features of those pieces. Either way the tags of a sentence
are the best well-formed ones (`fm.evaluation.ner.viterbi_decode`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from fm.adaptation.batching import BATCH_SIZE, TokenizedExamples, take
from fm.adaptation.features import FeatureConfig, extract_features, normalize_and_concat
from fm.adaptation.finetune import predict_logits
from fm.adaptation.linear_probe import LinearProbe, fit_probe
from fm.evaluation.ner import Span, entity_spans, viterbi_decode
from fm.model.config import ModelConfig

# Both directions: what a word is, later words tell as well.
PER_TOKEN = FeatureConfig(pooling="each")
# Rows whose features are held at once: those of every piece are many.
_MAX_ROWS_IN_MEMORY = 1024

Sentences = Sequence[Sequence[str]]


class TextEncoder(Protocol):
    """What word rows need of a tokenizer."""

    @property
    def bos(self) -> int | None:
        """What leads a text, if anything does."""
        ...

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """int32 [tokens] of each text, without special ids."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class WordExamples:
    """Sentences as rows, and where their words begin.

    Attributes:
      examples: `tokens`, `segments` (0 is padding) and `positions`, int32 [N, L]; BOS leads.
      first_token: int32 [N, W], the place of each word's first piece; -1 past the last word, and for
        words that did not fit.
      num_words: int [N], how many words each sentence has.
    """

    examples: TokenizedExamples
    first_token: np.ndarray
    num_words: np.ndarray

    def __len__(self) -> int:
        return len(self.num_words)

    def take(self, indices: np.ndarray) -> WordExamples:
        """The sentences at `indices`."""
        return WordExamples(
            take(self.examples, indices), self.first_token[indices], self.num_words[indices]
        )


def tokenize_words(tokenizer: TextEncoder, sentences: Sentences, length: int) -> WordExamples:
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
    return WordExamples(rows, first_NW, np.array([len(own) for own in sentences], int))


def token_labels(made: WordExamples, tags: Sentences, names: Sequence[str]) -> np.ndarray:
    """Labels for `finetune`, int32 [N, L]: a word's tag at its first piece, -1 elsewhere.

    Args:
      made: rows of the sentences.
      tags: of every word.
      names: of the tags, in the order of the classes.

    Raises:
      KeyError: a tag is not among the names.
    """
    number = {name: index for index, name in enumerate(names)}
    labels = np.full(made.examples["tokens"].shape, -1, np.int32)
    for n, own in enumerate(tags):
        for w, tag in enumerate(own):
            if made.first_token[n, w] >= 0:
                labels[n, made.first_token[n, w]] = number[tag]
    return labels


def predict_tags(
    tuned: dict,
    made: WordExamples,
    model: ModelConfig,
    names: Sequence[str],
    *,
    feature_config: FeatureConfig = PER_TOKEN,
    batch_size: int = BATCH_SIZE,
) -> list[list[str]]:
    """Well-formed tags of every sentence by a model that `finetune` tuned to `piece_labels`."""
    tags = []
    for part in _split_rows(made):
        found = predict_logits(
            tuned, part.examples, model, feature_config=feature_config, batch_size=batch_size
        )
        tags += _decode_words(
            part, [found[n, part.first_token[n]] for n in range(len(part))], names
        )
    return tags


def word_features(
    params: dict,
    made: WordExamples,
    model: ModelConfig,
    *,
    feature_config: FeatureConfig = PER_TOKEN,
    batch_size: int = BATCH_SIZE,
) -> list[np.ndarray]:
    """Frozen features of every sentence's words, float32 [words, depths read x D] each.

    A depth's features are scaled to unit length, as `frozen_features` does; of a word that did
    not fit they are zero.
    """
    found = []
    for part in _split_rows(made):
        every = extract_features(
            params, part.examples, model, feature_config=feature_config, batch_size=batch_size
        )
        for n, words in enumerate(part.num_words):
            first_W = part.first_token[n, :words]
            own = every[n][:, first_W].swapaxes(0, 1)
            own = (
                normalize_and_concat(own, feature_config)
                if words
                else np.zeros((0, every[n, :, 0].size), np.float32)
            )
            found.append(own * (first_W >= 0)[:, None])
    return found


@dataclasses.dataclass(frozen=True)
class TagProbe:
    """A linear probe of words; `names` are the tags it has seen."""

    probe: LinearProbe
    names: tuple[str, ...]

    def predict(self, sentences: Sequence[np.ndarray]) -> list[list[str]]:
        """Well-formed tags of sentences of `word_features`."""
        lengths = [len(own) for own in sentences]
        scores_WT = np.log(self.probe.predict_proba(np.concatenate(sentences)) + 1e-30)
        parts = np.split(scores_WT, np.cumsum(lengths)[:-1])
        return [viterbi_decode(part, self.names) for part in parts]


def fit_tag_probe(
    sentences: Sequence[np.ndarray], tags: Sentences, config: dict[str, Any]
) -> TagProbe:
    """A probe with the `l2` and `scale` of a configuration (`fm.adaptation.linear_probe`).

    Args:
      sentences: `word_features` of each.
      tags: of every word.
      config: see `fm.adaptation.linear_probe.probe_grid`.

    Raises:
      ValueError: all words have one tag.
    """
    wanted = [tag for own in tags for tag in own]
    names = sorted(set(wanted))
    number = {name: index for index, name in enumerate(names)}
    labels = np.array([number[tag] for tag in wanted])
    return TagProbe(fit_probe(np.concatenate(sentences), labels, config), tuple(names))


def _split_rows(made: WordExamples) -> list[WordExamples]:
    N = len(made)
    return [
        made.take(np.arange(at, min(at + _MAX_ROWS_IN_MEMORY, N)))
        for at in range(0, N, _MAX_ROWS_IN_MEMORY)
    ]


def _decode_words(
    made: WordExamples, scores: list[np.ndarray], names: Sequence[str]
) -> list[list[str]]:
    """Tags of sentences from scores [W, T]; O for words that did not fit."""
    tags = []
    for n, words in enumerate(made.num_words):
        fit_W = made.first_token[n, :words] >= 0
        found = iter(viterbi_decode(scores[n][:words][fit_W], names))
        tags.append([next(found) if fit else "O" for fit in fit_W])
    return tags


NO_ENTITIES = "none"
# Kind, and surface form as `surface` has it.
NamedEntity = tuple[str, str]


def normalize_surface(words: str | Iterable[str]) -> str:
    """A form that compares: words with one space between, lower case, no semicolon."""
    text = words if isinstance(words, str) else " ".join(words)
    return " ".join(text.replace(";", ",").casefold().split())


def format_entities(words: Sequence[str], tags: Sequence[str]) -> str:
    """The answer for a tagged sentence: its entities in order, the same one once."""
    said: dict[NamedEntity, str] = {}
    (found,) = entity_spans([tags])
    for kind, first, end in sorted(found, key=lambda span: span[1:]):
        own = " ".join(words[first:end]).replace(";", ",")
        said.setdefault((kind, normalize_surface(own)), f"{kind}: {own}")
    return "; ".join(said.values()) or NO_ENTITIES


def entity_set(words: Sequence[str], tags: Sequence[str]) -> set[NamedEntity]:
    """The entities of a tagged sentence by kind and surface form."""
    (found,) = entity_spans([tags])
    return {(kind, normalize_surface(words[first:end])) for kind, first, end in found}


def parse_entities(answer: str, kinds: Iterable[str]) -> set[NamedEntity]:
    """The entities an answer names; what is not of the form, or of no known kind, is none.

    Lenient: case, spaces, line ends for semicolons, and an entity named twice do not matter.

    Args:
      answer: any text.
      kinds: those that are known.
    """
    known = {normalize_surface(kind): kind for kind in kinds}
    found = set()
    for part in answer.replace("\n", ";").split(";"):
        kind, colon, form = part.partition(":")
        if colon and normalize_surface(kind) in known and normalize_surface(form):
            found.add((known[normalize_surface(kind)], normalize_surface(form)))
    return found


def locate_entities(words: Sequence[str], entities: Iterable[NamedEntity]) -> set[Span]:
    """Where entities stand in a sentence: every place of a surface form, longer forms first.

    No two places overlap; a form that does not occur has none.
    """
    plain = [normalize_surface(word) for word in words]
    free = [True] * len(words)
    found: set[Span] = set()
    for kind, form in sorted(entities, key=lambda each: (-len(each[1]), each)):
        wanted = form.split()
        for first in range(len(words) - len(wanted) + 1):
            here = slice(first, first + len(wanted))
            if plain[here] == wanted and all(free[here]):
                free[here] = [False] * len(wanted)
                found.add((kind, here.start, here.stop))
    return found


def entities_to_tags(words: Sequence[str], entities: Iterable[NamedEntity]) -> list[str]:
    """BIO tags of a sentence in which these entities are named; see `locate`."""
    made = ["O"] * len(words)
    for kind, first, end in locate_entities(words, entities):
        made[first:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - first - 1)]
    return made
