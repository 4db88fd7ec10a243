"""Pretrains one model on a mixture of corpora of several modalities.

Every step takes rows of every modality, in fixed shares. The run's folder is read by
`fm.study.pretraining.load_pretrained`.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fm.data import tokenizer as bpe
from fm.data.batches import (
    Batches,
    BatchesByGroup,
    batch_size_per_group,
    multimodal_batches,
    patch_batches,
    text_batches,
)
from fm.data.datasets import Dataset, Split
from fm.data.media import PatchLayout, layout_of
from fm.data.packing import NUM_POSITION_AXES, PackedMultimodalRowSource, Segment, build_row
from fm.data.tokenizer import tokenize_chunks
from fm.errors import UserError
from fm.model.config import CONTINUOUS_MODALITIES
from fm.progress_lines import phase
from fm.study.config import JointRecipe
from fm.study.pretraining import NUM_VALIDATION_BATCHES, device_rates, pretrain_config
from fm.study.processing import (
    Processor,
    bytes_per_token,
    corpus_digest,
    load_or_train_tokenizer,
    token_counts,
    train_validation_split,
)
from fm.training import train_state
from fm.training.config import TrainResult
from fm.training.metric_units import BitsPerByte, BitsPerDimension, PerGroupUnits
from fm.training.multitask import MultitaskObjective
from fm.training.objectives import PretrainingObjective, inverse_frequency_weights
from fm.training.train_loop import train

# Captioned examples are a group of their own: "image_from_text".
CAPTIONED_SUFFIX = "_from_text"
_CAUSAL = PretrainingObjective(causal_lm=1.0, masked_lm=0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A weighted corpus of the joint pretraining mixture.

    Attributes:
      name: of the source.
      modality: of its examples.
      corpus: the examples.
      weight: share of the rows, in any unit.
      layout: how examples become patches; None for text.
      captions: class names. If given, rows of class name and example are a further group of the
        same weight. This uses labels: such a model is no longer self-supervised.
    """

    name: str
    modality: str
    corpus: Split
    weight: float = 1.0
    layout: PatchLayout | None = None
    captions: tuple[str, ...] = ()


def build_source(data: Dataset, weight: float = 1.0, *, captioned: bool = False) -> Source:
    """Returns a data set's training split as a pretraining source, optionally with captions.

    Raises:
      UserError: captions of text, or of data without labels.
    """
    if captioned and (data.modality == "text" or data.train.labels is None):
        raise UserError(f"{data.name} cannot be captioned: takes labeled images, sounds or clips")
    layout = None
    if data.modality != "text":
        layout = layout_of(data.modality, data.info["shape"], data.info["rate"])
    captions = data.classes if captioned else ()
    return Source(data.name, data.modality, data.train, weight, layout, captions)


def modality_batch_sizes(sources: Sequence[Source], batch_size: int) -> dict[str, int]:
    """Returns the number of rows of a batch for each modality, from the source weights."""
    weights: dict[str, float] = {}
    for source in sources:
        weights[source.modality] = weights.get(source.modality, 0.0) + source.weight
    return batch_size_per_group(weights, batch_size)


def _modalities_of(sources: Sequence[Source]) -> list[str]:
    """Returns the continuous modalities of the sources, the built-in ones first."""
    own = dict.fromkeys(source.modality for source in sources if source.modality != "text")
    return [name for name in dict.fromkeys((*CONTINUOUS_MODALITIES, *own)) if name in own]


def layouts_by_modality(sources: Sequence[Source]) -> dict[str, PatchLayout]:
    """Returns the patch layout of each non-text modality; raises UserError if sources disagree.

    Raises:
      UserError: two sources of one modality differ in layout; or captions without a text source.
    """
    layouts: dict[str, PatchLayout] = {}
    for name in _modalities_of(sources):
        found = {each.layout for each in sources if each.modality == name and each.layout}
        if len(found) > 1:
            raise UserError(f"sources of {name} must have one shape and rate, not {len(found)}")
        if found:
            layouts[name] = found.pop()
    if any(each.captions for each in sources) and all(each.layout for each in sources):
        raise UserError(
            "captions are text: add a source of text, which the tokenizer is trained on"
        )
    return layouts


