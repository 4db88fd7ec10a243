"""What a pretrained model makes in its continuous formats: pictures, sounds, clips."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from fm.data import clips, waves
from fm.data.layouts import Layout
from fm.data.mixed import Segment, lay
from fm.errors import UserError
from fm.model.drawing import continue_pieces, sample_pieces
from fm.study.joint import CAPTIONED, caption
from fm.study.pretraining import Pretrained

ENDINGS = {"image": "png", "audio": "wav", "video": "gif"}


def check(found: Pretrained, modality: str, *, captioned: bool = False) -> Layout:
    """The layout of a format, if the model can make it.

    Raises:
      UserError: the model lacks the format, or was never asked for its next piece; of captions, if
        it was not pretrained on them.
    """
    layout = found.reads.layouts.get(modality)
    if layout is None:
        known = [*["text"] * (found.reads.tokenizer is not None), *found.reads.layouts]
        raise UserError(f"was trained on {' and '.join(known)}, not on {modality}")
    if captioned and f"{modality}{CAPTIONED}" not in found.groups:
        raise UserError(f"was not pretrained on captioned {modality}, so words mean nothing to it")
    if not captioned and not found.objective_of(modality).next:
        raise UserError(f"was never asked for the next piece of {modality}; take one that was")
    return layout


def make(
    found: Pretrained,
    modality: str,
    *,
    count: int,
    seed: int,
    temperature: float = 1.0,
    given: np.ndarray | None = None,
    keep: float = 0.5,
    words: str | None = None,
) -> np.ndarray:
    """Examples of a continuous format.

    Args:
      found: a model that passes `check`.
      modality: the format.
      count: how many.
      seed: of the draws.
      temperature: multiplies the scales of what is drawn.
      given: an example to begin as, [*shape] of the layout.
      keep: the share of its pieces, in their order, that are kept: of pictures from the top, of
        sounds and clips from the first moment.
      words: a caption to follow, as in pretraining.

    Returns:
      [count, *shape]: uint8, of sounds int16.
    """
    layout = check(found, modality, captioned=words is not None)
    config, rng = found.reads.model, jax.random.key(seed)
    places = layout.positions()
    pieces = np.zeros((0, layout.size), np.float32)
    if given is not None:
        (cut,) = layout.cut(given[None])
        pieces = cut[: round(keep * len(places))]
    if words is None:
        drawn = sample_pieces(
            found.params,
            jnp.asarray(places),
            rng,
            config,
            stream=modality,
            count=count,
            given_KP=jnp.asarray(pieces),
            temperature=temperature,
        )
        return layout.joined(np.asarray(drawn))
    assert found.reads.tokenizer is not None
    whole = np.zeros((len(places), layout.size), pieces.dtype)
    whole[: len(pieces)] = pieces
    said = Segment("tokens", caption(found.reads.tokenizer, words), answer=False)
    row = lay([said, Segment(modality, whole, places, start=True)], config.streams)
    first = len(row["modality"]) - len(places)
    known = first + len(pieces)
    drawn = continue_pieces(
        found.params,
        {key: jnp.stack([jnp.asarray(value[:known])] * count) for key, value in row.items()},
        jnp.asarray(row["positions"][known:]),
        rng,
        config,
        stream=modality,
        temperature=temperature,
    )
    kept = np.stack([row[modality][first:known]] * count)
    return layout.joined(np.concatenate([kept, np.asarray(drawn)], axis=1))


def encoded(example: np.ndarray, layout: Layout) -> bytes:
    """An example as the bytes of a PNG, a WAV or an animated GIF, by its format."""
    if layout.modality == "audio":
        return waves.encode(example, round(layout.rate))
    if layout.modality == "video":
        return clips.animation(example, layout.rate)
    buffer = io.BytesIO()
    Image.fromarray(example[..., 0] if example.shape[-1] == 1 else example).save(buffer, "PNG")
    return buffer.getvalue()
