"""How a model reads a corpus: tokenizer or patch layouts, validation split, token statistics."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fm.data import tokenizer as bpe
from fm.data.datasets import Split
from fm.data.media import PatchLayout, layout_of
from fm.data.tokenizer import NUM_SPECIALS
from fm.errors import UserError
from fm.files import atomic_path
from fm.model.config import ModelConfig
from fm.progress_lines import phase
from fm.study.config import Recipe

_VALIDATION_FRACTION, _MAX_VALIDATION = 0.02, 500


@dataclasses.dataclass(frozen=True, eq=False)
class Processor:
    """Converts raw examples to model inputs: tokenizer, patch layouts, and the ModelConfig to use.

    Attributes:
      model: architecture, with `vocab_size` and `patch_dims` set.
      tokenizer: of text, or None.
      layouts: how examples of each continuous modality become patches.
    """

    model: ModelConfig
    tokenizer: bpe.Tokenizer | None
    layouts: Mapping[str, PatchLayout] = dataclasses.field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """Returns as JSON what has to be equal wherever the model is used again."""
        layouts = {name: layout.to_dict() for name, layout in self.layouts.items()}
        if self.tokenizer is None:
            return {"layouts": layouts}
        return {"layouts": layouts, "tokenizer": self.tokenizer.digest()}


def build_processor(
    corpus: Split,
    modality: str,
    recipe: Recipe,
    out_dir: pathlib.Path,
    rate: float | None = None,
) -> Processor:
    """Returns the processor of a one-modality corpus; trains a tokenizer on text.

    Args:
      corpus: the pretraining split; a tokenizer is trained on it alone.
      modality: of the corpus.
      recipe: architecture, vocabulary and patch size.
      out_dir: where the tokenizer is saved, and read again.
      rate: sample or frame rate of sounds and clips.
    """
    if modality == "text":
        trained = _trained_tokenizers.get(_tokenizer_key(corpus, recipe))
        tokenizer = load_or_train_tokenizer(
            lambda: corpus.texts(range(len(corpus))),
            recipe.vocab_size,
            out_dir,
            trained=trained,
            kind=recipe.tokenizer,
        )
        return text_processor(recipe, tokenizer)
    shape = np.asarray(corpus.inputs([0])).shape[1:]
    layout = layout_of(modality, shape, rate, recipe.patch_size, raster=recipe.raster)
    fields = {
        "patch_dims": ((modality, layout.patch_dim),),
        "position_axes": layout.num_axes,
    }
    return Processor(dataclasses.replace(recipe.model, **fields), None, {modality: layout})


def text_processor(recipe: Recipe, tokenizer: bpe.Tokenizer) -> Processor:
    """Returns the processor of text with a tokenizer."""
    return Processor(dataclasses.replace(recipe.model, vocab_size=tokenizer.vocab_size), tokenizer)


def load_or_train_tokenizer(
    read_texts: Callable[[], list[str]],
    vocab_size: int,
    out_dir: pathlib.Path,
    *,
    trained: bpe.Tokenizer | None = None,
    kind: str = "bpe",
) -> bpe.Tokenizer:
    """Returns the tokenizer saved in `out_dir`, or saves one there: `trained`, or a new one.

    Args:
      read_texts: returns the texts, if one is trained.
      vocab_size: number of ids at most.
      out_dir: folder of tokenizer.json.
      trained: on the same texts, if there is one already.
      kind: one of `fm.data.tokenizer.TOKENIZERS`.
    """
    path = out_dir / "tokenizer.json"
    if path.exists():
        return bpe.load(path)
    tokenizer = trained or bpe.TOKENIZERS[kind](read_texts(), vocab_size)
    with atomic_path(path) as partial:
        tokenizer.save(partial)
    return tokenizer


# Of `train_tokenizer`, by corpus, size of the vocabulary and kind.
_trained_tokenizers: dict[tuple[str, int, str], bpe.Tokenizer] = {}


def train_tokenizer(corpus: Split, recipe: Recipe) -> bpe.Tokenizer:
    """Returns a tokenizer trained on a corpus, once in a process; `build_processor` takes it."""
    key = _tokenizer_key(corpus, recipe)
    if key not in _trained_tokenizers:
        train = bpe.TOKENIZERS[recipe.tokenizer]
        with phase(f"training a tokenizer on {len(corpus):,} texts"):
            _trained_tokenizers[key] = train(corpus.texts(range(len(corpus))), recipe.vocab_size)
    return _trained_tokenizers[key]


def _tokenizer_key(corpus: Split, recipe: Recipe) -> tuple[str, int, str]:
    return corpus_digest(corpus), recipe.vocab_size, recipe.tokenizer


def check_corpus_size(name: str, count: int) -> None:
    """Raises UserError if a corpus is too small for a train and a validation part."""
    if count < 2:
        raise UserError(
            f"{name} is too little to pretrain on: training examples (lines, paragraphs ...): "
            f"{count}; at least 2 are needed, one of them for validation"
        )


def train_validation_split(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (train, validation) index arrays; validation is 2%, at most 500."""
    order = np.random.default_rng(seed).permutation(count)
    num_validation = max(1, min(_MAX_VALIDATION, round(_VALIDATION_FRACTION * count)))
    return np.sort(order[num_validation:]), order[:num_validation]


def token_counts(chunks: list[np.ndarray], vocab_size: int) -> np.ndarray:
    """Returns how often each token id occurs, int [V]; special tokens count 0."""
    counts_V = np.bincount(np.concatenate(chunks), minlength=vocab_size)
    counts_V[:NUM_SPECIALS] = 0
    return counts_V


def bytes_per_token(texts: list[str], counts_V: np.ndarray) -> float:
    """Returns the mean UTF-8 bytes per token of the texts."""
    return sum(len(text.encode()) for text in texts) / max(int(counts_V.sum()), 1)


def corpus_digest(corpus: Split) -> str:
    """Returns the SHA-256 of a corpus's example ids (content hashes), in order."""
    return hashlib.sha256("".join(corpus.ids).encode()).hexdigest()