def build_joint_processor(
    sources: Sequence[Source], recipe: JointRecipe, out_dir: pathlib.Path
) -> Processor:
    """Returns the joint model's processor; trains its tokenizer on all text sources.

    Raises:
      UserError: see `layouts_by_modality`.
    """
    layouts = layouts_by_modality(sources)
    corpora = [each.corpus for each in sources if each.modality == "text"]
    tokenizer = None
    if corpora:
        tokenizer = load_or_train_tokenizer(
            lambda: [text for corpus in corpora for text in corpus.texts(range(len(corpus)))],
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
    **cadence: Any,
) -> TrainResult:
    """Pretrains one model on all sources, or resumes an interrupted run; returns its result.

    Of every source 2% of the examples, at most 500, are held out for the validation curves. For
    the other arguments see `fm.study.pretraining.pretrain`.
    """
    with phase(f"{run_name}: reading and tokenizing {len(sources)} sources"):
        groups = build_groups(sources, dict(recipe.objectives), recipe.seq_len, processor, seed)
    batch_sizes = batch_size_per_group(
        {name: group.weight for name, group in groups.items()}, recipe.batch_size
    )
    token_weights = None
    if "text" in groups:
        token_weights = inverse_frequency_weights(
            jnp.asarray(groups["text"].counts_V, jnp.float32),
            groups["text"].objective.frequency_exponent,
        )
    train_batches, validation = (
        BatchesByGroup(
            {name: group.batches(batch_sizes[name], split) for name, group in groups.items()}
        )
        for split in ("train", "validation")
    )
    return train(
        functools.partial(train_state.init_sharded, jax.random.key(seed), processor.model),
        train_batches,
        processor.model,
        MultitaskObjective(tuple((name, group.objective) for name, group in groups.items())),
        recipe.optimizer,
        pretrain_config(recipe.steps, seed, grad_accum_steps=recipe.grad_accum_steps, **cadence),
        out_dir=out_dir,
        metric_unit=PerGroupUnits({name: group.metric_unit for name, group in groups.items()}),
        token_weights=token_weights,
        validation=[next(validation) for _ in range(NUM_VALIDATION_BATCHES)],
        run_name=run_name,
        **device_rates(processor.model.dtype),
        identity={
            "corpora": {each.name: corpus_digest(each.corpus) for each in sources},
            "mixture": {each.name: each.weight for each in sources},
            "rows": batch_sizes,
            **processor.identity(),
        },
    )


@dataclasses.dataclass(frozen=True, eq=False)
class ModalityGroup:
    """One modality's examples (or its captioned ones) in joint pretraining, with their objective.

    Attributes:
      objective: of its rows.
      metric_unit: of its loss.
      weights: of its sources.
      splits: by "train" and "validation", the tokenized examples of every source.
      seed: of the order.
      layout: of patches; None for text and for captioned examples.
      seq_len: tokens in a row of text.
      counts_V: counts of the training tokens (text).
    """

    objective: PretrainingObjective
    metric_unit: BitsPerByte | BitsPerDimension
    weights: list[float]
    splits: Mapping[str, list[Any]]
    seed: int
    layout: PatchLayout | None = None
    seq_len: int = 0
    counts_V: np.ndarray | None = None

    @property
    def weight(self) -> float:
        """Sum of the weights of its sources."""
        return sum(self.weights)

    def batches(self, batch_size: int, split: str) -> Batches:
        """Returns batches of a split."""
        sources = self.splits[split]
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "seed": self.seed,
            "weights": self.weights,
        }
        if isinstance(sources[0], PackedMultimodalRowSource):
            return multimodal_batches(sources, **options)
        if self.layout is not None:
            positions = self.layout.positions()
            return patch_batches(sources, positions, modality=self.layout.modality, **options)
        share_rows = self.objective.bag_of_words == 0
        return text_batches(sources, length=self.seq_len, share_rows=share_rows, **options)


