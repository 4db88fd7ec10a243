"""Samples images, sounds and clips from a pretrained model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fm.data.media import PatchLayout, get_modality
from fm.data.packing import Segment, build_row
from fm.errors import UserError
from fm.model.sample_continuous import continue_patches, sample_patches
from fm.study.joint_pretraining import CAPTIONED_SUFFIX, caption_tokens
from fm.study.pretraining import PretrainedModel


def check_can_sample(
    pretrained: PretrainedModel, modality: str, *, captioned: bool = False
) -> PatchLayout:
    """Returns the modality's layout; raises UserError if the model cannot generate it.

    Raises:
      UserError: the model lacks the modality, has no causal objective for it, or was not pretrained
        on captions where they are asked for.
    """
    processor = pretrained.processor
    layout = processor.layouts.get(modality)
    if layout is None:
        known = [*["text"] * (processor.tokenizer is not None), *processor.layouts]
        raise UserError(f"was pretrained on {' and '.join(known)}, not on {modality}")
    if captioned and f"{modality}{CAPTIONED_SUFFIX}" not in pretrained.groups:
        raise UserError(f"was not pretrained on captioned {modality}, so it ignores captions")
    if not captioned and not pretrained.objective_of(modality).causal_lm:
        raise UserError(
            f"was pretrained on {modality} without the objective causal_lm, so it cannot sample"
        )
    return layout


def sample_examples(
    pretrained: PretrainedModel,
    modality: str,
    *,
    count: int,
    seed: int,
    temperature: float = 1.0,
    init_example: np.ndarray | None = None,
    keep_fraction: float = 0.5,
    caption: str | None = None,
) -> np.ndarray:
    """Generates examples of a continuous modality, [count, *shape].

    Args:
      pretrained: a model that passes `check_can_sample`.
      modality: of the examples.
      count: number of examples.
      seed: of the draws.
      temperature: multiplies the scales of the mixture components.
      init_example: an example whose first patches are given, [*shape] of the layout.
      keep_fraction: fraction of `init_example` to keep as a prefix: from the top of an image, from
        the start of a sound or clip.
      caption: to condition on, as in pretraining.

    Returns:
      [count, *shape]: uint8, or int16 for sounds.
    """
    layout = check_can_sample(pretrained, modality, captioned=caption is not None)
    model_config, rng = pretrained.processor.model, jax.random.key(seed)
    positions = layout.positions()
    prefix = np.zeros((0, layout.patch_dim), np.float32)
    if init_example is not None:
        (patches,) = layout.to_patches(init_example[None])
        prefix = patches[: round(keep_fraction * len(positions))]
    if caption is None:
        sampled = sample_patches(
            pretrained.params,
            jnp.asarray(positions),
            rng,
            model_config,
            modality=modality,
            num_samples=count,
            prefix_KP=jnp.asarray(prefix),
            temperature=temperature,
        )
        return layout.from_patches(np.asarray(sampled))
    assert pretrained.processor.tokenizer is not None
    padded = np.zeros((len(positions), layout.patch_dim), prefix.dtype)
    padded[: len(prefix)] = prefix
    tokens = caption_tokens(pretrained.processor.tokenizer, caption)
    row = build_row(
        [
            Segment("tokens", tokens, answer=False),
            Segment(modality, padded, positions, with_start=True),
        ],
        model_config.modalities,
    )
    first_patch = len(row["modality"]) - len(positions)
    known = first_patch + len(prefix)
    sampled = continue_patches(
        pretrained.params,
        {key: jnp.stack([jnp.asarray(value[:known])] * count) for key, value in row.items()},
        jnp.asarray(row["positions"][known:]),
        rng,
        model_config,
        modality=modality,
        temperature=temperature,
    )
    given = np.stack([row[modality][first_patch:known]] * count)
    return layout.from_patches(np.concatenate([given, np.asarray(sampled)], axis=1))


def encode_example(example: np.ndarray, layout: PatchLayout) -> tuple[bytes, str]:
    """Returns an example as (file bytes, extension): PNG, WAV or animated GIF."""
    codec = get_modality(layout.modality).codec
    assert codec is not None
    return codec.encode_preview(example, layout.rate), codec.preview_extension
