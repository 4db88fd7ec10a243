"""The size of one pass over a pretraining corpus: rows, and tokens or patches without padding."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from fm.data.datasets import Split
from fm.data.media import layout_of
from fm.data.packing import PackedRowSource
from fm.data.tokenizer import tokenize_chunks
from fm.progress_lines import phase
from fm.study.config import Recipe
from fm.study.pretraining import shares_rows
from fm.study.processing import train_tokenizer, train_validation_split


@dataclasses.dataclass(frozen=True)
class EpochSize:
    """One pass over the training examples of a corpus.

    Attributes:
      rows: of batches.
      tokens: tokens or patches in them, without padding.
      noun: "tokens" or "patches".
    """

    rows: int
    tokens: int
    noun: str = "tokens"


def epoch_size(
    corpus: Split,
    modality: str,
    recipe: Recipe,
    *,
    seed: int = 0,
    rate: float | None = None,
    limit: int | None = None,
) -> EpochSize:
    """Returns the size of a pass over the corpus, without the examples held out for validation.

    Of text the tokenizer is trained, which pretraining in the same process then need not do.

    Args:
      corpus: all examples.
      modality: of the corpus.
      recipe: vocabulary, length of a row, and whether texts share rows.
      seed: of the run, which draws the examples held out.
      rate: sample or frame rate of sounds and clips.
      limit: most examples of the corpus that are trained on; the size is scaled down to it.
    """
    train_idx, _ = train_validation_split(len(corpus), seed)
    share = min(1.0, (limit or len(corpus)) / len(corpus))
    if modality != "text":
        shape = np.asarray(corpus.inputs([0])).shape[1:]
        patches = len(layout_of(modality, shape, rate, recipe.patch_size).positions())
        rows = math.ceil(share * len(train_idx))
        return EpochSize(rows, rows * patches, "patches")
    tokenizer = train_tokenizer(corpus, recipe)
    with phase(f"counting the tokens of {len(train_idx):,} texts"):
        chunks = tokenize_chunks(tokenizer, corpus.texts(train_idx), recipe.seq_len)
        share_rows = shares_rows(recipe.objective)
        rows = len(PackedRowSource(chunks, recipe.seq_len, share_rows=share_rows))
    return EpochSize(math.ceil(share * rows), math.ceil(share * sum(map(len, chunks))))
