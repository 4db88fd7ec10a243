"""A mixture of corpora: each format's become one group of a joint step's batch."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.data import tokenizer as bpe
from fm.data.batches import (
    Batches,
    GroupedBatches,
    batch_size_per_group,
    multimodal_batches,
    patch_batches,
    text_batches,
)
from fm.data.datasets import Dataset, Split
from fm.data.layouts import Layout, layout_of
from fm.data.packing import NUM_POSITION_AXES, PackedMultimodalRows, Segment, build_row
from fm.data.patches import tokenize_chunks
from fm.errors import UserError
from fm.model.config import CONTINUOUS_MODALITIES, ModelConfig
from fm.study.processing import (
    Processor,
    bytes_per_token,
    corpus_digest,
    load_or_train_tokenizer,
    token_counts,
    train_validation_split,
)
from fm.training import train_state
from fm.training.config import TrainConfig, TrainResult
from fm.training.metric_units import BitsPerByte, BitsPerDimension, PerGroupUnits
from fm.training.multitask import MultitaskObjective
from fm.training.objectives import Objective, inverse_frequency_weights
from fm.training.optimizer import OptimizerConfig
from fm.training.runtime import gemm_flops_per_second
from fm.training.train_loop import train

# Of a group of captioned examples, after its format.
CAPTIONED_SUFFIX = "_from_text"
_NEXT = Objective(causal_lm=1.0, masked_lm=0.0)


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


def build_source(data: Dataset, weight: float = 1.0, *, captioned: bool = False) -> Source:
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


@dataclasses.dataclass(frozen=True, eq=False)
class ModalityGroup:
    """The sources of one format.

    Attributes:
      parts: what `batches` read of each source, to train on and held out.
    """

    objective: Objective
    metric_unit: BitsPerByte | BitsPerDimension
    weights: list[float]
    parts: tuple[list[Any], ...]
    seed: int
    layout: Layout | None = None
    length: int = 0
    counts: np.ndarray | int = 0

    @property
    def weight(self) -> float:
        """Of its rows."""
        return sum(self.weights)

    def batches(self, batch_size: int, part: int) -> Batches:
        """Of the training part (0) or of what is held out (1)."""
        found = self.parts[part]
        how: dict[str, Any] = {"batch_size": batch_size, "seed": self.seed, "weights": self.weights}
        if isinstance(found[0], PackedMultimodalRows):
            return multimodal_batches(found, **how)
        if self.layout is not None:
            where = self.layout.positions()
            return patch_batches(found, where, modality=self.layout.modality, **how)
        return text_batches(
            found, length=self.length, share_rows=self.objective.bag_of_words == 0, **how
        )


def build_groups(
    sources: Sequence[Source],
    objectives: Mapping[str, Objective],
    seq_len: int,
    processor: Processor,
    seed: int,
) -> dict[str, ModalityGroup]:
    """The groups of a mixture, named after their format; captioned examples apart.

    Args:
      sources: in any order.
      objectives: of each format.
      seq_len: tokens in a row of text.
      processor: tokenizer and layouts.
      seed: draws what is held out, and the order.
    """
    groups: dict[str, ModalityGroup] = {}
    for name in ("text", *CONTINUOUS_MODALITIES):
        of_name = [each for each in sources if each.modality == name]
        if not of_name:
            continue
        split = [train_validation_split(len(each.corpus), seed) for each in of_name]
        weights = [each.weight for each in of_name]
        if name == "text":
            groups[name] = _text(of_name, split, objectives[name], seq_len, processor, seed)
            continue
        layout, unit = processor.layouts[name], BitsPerDimension()
        cut = [
            layout.to_patches(np.asarray(each.corpus.inputs(range(len(each.corpus)))))
            for each in of_name
        ]
        parts = tuple(
            [pieces[places[part]] for pieces, places in zip(cut, split, strict=True)]
            for part in (0, 1)
        )
        groups[name] = ModalityGroup(objectives[name], unit, weights, parts, seed, layout)
        captioned = [n for n, each in enumerate(of_name) if each.captions]
        if captioned:
            parts = tuple(
                [_captioned(of_name[n], cut[n], split[n][part], processor) for n in captioned]
                for part in (0, 1)
            )
            weights = [weights[n] for n in captioned]
            groups[f"{name}{CAPTIONED_SUFFIX}"] = ModalityGroup(_NEXT, unit, weights, parts, seed)
    return groups


def _text(
    sources: list[Source],
    split: list[tuple[np.ndarray, np.ndarray]],
    objective: Objective,
    length: int,
    reads: Processor,
    seed: int,
) -> ModalityGroup:
    assert reads.tokenizer is not None
    texts = [
        [each.corpus.texts(places[part]) for each, places in zip(sources, split, strict=True)]
        for part in (0, 1)
    ]
    parts = tuple(
        [tokenize_chunks(reads.tokenizer, each, length) for each in part] for part in texts
    )
    counts = token_counts([piece for each in parts[0] for piece in each], reads.model.vocab_size)
    unit = BitsPerByte(bytes_per_token([text for each in texts[0] for text in each], counts))
    weights = [each.weight for each in sources]
    return ModalityGroup(objective, unit, weights, parts, seed, length=length, counts=counts)


def _captioned(
    source: Source, pieces: np.ndarray, chosen: np.ndarray, reads: Processor
) -> PackedMultimodalRows:
    """Rows of a class's name, given, and the example, asked for."""
    assert source.layout is not None and reads.tokenizer is not None
    labels = np.asarray(source.corpus.labels)
    names = [caption_tokens(reads.tokenizer, name) for name in source.captions]
    places = source.layout.positions()
    examples = [
        build_row(
            [
                Segment("tokens", names[labels[n]], answer=False),
                Segment(source.modality, pieces[n], places, with_start=True),
            ],
            reads.model.modalities,
        )
        for n in chosen
        if labels[n] >= 0
    ]
    widths = [("tokens", 0), (source.modality, source.layout.patch_dim)]
    longest = max(map(len, names)) + len(places) + 1
    return PackedMultimodalRows(examples, longest, widths, share_rows=False)


