"""What a pretrained model makes in its continuous formats: pictures, sounds, clips."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fm.data.layouts import Layout
from fm.data.media import get_modality
from fm.data.packing import Segment, build_row
from fm.errors import UserError
from fm.model.sample_continuous import continue_patches, sample_patches
from fm.study.joint_pretraining import CAPTIONED_SUFFIX, caption_tokens
from fm.study.pretraining import PretrainedModel


def check_can_sample(
    pretrained: PretrainedModel, modality: str, *, captioned: bool = False
) -> Layout:
    """The layout of a format, if the model can make it.

    Raises:
      UserError: the model lacks the format, or was never asked for its next piece; of captions, if
        it was not pretrained on them.
    """
    layout = pretrained.processor.layouts.get(modality)
    if layout is None:
        known = [
            *["text"] * (pretrained.processor.tokenizer is not None),
            *pretrained.processor.layouts,
        ]
        raise UserError(f"was trained on {' and '.join(known)}, not on {modality}")
    if captioned and f"{modality}{CAPTIONED_SUFFIX}" not in pretrained.groups:
        raise UserError(f"was not pretrained on captioned {modality}, so words mean nothing to it")
    if not captioned and not pretrained.objective_of(modality).causal_lm:
        raise UserError(f"was never asked for the next piece of {modality}; take one that was")
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
    """Examples of a continuous format.

    Args:
      pretrained: a model that passes `check`.
      modality: the format.
      count: how many.
      seed: of the draws.
      temperature: multiplies the scales of what is drawn.
      init_example: an example to begin as, [*shape] of the layout.
      keep_fraction: fraction of its patches, in order, that is kept: of images from the top, of
        sounds and clips from the first moment.
      caption: a caption to follow, as in pretraining.

    Returns:
      [count, *shape]: uint8, of sounds int16.
    """
    layout = check_can_sample(pretrained, modality, captioned=caption is not None)
    config, rng = pretrained.processor.model, jax.random.key(seed)
    places = layout.positions()
    pieces = np.zeros((0, layout.patch_dim), np.float32)
    if init_example is not None:
        (cut,) = layout.to_patches(init_example[None])
        pieces = cut[: round(keep_fraction * len(places))]
    if caption is None:
        drawn = sample_patches(
            pretrained.params,
            jnp.asarray(places),
            rng,
            config,
            modality=modality,
            num_samples=count,
            prefix_KP=jnp.asarray(pieces),
            temperature=temperature,
        )
        return layout.from_patches(np.asarray(drawn))
    assert pretrained.processor.tokenizer is not None
    whole = np.zeros((len(places), layout.patch_dim), pieces.dtype)
    whole[: len(pieces)] = pieces
    said = Segment("tokens", caption_tokens(pretrained.processor.tokenizer, caption), answer=False)
    row = build_row([said, Segment(modality, whole, places, with_start=True)], config.modalities)
    first = len(row["modality"]) - len(places)
    known = first + len(pieces)
    drawn = continue_patches(
        pretrained.params,
        {key: jnp.stack([jnp.asarray(value[:known])] * count) for key, value in row.items()},
        jnp.asarray(row["positions"][known:]),
        rng,
        config,
        modality=modality,
        temperature=temperature,
    )
    kept = np.stack([row[modality][first:known]] * count)
    return layout.from_patches(np.concatenate([kept, np.asarray(drawn)], axis=1))


def encode_example(example: np.ndarray, layout: Layout) -> tuple[bytes, str]:
    """Returns an example as a file, and its extension: PNG, WAV or animated GIF."""
    codec = get_modality(layout.modality).codec
    assert codec is not None
    return codec.encode_preview(example, layout.rate), codec.preview_extension
