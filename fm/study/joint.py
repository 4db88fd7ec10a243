"""Joint pretraining: corpora of several formats, one model, one folder.

A step takes rows of every format, in shares that stay the same. The folder is what
`fm.study.pretraining.restore` reads.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.data import tokenizer as bpe
from fm.data.batches import Batches, mixed_batches, piece_batches, text_batches
from fm.data.groups import Grouped, rows_of
from fm.data.layouts import Layout, layout_of
from fm.data.mixed import AXES, MixedRows, Segment, lay
from fm.data.pieces import text_pieces
from fm.data.splits import Dataset, Split
from fm.errors import UserError
from fm.model.config import CONTINUOUS, ModelConfig
from fm.model.transformer import init
from fm.study.pretraining import (
    Reader,
    bytes_per_token,
    corpus_digest,
    held_out,
    token_counts,
    trained_tokenizer,
)
from fm.training.joint import Joint
from fm.training.loop import train
from fm.training.objectives import Objective, rarity_weights
from fm.training.optimizer import OptimizerConfig
from fm.training.peak import gemm_rate
from fm.training.run import RunConfig, Trained
from fm.training.unit import BitsPerByte, BitsPerDimension, Each

# Of a group of captioned examples, after its format.
CAPTIONED = "_from_text"
_NEXT = Objective(next=1.0, masked=0.0)
_VALIDATIONS = 4


@dataclasses.dataclass(frozen=True)
class JointRecipe:
    """How one model of several formats is built and pretrained.

    Attributes:
      model: architecture; `vocab`, `continuous` and `axes` are set from the data.
      objectives: of each format, by name.
      optimizer: of pretraining.
      steps: of pretraining.
      batch_size: rows per step, of all formats together.
      vocab: tokens of the BPE vocabulary.
      length: tokens in a row of text.
    """

    model: ModelConfig
    objectives: tuple[tuple[str, Objective], ...]
    optimizer: OptimizerConfig
    steps: int
    batch_size: int
    vocab: int
    length: int


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A corpus and its part in the mixture.

    Attributes:
      name: to tell it by.
      modality: its format.
      corpus: the examples.
      weight: of its rows, in any unit.
      layout: how its examples become pieces; None for text.
      captions: class names, where rows of a class's name followed by the example are pretrained on
        too, as a group of its own of the same weight: labels enter, so such a model is no longer
        an unlabelled one's equal. () for none.
    """

    name: str
    modality: str
    corpus: Split
    weight: float = 1.0
    layout: Layout | None = None
    captions: tuple[str, ...] = ()


def source(data: Dataset, weight: float = 1.0, *, captioned: bool = False) -> Source:
    """The training examples of a data set, in its default layout.

    Raises:
      UserError: captions of what has no labels, or of text.
    """
    if captioned and (data.modality == "text" or data.train.labels is None):
        raise UserError(f"{data.name} cannot be captioned: takes labelled images, sounds or clips")
    layout = None
    if data.modality != "text":
        layout = layout_of(data.modality, data.info["shape"], data.info["rate"])
    captions = data.classes if captioned else ()
    return Source(data.name, data.modality, data.train, weight, layout, captions)


def reader(sources: Sequence[Source], recipe: JointRecipe, out: pathlib.Path) -> Reader:
    """The tokenizer, trained on all the text there is and saved with the run, and the layouts.

    Raises:
      UserError: two sources of one format in unlike layouts; captions without text.
    """
    layouts: dict[str, Layout] = {}
    for name in CONTINUOUS:
        found = {each.layout for each in sources if each.modality == name and each.layout}
        if len(found) > 1:
            raise UserError(f"sources of {name} must be of one shape and rate, not {len(found)}")
        if found:
            layouts[name] = found.pop()
    texts = [each.corpus for each in sources if each.modality == "text"]
    tokenizer = None
    if texts:
        tokenizer = trained_tokenizer(
            lambda: [text for corpus in texts for text in corpus.texts(range(len(corpus)))],
            recipe.vocab,
            out,
        )
    if tokenizer is None and any(each.captions for each in sources):
        raise UserError("captions are text: they take a source of text for the tokenizer")
    model = dataclasses.replace(
        recipe.model,
        vocab=tokenizer.vocab_size if tokenizer else 0,
        continuous=tuple((name, layout.size) for name, layout in layouts.items()),
        axes=AXES,
    )
    return Reader(model, tokenizer, layouts)


