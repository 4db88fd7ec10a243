"""What pretraining must know of a corpus, whatever its format."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fm.data import tokenizer as bpe
from fm.data.datasets import Split
from fm.data.layouts import NUM_AXES, Layout, layout_of
from fm.data.tokenizer import NUM_SPECIALS
from fm.files import atomic_path
from fm.model.config import ModelConfig
from fm.study.config import Recipe

_HELD_OUT = 0.02


def train_validation_split(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of so many examples those to train on, ascending, and those for validation."""
    order = np.random.default_rng(seed).permutation(count)
    held = max(1, min(500, round(_HELD_OUT * count)))
    return np.sort(order[held:]), order[:held]


def token_counts(pieces: list[np.ndarray], vocab: int) -> np.ndarray:
    """How often each token occurs, specials left out, int [V]."""
    counts = np.bincount(np.concatenate(pieces), minlength=vocab)
    counts[:NUM_SPECIALS] = 0
    return counts


def corpus_digest(corpus: Split) -> str:
    """SHA-256 over the ids of the examples, in order."""
    return hashlib.sha256("".join(corpus.ids).encode()).hexdigest()


def bytes_per_token(texts: list[str], counts_V: np.ndarray) -> float:
    """UTF-8 bytes of the texts over their tokens."""
    return sum(len(text.encode()) for text in texts) / max(int(counts_V.sum()), 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Processor:
    """What turns raw inputs into what a model reads, and the model's shape that follows.

    Attributes:
      model: architecture, with `vocab` and `continuous` set.
      tokenizer: of text, None where there is none.
      layouts: of the continuous streams, by name.
    """

    model: ModelConfig
    tokenizer: bpe.Tokenizer | None
    layouts: Mapping[str, Layout] = dataclasses.field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What a model that reads so must be read with again, as JSON."""
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
    """The tokenizer, trained on the pretraining split alone and saved with the run; or the layout.

    `rate` is that of sounds and clips.
    """
    if modality != "text":
        shape = np.asarray(corpus.inputs([0])).shape[1:]
        if modality == "image":
            layout = Layout(modality, shape, (recipe.patch_size,))
        else:
            layout = layout_of(modality, shape, rate)
        streams = {"patch_dims": ((modality, layout.patch_dim),), "position_axes": NUM_AXES[modality]}
        return Processor(dataclasses.replace(recipe.model, **streams), None, {modality: layout})
    tokenizer = load_or_train_tokenizer(
        lambda: corpus.texts(range(len(corpus))), recipe.vocab_size, out_dir
    )
    return Processor(dataclasses.replace(recipe.model, vocab_size=tokenizer.vocab_size), tokenizer)


def load_or_train_tokenizer(
    read_texts: Callable[[], list[str]], vocab_size: int, out_dir: pathlib.Path
) -> bpe.Tokenizer:
    """The tokenizer saved with a run; trained on what `read_texts` gives where there is none yet."""
    path = out_dir / "tokenizer.json"
    if path.exists():
        return bpe.load(path)
    tokenizer = bpe.train(read_texts(), vocab_size)
    with atomic_path(path) as partial:
        tokenizer.save(partial)
    return tokenizer
