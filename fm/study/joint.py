"""Joint pretraining: corpora of several formats, one model, one folder.

A step takes rows of every format, in shares that stay the same. The folder is what
`fm.study.pretraining.restore` reads.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fm.data.groups import Grouped, rows_of
from fm.data.layouts import Layout
from fm.data.mixed import AXES
from fm.errors import UserError
from fm.model.config import CONTINUOUS, ModelConfig
from fm.study.corpora import corpus_digest
from fm.study.mixture import Source, groups_of
from fm.study.reading import Reader, trained_tokenizer
from fm.training import sharding
from fm.training.joint import Joint
from fm.training.loop import train
from fm.training.objectives import Objective, rarity_weights
from fm.training.optimizer import OptimizerConfig
from fm.training.peak import gemm_rate
from fm.training.run import RunConfig, Trained
from fm.training.unit import Each

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


def layouts_of(sources: Sequence[Source]) -> dict[str, Layout]:
    """How examples of each continuous format are cut, by its name.

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
    if any(each.captions for each in sources) and all(each.layout for each in sources):
        raise UserError("captions are text: they take a source of text for the tokenizer")
    return layouts


def reader(sources: Sequence[Source], recipe: JointRecipe, out: pathlib.Path) -> Reader:
    """The tokenizer, trained on all the text there is and saved with the run, and the layouts.

    Raises:
      UserError: see `layouts_of`.
    """
    layouts = layouts_of(sources)
    texts = [each.corpus for each in sources if each.modality == "text"]
    tokenizer = None
    if texts:
        tokenizer = trained_tokenizer(
            lambda: [text for corpus in texts for text in corpus.texts(range(len(corpus)))],
            recipe.vocab,
            out,
        )
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
    validate_every: int | None = None,
    early_stop: int | None = None,
) -> Trained:
    """Trains a fresh model on all sources, or goes on where an earlier call stopped.

    Two in a hundred examples of each (500 at most) are held out for the validation curves. Groups
    are named after their format.
    """
    print(f"{label}: reading {len(sources)} sources …", file=sys.stderr, flush=True)
    groups = groups_of(sources, dict(recipe.objectives), recipe.length, reads, seed)
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
        functools.partial(sharding.fresh, jax.random.key(seed), reads.model),
        batches(0),
        reads.model,
        Joint(tuple((name, group.objective) for name, group in groups.items())),
        recipe.optimizer,
        RunConfig(
            steps=recipe.steps,
            seed=seed,
            checkpoint_every=checkpoint_every or max(100, recipe.steps // 4),
            log_every=max(1, recipe.steps // 50),
            validate_every=validate_every or max(1, recipe.steps // 8),
            early_stop=early_stop,
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
            **reads.facts(),
        },
    )