def caption_tokens(tokenizer: bpe.Tokenizer, name: str) -> np.ndarray:
    """Token ids of what a picture, sound or clip is led by, int32."""
    (ids,) = tokenizer.encode([name])
    return np.concatenate([[tokenizer.bos], ids]).astype(np.int32)


_VALIDATIONS = 4


@dataclasses.dataclass(frozen=True)
class JointRecipe:
    """How one model of several formats is built and pretrained.

    Attributes:
      model: architecture; `vocab_size`, `continuous` and `axes` are set from the data.
      objectives: of each format, by name.
      optimizer: of pretraining.
      steps: of pretraining.
      batch_size: rows per step, of all formats together.
      vocab_size: tokens of the BPE vocabulary.
      seq_len: tokens in a row of text.
    """

    model: ModelConfig
    objectives: tuple[tuple[str, Objective], ...]
    optimizer: OptimizerConfig
    steps: int
    batch_size: int
    vocab_size: int
    seq_len: int


def source_layouts(sources: Sequence[Source]) -> dict[str, Layout]:
    """How examples of each continuous format are cut, by its name.

    Raises:
      UserError: two sources of one format in unlike layouts; captions without text.
    """
    layouts: dict[str, Layout] = {}
    for name in CONTINUOUS_MODALITIES:
        found = {each.layout for each in sources if each.modality == name and each.layout}
        if len(found) > 1:
            raise UserError(f"sources of {name} must be of one shape and rate, not {len(found)}")
        if found:
            layouts[name] = found.pop()
    if any(each.captions for each in sources) and all(each.layout for each in sources):
        raise UserError("captions are text: they take a source of text for the tokenizer")
    return layouts


def build_joint_processor(
    sources: Sequence[Source], recipe: JointRecipe, out_dir: pathlib.Path
) -> Processor:
    """The tokenizer, trained on all the text there is and saved with the run, and the layouts.

    Raises:
      UserError: see `layouts_of`.
    """
    layouts = source_layouts(sources)
    texts = [each.corpus for each in sources if each.modality == "text"]
    tokenizer = None
    if texts:
        tokenizer = load_or_train_tokenizer(
            lambda: [text for corpus in texts for text in corpus.texts(range(len(corpus)))],
            recipe.vocab_size,
            out_dir,
        )
    model = dataclasses.replace(
        recipe.model,
        vocab_size=tokenizer.vocab_size if tokenizer else 0,
        patch_dims=tuple((name, layout.patch_dim) for name, layout in layouts.items()),
        position_axes=NUM_POSITION_AXES,
    )
    return Processor(model, tokenizer, layouts)


def pretrain_joint(
    sources: Sequence[Source],
    recipe: JointRecipe,
    processor: Processor,
    *,
    seed: int,
    out_dir: pathlib.Path,
    run_name: str,
    checkpoint_every: int | None = None,
    validate_every: int | None = None,
    early_stopping_patience: int | None = None,
) -> TrainResult:
    """Trains a fresh model on all sources, or goes on where an earlier call stopped.

    Two in a hundred examples of each (500 at most) are held out for the validation curves. Groups
    are named after their format.
    """
    print(f"{run_name}: reading {len(sources)} sources …", file=sys.stderr, flush=True)
    groups = build_groups(sources, dict(recipe.objectives), recipe.seq_len, processor, seed)
    rows = batch_size_per_group(
        {name: group.weight for name, group in groups.items()}, recipe.batch_size
    )

    def batches(part: int) -> GroupedBatches:
        return GroupedBatches(
            {name: group.batches(rows[name], part) for name, group in groups.items()}
        )

    counts = sum(group.counts for group in groups.values())
    weights = None
    if "text" in groups:
        rarity = groups["text"].objective.frequency_exponent
        weights = inverse_frequency_weights(jnp.asarray(counts, jnp.float32), rarity)
    validation = batches(1)
    return train(
        functools.partial(train_state.init_sharded, jax.random.key(seed), processor.model),
        batches(0),
        processor.model,
        MultitaskObjective(tuple((name, group.objective) for name, group in groups.items())),
        recipe.optimizer,
        TrainConfig(
            steps=recipe.steps,
            seed=seed,
            checkpoint_every=checkpoint_every or max(100, recipe.steps // 4),
            log_every=max(1, recipe.steps // 50),
            validate_every=validate_every or max(1, recipe.steps // 8),
            early_stopping_patience=early_stopping_patience,
        ),
        out_dir=out_dir,
        metric_unit=PerGroupUnits({name: group.metric_unit for name, group in groups.items()}),
        token_weights=weights,
        validation=[next(validation) for _ in range(_VALIDATIONS)],
        run_name=run_name,
        gemm_flops_per_second=gemm_flops_per_second(processor.model.dtype),
        identity={
            "corpora": {each.name: corpus_digest(each.corpus) for each in sources},
            "mixture": {each.name: each.weight for each in sources},
            "rows": rows,
            **processor.identity(),
        },
    )
