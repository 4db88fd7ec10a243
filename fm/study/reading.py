"""How a model reads: the tokenizer or the layout that its pretraining split asks for."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fm.data import tokenizer as bpe
from fm.data.layouts import AXES, Layout, layout_of
from fm.data.splits import Split
from fm.files import replacing
from fm.model.config import ModelConfig
from fm.study.config import Recipe


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """What turns raw inputs into what a model reads, and the model's shape that follows.

    Attributes:
      model: architecture, with `vocab` and `continuous` set.
      tokenizer: of text, None where there is none.
      layouts: of the continuous streams, by name.
    """

    model: ModelConfig
    tokenizer: bpe.Tokenizer | None
    layouts: Mapping[str, Layout] = dataclasses.field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """What a model that reads so must be read with again, as JSON."""
        layouts = {name: layout.plain() for name, layout in self.layouts.items()}
        if self.tokenizer is None:
            return {"layouts": layouts}
        return {"layouts": layouts, "tokenizer": self.tokenizer.digest()}


def reader(
    corpus: Split,
    modality: str,
    recipe: Recipe,
    out: pathlib.Path,
    rate: float | None = None,
) -> Reader:
    """The tokenizer, trained on the pretraining split alone and saved with the run; or the layout.

    `rate` is that of sounds and clips.
    """
    if modality != "text":
        shape = np.asarray(corpus.inputs([0])).shape[1:]
        if modality == "image":
            layout = Layout(modality, shape, (recipe.patch,))
        else:
            layout = layout_of(modality, shape, rate)
        streams = {"continuous": ((modality, layout.size),), "axes": AXES[modality]}
        return Reader(dataclasses.replace(recipe.model, **streams), None, {modality: layout})
    tokenizer = trained_tokenizer(lambda: corpus.texts(range(len(corpus))), recipe.vocab, out)
    return Reader(dataclasses.replace(recipe.model, vocab=tokenizer.vocab_size), tokenizer)


def trained_tokenizer(
    read: Callable[[], list[str]], vocab: int, out: pathlib.Path
) -> bpe.Tokenizer:
    """The tokenizer saved with a run; trained on what `read` gives where there is none yet."""
    path = out / "tokenizer.json"
    if path.exists():
        return bpe.load(path)
    tokenizer = bpe.train(read(), vocab)
    with replacing(path) as partial:
        tokenizer.save(partial)
    return tokenizer