def pretrain(
    sources: Sequence[Source],
    recipe: JointRecipe,
    reads: Reader,
    *,
    seed: int,
    out: pathlib.Path,
    label: str,
    checkpoint_every: int | None = None,
) -> Trained:
    """Trains a fresh model on all sources, or goes on where an earlier call stopped.

    Two in a hundred examples of each (500 at most) are held out for the validation curves. Groups
    are named after their format.
    """
    groups = _groups(sources, recipe, reads, seed, label)
    rows = rows_of({name: group.weight for name, group in groups.items()}, recipe.batch_size)

    def batches(part: int) -> Grouped:
        return Grouped({name: group.batches(rows[name], part) for name, group in groups.items()})

    counts = sum(group.counts for group in groups.values())
    weights = None
    if "text" in groups:
        rarity = groups["text"].objective.rarity
        weights = rarity_weights(jnp.asarray(counts, jnp.float32), rarity)
    validation = batches(1)
    return train(
        init(jax.random.key(seed), reads.model),
        batches(0),
        reads.model,
        Joint(tuple((name, group.objective) for name, group in groups.items())),
        recipe.optimizer,
        RunConfig(
            steps=recipe.steps,
            seed=seed,
            checkpoint_every=checkpoint_every or max(100, recipe.steps // 4),
            log_every=max(1, recipe.steps // 50),
            validate_every=max(1, recipe.steps // 8),
        ),
        out=out,
        unit=Each({name: group.unit for name, group in groups.items()}),
        token_weights=weights,
        validation=[next(validation) for _ in range(_VALIDATIONS)],
        label=label,
        peak=gemm_rate(reads.model.dtype),
        identity={
            "corpora": {each.name: corpus_digest(each.corpus) for each in sources},
            "mixture": {each.name: each.weight for each in sources},
            "rows": rows,
            "layouts": {name: layout.plain() for name, layout in reads.layouts.items()},
        },
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Group:
    """The sources of one format: what `batches` make of them, training part first."""

    objective: Objective
    unit: BitsPerByte | BitsPerDimension
    weights: list[float]
    parts: tuple[list[Any], list[Any]]
    seed: int
    layout: Layout | None = None
    length: int = 0
    counts: np.ndarray | int = 0

    @property
    def weight(self) -> float:
        return sum(self.weights)

    def batches(self, batch_size: int, part: int) -> Batches:
        """Of the training part (0) or of what is held out (1)."""
        found = self.parts[part]
        how = {"batch_size": batch_size, "seed": self.seed, "weights": self.weights}
        if isinstance(found[0], MixedRows):
            return mixed_batches(found, **how)
        if self.layout is not None:
            where = self.layout.positions()
            return piece_batches(found, where, stream=self.layout.modality, **how)
        return text_batches(found, length=self.length, share_rows=self.objective.bag == 0, **how)


def _groups(
    sources: Sequence[Source], recipe: JointRecipe, reads: Reader, seed: int, label: str
) -> dict[str, _Group]:
    """By format; captioned examples apart."""
    objectives = dict(recipe.objectives)
    groups: dict[str, _Group] = {}
    for name in ("text", *CONTINUOUS):
        of_name = [each for each in sources if each.modality == name]
        if not of_name:
            continue
        print(f"{label}: reading {name} …", file=sys.stderr, flush=True)
        split = [held_out(len(each.corpus), seed) for each in of_name]
        weights = [each.weight for each in of_name]
        if name == "text":
            groups[name] = _text(of_name, split, recipe, reads, seed)
            continue
        layout, unit = reads.layouts[name], BitsPerDimension()
        cut = [
            layout.cut(np.asarray(each.corpus.inputs(range(len(each.corpus))))) for each in of_name
        ]
        parts = tuple(
            [pieces[places[part]] for pieces, places in zip(cut, split, strict=True)]
            for part in (0, 1)
        )
        groups[name] = _Group(objectives[name], unit, weights, parts, seed, layout)
        captioned = [n for n, each in enumerate(of_name) if each.captions]
        if captioned:
            parts = tuple(
                [_captioned(of_name[n], cut[n], split[n][part], reads) for n in captioned]
                for part in (0, 1)
            )
            weights = [weights[n] for n in captioned]
            groups[f"{name}{CAPTIONED}"] = _Group(_NEXT, unit, weights, parts, seed)
    return groups


def _text(
    sources: list[Source],
    split: list[tuple[np.ndarray, np.ndarray]],
    recipe: JointRecipe,
    reads: Reader,
    seed: int,
) -> _Group:
    assert reads.tokenizer is not None
    objective = dict(recipe.objectives)["text"]
    texts = [
        [each.corpus.texts(places[part]) for each, places in zip(sources, split, strict=True)]
        for part in (0, 1)
    ]
    parts = tuple(
        [text_pieces(reads.tokenizer, each, recipe.length) for each in part] for part in texts
    )
    counts = token_counts([piece for each in parts[0] for piece in each], reads.model.vocab)
    unit = BitsPerByte(bytes_per_token([text for each in texts[0] for text in each], counts))
    weights = [each.weight for each in sources]
    return _Group(objective, unit, weights, parts, seed, length=recipe.length, counts=counts)


def _captioned(source: Source, pieces: np.ndarray, chosen: np.ndarray, reads: Reader) -> MixedRows:
    """Rows of a class's name, given, and the example, asked for."""
    assert source.layout is not None and reads.tokenizer is not None
    labels = np.asarray(source.corpus.labels)
    names = [caption(reads.tokenizer, name) for name in source.captions]
    places = source.layout.positions()
    examples = [
        lay(
            [
                Segment("tokens", names[labels[n]], answer=False),
                Segment(source.modality, pieces[n], places, start=True),
            ],
            reads.model.streams,
        )
        for n in chosen
    ]
    widths = [("tokens", 0), (source.modality, source.layout.size)]
    longest = max(map(len, names)) + len(places) + 1
    return MixedRows(examples, longest, widths, share_rows=False)


def caption(tokenizer: bpe.Tokenizer, name: str) -> np.ndarray:
    """Token ids of what a picture, sound or clip is led by, int32."""
    (ids,) = tokenizer.encode([name])
    return np.concatenate([[tokenizer.bos], ids]).astype(np.int32)