def build_groups(
    sources: Sequence[Source],
    objectives: Mapping[str, PretrainingObjective],
    seq_len: int,
    processor: Processor,
    seed: int,
) -> dict[str, ModalityGroup]:
    """Returns tokenized groups: one of each modality, and another of those with captions.

    Args:
      sources: in any order.
      objectives: by modality.
      seq_len: tokens in a row of text.
      processor: tokenizer and layouts.
      seed: draws the held-out examples and the order.
    """
    groups: dict[str, ModalityGroup] = {}
    for name in ("text", *_modalities_of(sources)):
        own = [each for each in sources if each.modality == name]
        if not own:
            continue
        splits: list[dict[str, np.ndarray]] = [
            dict(
                zip(
                    ("train", "validation"),
                    train_validation_split(len(each.corpus), seed),
                    strict=True,
                )
            )
            for each in own
        ]
        if name == "text":
            groups[name] = _text_group(own, splits, objectives[name], seq_len, processor, seed)
            continue
        layout = processor.layouts[name]
        patches = [
            layout.to_patches(np.asarray(each.corpus.inputs(range(len(each.corpus)))))
            for each in own
        ]
        groups[name] = ModalityGroup(
            objectives[name],
            BitsPerDimension(),
            [each.weight for each in own],
            {
                split: [
                    of_source[idx[split]] for of_source, idx in zip(patches, splits, strict=True)
                ]
                for split in ("train", "validation")
            },
            seed,
            layout,
        )
        captioned = [n for n, each in enumerate(own) if each.captions]
        if captioned:
            groups[f"{name}{CAPTIONED_SUFFIX}"] = ModalityGroup(
                _CAUSAL,
                BitsPerDimension(),
                [own[n].weight for n in captioned],
                {
                    split: [
                        _captioned_rows(own[n], patches[n], splits[n][split], processor)
                        for n in captioned
                    ]
                    for split in ("train", "validation")
                },
                seed,
            )
    return groups


def _text_group(
    sources: list[Source],
    splits: list[dict[str, np.ndarray]],
    objective: PretrainingObjective,
    seq_len: int,
    processor: Processor,
    seed: int,
) -> ModalityGroup:
    tokenizer = processor.tokenizer
    assert tokenizer is not None
    texts = {
        split: [each.corpus.texts(idx[split]) for each, idx in zip(sources, splits, strict=True)]
        for split in ("train", "validation")
    }
    chunks = {
        split: [tokenize_chunks(tokenizer, each, seq_len) for each in of_split]
        for split, of_split in texts.items()
    }
    counts_V = token_counts(
        [chunk for each in chunks["train"] for chunk in each], processor.model.vocab_size
    )
    metric_unit = BitsPerByte(
        bytes_per_token([text for each in texts["train"] for text in each], counts_V)
    )
    weights = [each.weight for each in sources]
    return ModalityGroup(
        objective, metric_unit, weights, chunks, seed, seq_len=seq_len, counts_V=counts_V
    )


def _captioned_rows(
    source: Source, patches: np.ndarray, idx: np.ndarray, processor: Processor
) -> PackedMultimodalRowSource:
    """Packs rows of caption, which is given, and patches, which are predicted."""
    assert source.layout is not None and processor.tokenizer is not None
    labels = np.asarray(source.corpus.labels)
    captions = [caption_tokens(processor.tokenizer, name) for name in source.captions]
    positions = source.layout.positions()
    examples = [
        build_row(
            [
                Segment("tokens", captions[labels[n]], answer=False),
                Segment(source.modality, patches[n], positions, with_start=True),
            ],
            processor.model.modalities,
        )
        for n in idx
        if labels[n] >= 0
    ]
    dims = [("tokens", 0), (source.modality, source.layout.patch_dim)]
    max_length = max(map(len, captions)) + len(positions) + 1
    return PackedMultimodalRowSource(examples, max_length, dims, share_rows=False)


def caption_tokens(tokenizer: bpe.Tokenizer, caption: str) -> np.ndarray:
    """Returns BOS and then the token ids of a caption, int32."""
    (ids,) = tokenizer.encode([caption])
    return np.concatenate([[tokenizer.bos], ids]).astype(np.int32)
