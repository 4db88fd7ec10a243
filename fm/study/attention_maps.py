"""One input as a pretrained model looks at it: a text or a picture, in either mode of reading."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np

from fm.adaptation.batching import image_examples
from fm.attention import Mask, choose
from fm.data.tokenizer import token_chunks
from fm.errors import UserError
from fm.model import embeddings
from fm.model.attention_maps import attention_weights, kernel_error
from fm.model.config import ModelConfig
from fm.study.pretraining import PretrainedModel
from fm.training.objectives import Objective

MODES = ("causal", "bidirectional")
# Every patch is drawn over every other one, by layer and head.
MAX_PATCHES = 256

_weights = jax.jit(attention_weights, static_argnames="config")
_error = jax.jit(kernel_error, static_argnames="config")


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Where the pieces of one input looked.

    Attributes:
      weights_NHLS: float32, by layer, head, query and key; rows sum to one.
      visible_LS: bool, which keys a query could see.
      kernel: the attention implementation that runs for this input.
      error: how far the weights times the values are from its output, relative to its size.
    """

    weights_NHLS: np.ndarray
    visible_LS: np.ndarray
    kernel: str
    error: float


def default_mode(objective: Objective) -> str:
    """The mode in which pretraining read most of its sequences, bidirectional of equals."""
    return "causal" if mode_share(objective, "causal") > 0.5 else "bidirectional"


def mode_share(objective: Objective, mode: str) -> float:
    """The share of its sequences that pretraining read in a mode."""
    return objective.causal_lm if mode == "causal" else objective.masked_lm + objective.bag_of_words


def text_attention_maps(
    pretrained: PretrainedModel, text: str, mode: str, max_length: int
) -> tuple[AttentionMaps, np.ndarray, int]:
    """Looks at the beginning of a text.

    Args:
      pretrained: a model of text.
      text: what it reads.
      mode: one of `MODES`.
      max_length: tokens read; what comes after is cut off before the model sees it.

    Returns:
      where its tokens looked; their ids, int32 [L], the start first and, where nothing was cut
      off, the end last; and how many there are in all.

    Raises:
      UserError: the model reads pictures, or there is nothing to read.
    """
    tokenizer = pretrained.processor.tokenizer
    if tokenizer is None:
        raise UserError("this model reads pictures, not text")
    if not text.strip():
        raise UserError("the text is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text is not Unicode at character {error.start}") from error
    (ids,) = tokenizer.encode([text])
    (whole,) = token_chunks(ids, len(ids) + 2, tokenizer)
    shown = whole[:max_length]
    inputs = {"tokens": shown[None], "positions": np.arange(len(shown), dtype=np.int32)[None]}
    return _looked(pretrained, inputs, mode), shown, len(whole)


def image_attention_maps(
    pretrained: PretrainedModel, image: np.ndarray, mode: str
) -> AttentionMaps:
    """Looks at a picture.

    Args:
      pretrained: a model of pictures.
      image: uint8 [height, width, channels], see `patch_shape`.
      mode: one of `MODES`; "causal" puts the start piece first.

    Raises:
      UserError: the model reads text, or the picture does not fit its patches.
    """
    side, channels = patch_shape(pretrained.processor.model)
    height, width = image.shape[:2]
    if height % side or width % side or height * width > MAX_PATCHES * side**2:
        raise UserError(
            f"a picture of {width}x{height} pixels does not fit: width and height must be "
            f"multiples of the model's patch of {side}, and give at most {MAX_PATCHES} patches"
        )
    if image.shape[2] != channels:
        raise UserError(f"{image.shape[2]} channels, but the model reads {channels}")
    inputs: dict = dict(image_examples(image[None], side))
    return _looked(
        pretrained, embeddings.prepend_start_patch(inputs) if mode == "causal" else inputs, mode
    )


def patch_shape(model: ModelConfig) -> tuple[int, int]:
    """Side in pixels and channels (1 or 3) of a model's square patches.

    Raises:
      UserError: the model reads text.
    """
    if "image" not in model.modalities:
        raise UserError("this model reads text, not pictures")
    P = model.patch_dim("image")
    # No number is a square and three times a square.
    channels = 1 if math.isqrt(P) ** 2 == P else 3
    return math.isqrt(P // channels), channels


def _looked(found: PretrainedModel, inputs: dict, mode: str) -> AttentionMaps:
    config, mask = found.processor.model, Mask(causal=mode == "causal")
    L = inputs["positions"].shape[1]
    q, k = (
        jax.ShapeDtypeStruct((1, L, heads, config.head_dim), config.dtype)
        for heads in (config.num_heads, config.num_kv_heads)
    )
    return AttentionMaps(
        weights_NHLS=np.asarray(_weights(found.params, inputs, config, mask=mask))[:, 0],
        visible_LS=np.asarray(mask.materialize(L, L))[0],
        kernel=config.attention or choose(q, k, mask),
        error=float(_error(found.params, inputs, config, mask=mask)),
    )
