"""Named-entity recognition: one tag per word, read at the word's first token, or entities as text.

Fine-tuning is `fm.adaptation.finetune` with pooling "each" and labels [N, L]; a linear probe is
logistic regression on frozen features of those tokens. The tags of a sentence are the best
well-formed ones (`fm.evaluation.ner.viterbi_decode`). As text, entities are written as
"person: Anna; location: New York", or "none".
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from fm.adaptation.batching import TokenizedExamples, fixed_batches, pad_rows, take
from fm.adaptation.features import FeatureConfig, extract_features, normalize_and_concat
from fm.adaptation.finetune import predict_logits
from fm.adaptation.linear_probe import LinearProbe, fit_probe, middle_of_best_first, widen
from fm.adaptation.prompting import TextEncoder
from fm.adaptation.task_model import Fold, TaskModel
from fm.evaluation.ner import Span, count_entities, entity_spans, viterbi_decode
from fm.model.config import ModelConfig

# Bidirectional: later words tell what a word is as well.
PER_TOKEN = FeatureConfig(pooling="each")
NO_ENTITIES = "none"
# Features of every token are many: only so many rows are held at once.
_MAX_ROWS_IN_MEMORY = 1024

Sentences = Sequence[Sequence[str]]
# Entity type, and surface form as `normalize_surface` gives it.
NamedEntity = tuple[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class WordExamples:
    """Tokenized sentences with the index of each word's first token.

    Attributes:
      examples: `tokens`, `segments` (0 is padding) and `positions`, int32 [N, L]; BOS leads.
      first_token: int32 [N, W], the place of each word's first token; -1 past the last word, and
        for words that did not fit.
      num_words: int [N], words in each sentence.
    """

    examples: TokenizedExamples
    first_token: np.ndarray
    num_words: np.ndarray

    def __len__(self) -> int:
        return len(self.num_words)

    def take(self, idx: np.ndarray) -> WordExamples:
        """Returns the sentences at indices `idx`."""
        return WordExamples(take(self.examples, idx), self.first_token[idx], self.num_words[idx])


def tokenize_words(tokenizer: TextEncoder, sentences: Sentences, length: int) -> WordExamples:
    """Tokenizes sentences given as words, one row each, and locates each word's first token.

    Each word is encoded by itself with the space before it: a byte-level tokenizer never merges
    across one, so these are the tokens of the whole text.

    Args:
      tokenizer: the model's.
      sentences: the words of each.
      length: most tokens of a row; words that do not fit are dropped and tagged O.

    Returns:
      Rows as short as the longest sentence allows, a multiple of 16.
    """
    spaced = [" " * (n > 0) + word for words in sentences for n, word in enumerate(words)]
    ids = iter(tokenizer.encode(spaced))
    bos = [] if tokenizer.bos is None else [tokenizer.bos]
    N, W = len(sentences), max(map(len, sentences), default=0)
    tokens_NL, first_NW = np.zeros((N, length), np.int32), np.full((N, W), -1, np.int32)
    ends_N = np.full(N, len(bos))
    for n, words in enumerate(sentences):
        tokens_NL[n, : len(bos)] = bos
        at = len(bos)
        for w in range(len(words)):
            word = next(ids)
            # A tokenizer may drop a whole word: it has no token to read.
            if len(word) and at + len(word) <= length:
                tokens_NL[n, at : at + len(word)] = word
                first_NW[n, w], ends_N[n] = at, at + len(word)
            at += len(word)
    L = min(-(-int(ends_N.max(initial=1)) // 16) * 16, length)
    examples = {
        "tokens": tokens_NL[:, :L],
        "segments": (np.arange(L) < ends_N[:, None]).astype(np.int32),
        "positions": np.tile(np.arange(L, dtype=np.int32), (N, 1)),
    }
    return WordExamples(examples, first_NW, np.array([len(words) for words in sentences], int))


def token_labels(words: WordExamples, tags: Sentences, tag_names: Sequence[str]) -> np.ndarray:
    """Returns token labels for `finetune`, int32 [N, L]: tags at first tokens, -1 elsewhere.

    `tag_names` are in the order of the classes.
    """
    index = {name: number for number, name in enumerate(tag_names)}
    labels = np.full(words.examples["tokens"].shape, -1, np.int32)
    for n, sentence in enumerate(tags):
        for w, tag in enumerate(sentence):
            if words.first_token[n, w] >= 0:
                labels[n, words.first_token[n, w]] = index[tag]
    return labels


def predict_tags(
    finetuned: dict,
    words: WordExamples,
    model_config: ModelConfig,
    tag_names: Sequence[str],
    *,
    feature_config: FeatureConfig = PER_TOKEN,
) -> list[list[str]]:
    """Returns the predicted tags of every sentence, decoded to a valid BIO sequence."""
    tags = []
    for part in _split_rows(words):
        scores = predict_logits(
            finetuned, part.examples, model_config, feature_config=feature_config
        )
        for n, num_words in enumerate(part.num_words):
            # Words that did not fit are tagged O.
            first_W = part.first_token[n, :num_words]
            predicted = iter(viterbi_decode(scores[n, first_W[first_W >= 0]], tag_names))
            tags.append([next(predicted) if first >= 0 else "O" for first in first_W])
    return tags


def word_features(
    params: dict,
    words: WordExamples,
    model_config: ModelConfig,
    *,
    feature_config: FeatureConfig = PER_TOKEN,
) -> list[np.ndarray]:
    """Returns frozen features of each sentence's words, float32 [words, layers read * D].

    Each layer's are scaled to unit length, as by `probe_features`; zero for words that did not fit.
    """
    features = []
    for part in _split_rows(words):
        states = extract_features(
            params, part.examples, model_config, feature_config=feature_config
        )
        for n, num_words in enumerate(part.num_words):
            first_W = part.first_token[n, :num_words]
            if num_words:
                own = normalize_and_concat(states[n][:, first_W].swapaxes(0, 1), feature_config)
            else:
                own = np.zeros((0, states[n, :, 0].size), np.float32)
            features.append(own * (first_W >= 0)[:, None])
    return features


def _split_rows(words: WordExamples) -> list[WordExamples]:
    N, size = len(words), _MAX_ROWS_IN_MEMORY
    return [words.take(np.arange(at, min(at + size, N))) for at in range(0, N, size)]


@dataclasses.dataclass(frozen=True)
class TagProbe:
    """A fitted linear probe from a model's word features to the tags seen in training."""

    probe: LinearProbe
    tag_names: tuple[str, ...]

    @property
    def params(self) -> dict[str, np.ndarray]:
        """Returns the classifier's weights."""
        return self.probe.params

    @property
    def steps(self) -> int:
        """Returns the number of solver iterations."""
        return self.probe.steps

    def dump(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Returns the arrays and JSON that `restore` makes an equal probe of."""
        arrays, state = self.probe.dump()
        return arrays, state | {"tag_names": list(self.tag_names)}

    @classmethod
    def restore(cls, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> TagProbe:
        """Returns the probe that `dump` was called on."""
        return cls(LinearProbe.restore(arrays, state), tuple(state["tag_names"]))

    def predict(self, sentences: Sequence[np.ndarray]) -> list[list[str]]:
        """Returns valid BIO tags of sentences, given the features [words, E] of each."""
        lengths = [len(features) for features in sentences]
        scores_WT = np.log(self.probe.predict_proba(np.concatenate(sentences)) + 1e-30)
        parts = np.split(scores_WT, np.cumsum(lengths)[:-1])
        return [viterbi_decode(part, self.tag_names) for part in parts]


def fit_tag_probe(
    sentences: Sequence[np.ndarray], tags: Sentences, hparams: dict[str, Any]
) -> TagProbe:
    """Fits a linear probe from word features [words, E] to BIO tags.

    Raises:
      ValueError: all words have the same tag.
    """
    flat = [tag for sentence in tags for tag in sentence]
    names = sorted(set(flat))
    index = {name: number for number, name in enumerate(names)}
    labels = np.array([index[tag] for tag in flat])
    return TagProbe(fit_probe(np.concatenate(sentences), labels, hparams), tuple(names))


@dataclasses.dataclass(eq=False, kw_only=True)
class TaggingTaskModel(TaskModel):
    """A transformer and the tagged sentences of an NER task, for fine-tuning and linear probing.

    Predictions are int [N, 3]: entities right, predicted and present, see
    `fm.evaluation.ner.count_entities`; of new sentences, whose tags are not known, they are lists
    of tags. `num_classes` is the number of tags.

    Attributes:
      sentences: labeled sentences, then test items; their examples are `examples`.
      tags: tags of every word of these; None for new sentences.
      tag_names: names of the tags, in the order of the classes.
    """

    sentences: WordExamples
    tags: list[list[str]] | None
    tag_names: tuple[str, ...]

    @property
    def predicts_classes(self) -> bool:
        """Returns False: its classes are those of words."""
        return False

    def targets(self, train_idx: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Returns token labels of the sentences, int [n, L]."""
        return token_labels(
            self.sentences.take(train_idx), self._tags_of(train_idx), self.tag_names
        )

    def predict_finetuned(self, params: dict, idx: np.ndarray) -> np.ndarray:
        """Returns a fine-tuned model's entity counts of the sentences `idx`."""
        predicted = predict_tags(
            params,
            self.sentences.take(idx),
            self.model_config,
            self.tag_names,
            feature_config=self.recipe.finetune.feature_config,
        )
        return self._entity_counts(predicted, idx)

    def features(self, seed: int, idx: np.ndarray) -> list[np.ndarray]:
        """Returns frozen features of the words of the sentences `idx`, [words, E] each."""
        key = self.start_key(seed)
        with self._locks[key]:
            if key not in self._features:
                self._features[key] = word_features(
                    self.initial_params(seed),
                    self.sentences,
                    self.model_config,
                    feature_config=self.recipe.finetune.feature_config,
                )
        return [self._features[key][n] for n in idx]

    def fit_probe(
        self, seed: int, train_idx: np.ndarray, labels: np.ndarray, hparams: dict[str, Any]
    ) -> TagProbe:
        """Fits a linear probe to the words of the sentences `train_idx`."""
        tags = self._tags_of(train_idx)
        return fit_tag_probe(self.features(seed, train_idx), tags, hparams)

    def restore_probe(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> TagProbe:
        """Returns the probe of `fit_probe` of whose `dump` these are."""
        return TagProbe.restore(arrays, state)

    def predict_probe(self, probe: TagProbe, seed: int, idx: np.ndarray) -> np.ndarray:
        """Returns a probe's entity counts of the sentences `idx`."""
        return self._entity_counts(probe.predict(self.features(seed, idx)), idx)

    def predict_finetuned_proba(self, params: dict, idx: np.ndarray) -> None:
        """Returns None: a sentence has no probability of a class."""

    def predict_probe_proba(self, probe: TagProbe, seed: int, idx: np.ndarray) -> None:
        """Returns None: a sentence has no probability of a class."""

    def search_probe(
        self, seed: int, train_idx: np.ndarray, labels: np.ndarray, folds: Sequence[Fold]
    ) -> list[tuple[dict[str, Any], float]]:
        """Returns (hyper-parameters, entity F1) of the linear probes tried, of unweighted tags."""

        def fit_predict(fit_idx, labels, held_out_idx, hparams):
            probe = self.fit_probe(seed, fit_idx, labels, hparams)
            return self.predict_probe(probe, seed, held_out_idx)

        def evaluate(penalties):
            return {
                l2: self.cross_validate(
                    functools.partial(fit_predict, hparams=fixed | {"l2": l2}),
                    train_idx,
                    labels,
                    folds,
                )
                for l2 in penalties
            }

        fixed = {"scale": "standardise", "class_weight": None}
        found = widen(evaluate, self.recipe.l2_penalties)
        return [(fixed | {"l2": l2}, found[l2]) for l2 in middle_of_best_first(found)]

    def tune(
        self, outputs: np.ndarray, idx: np.ndarray, labels: np.ndarray
    ) -> tuple[float, dict[str, Any]]:
        """Returns the validation metric: F1 of entity counts."""
        found, predicted, gold = outputs.sum(axis=0)
        total = predicted + gold
        return float(2 * found / total) if total else 0.0, {}

    def on_new_examples(
        self, inputs: Any, tokenizer: Any, row_length: int
    ) -> Iterator[tuple[np.ndarray, TaskModel]]:
        """Yields models with new sentences, given as lists of words; see `TaskModel`."""
        assert tokenizer is not None, "words are read by a tokenizer"
        words = tokenize_words(tokenizer, inputs, self.recipe.seq_len)
        examples = pad_rows(words.examples, self.recipe.seq_len)
        for places, filled, length in fixed_batches(examples["segments"], row_length):
            own = {key: value[filled, :length] for key, value in examples.items()}
            sentences = WordExamples(own, words.first_token[filled], words.num_words[filled])
            yield places, self._with_examples(own, sentences=sentences, tags=None)

    def _tags_of(self, idx: np.ndarray) -> list[list[str]]:
        assert self.tags is not None, "new sentences have no tags to learn"
        return [self.tags[n] for n in idx]

    def _entity_counts(self, predicted: Sentences, idx: np.ndarray) -> np.ndarray:
        """Returns counts of the entities of sentences `idx`; their tags if none are known."""
        if self.tags is None:
            tags = np.empty(len(predicted), object)
            tags[:] = [list(each) for each in predicted]
            return tags
        counted = count_entities(self._tags_of(idx), predicted)
        return np.stack([counted.correct, counted.predicted, counted.gold], axis=-1)


def normalize_surface(words: str | Iterable[str]) -> str:
    """Returns an entity's words as comparable text: single spaces, lower case, no semicolons."""
    text = words if isinstance(words, str) else " ".join(words)
    return " ".join(text.replace(";", ",").casefold().split())


def format_entities(words: Sequence[str], tags: Sequence[str]) -> str:
    """Returns the distinct entities of a tagged sentence as one line of text, in order."""
    formatted: dict[NamedEntity, str] = {}
    (found,) = entity_spans([tags])
    for entity_type, first, end in sorted(found, key=lambda span: span[1:]):
        form = " ".join(words[first:end]).replace(";", ",")
        formatted.setdefault((entity_type, normalize_surface(form)), f"{entity_type}: {form}")
    return "; ".join(formatted.values()) or NO_ENTITIES


def parse_entities(answer: str, entity_types: Iterable[str]) -> set[NamedEntity]:
    """Parses "type: text; ..." to (type, text) pairs; skips malformed parts and unknown types.

    Case, spaces, line ends for semicolons and repeated entities do not matter.
    """
    known = {normalize_surface(name): name for name in entity_types}
    found = set()
    for part in answer.replace("\n", ";").split(";"):
        name, colon, form = part.partition(":")
        if colon and normalize_surface(name) in known and normalize_surface(form):
            found.add((known[normalize_surface(name)], normalize_surface(form)))
    return found


def locate_entities(words: Sequence[str], entities: Iterable[NamedEntity]) -> set[Span]:
    """Returns entities' word spans (type, start, end) in a sentence; the longest match first.

    No two spans overlap; a form that does not occur has none.
    """
    normalized = [normalize_surface(word) for word in words]
    free = [True] * len(words)
    found: set[Span] = set()
    for entity_type, form in sorted(entities, key=lambda entity: (-len(entity[1]), entity)):
        wanted = form.split()
        for first in range(len(words) - len(wanted) + 1):
            here = slice(first, first + len(wanted))
            if normalized[here] == wanted and all(free[here]):
                free[here] = [False] * len(wanted)
                found.add((entity_type, here.start, here.stop))
    return found


def entities_to_tags(words: Sequence[str], entities: Iterable[NamedEntity]) -> list[str]:
    """Returns BIO tags of a sentence, marking every occurrence of the given entities."""
    tags = ["O"] * len(words)
    for entity_type, first, end in locate_entities(words, entities):
        tags[first:end] = [f"B-{entity_type}", *[f"I-{entity_type}"] * (end - first - 1)]
    return tags
