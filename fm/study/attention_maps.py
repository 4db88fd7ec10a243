"""Attention weights of a pretrained model for one text or image."""

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
from fm.training.objectives import PretrainingObjective

MODES = ("causal", "bidirectional")
# The page draws every patch over every other one, by layer and head.
MAX_PATCHES = 256

_weights = jax.jit(attention_weights, static_argnames="config")
_error = jax.jit(kernel_error, static_argnames="config")


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionMaps:
    """Attention weights of every layer and head of a model on one input.

    Attributes:
      weights_NHLS: float32, by layer, head, query and key; rows sum to one.
      visible_LS: bool, the keys that each query may attend to.
      kernel: the attention implementation that runs for this input.
      error: relative difference between weights times values and the kernel's output.
    """

    weights_NHLS: np.ndarray
    visible_LS: np.ndarray
    kernel: str
    error: float


def default_mode(objective: PretrainingObjective) -> str:
    """Returns the attention mode, causal or bidirectional, most used in pretraining."""
    return "causal" if mode_share(objective, "causal") > 0.5 else "bidirectional"


def mode_share(objective: PretrainingObjective, mode: str) -> float:
    """Returns the fraction of the objective's sequences attended in `mode`, e.g. "causal"."""
    return objective.causal_lm if mode == "causal" else objective.masked_lm + objective.bag_of_words


def text_attention_maps(
    pretrained: PretrainedModel, text: str, mode: str, max_length: int
) -> tuple[AttentionMaps, np.ndarray, int]:
    """Returns a text's attention maps, its kept token ids and its token count before truncation.

    Args:
      pretrained: a model of text.
      text: to read.
      mode: one of `MODES`.
      max_length: tokens read; the rest is cut off before the model sees it.

    Returns:
      The maps; the token ids, int32 [L], with BOS and, if nothing was cut off, EOS; and the number
      of tokens before cutting.

    Raises:
      UserError: the model does not read text, or the text is empty or not Unicode.
    """
    tokenizer = pretrained.processor.tokenizer
    if tokenizer is None:
        raise UserError("this model reads images, not text")
    if not text.strip():
        raise UserError("the text is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text is not Unicode at character {error.start}") from error
    (ids,) = tokenizer.encode([text])
    (tokens,) = token_chunks(ids, len(ids) + 2, tokenizer)
    kept = tokens[:max_length]
    inputs = {"tokens": kept[None], "positions": np.arange(len(kept), dtype=np.int32)[None]}
    return _attention_maps(pretrained, inputs, mode), kept, len(tokens)


def image_attention_maps(
    pretrained: PretrainedModel, image: np.ndarray, mode: str
) -> AttentionMaps:
    """Returns the attention weights of every layer and head of a model on one image.

    Args:
      pretrained: a model of images.
      image: uint8 [height, width, channels], see `patch_shape`.
      mode: one of `MODES`; "causal" prepends the start patch.

    Raises:
      UserError: the model does not read images, or the image does not fit its patches.
    """
    side, channels = patch_shape(pretrained.processor.model)
    height, width = image.shape[:2]
    if height % side or width % side or height * width > MAX_PATCHES * side**2:
        raise UserError(
            f"an image of {width}x{height} pixels does not fit: width and height must be "
            f"multiples of the model's patch size {side}, and give at most {MAX_PATCHES} patches"
        )
    if image.shape[2] != channels:
        raise UserError(f"the image has {image.shape[2]} channels, but the model reads {channels}")
    inputs: dict = dict(image_examples(image[None], side))
    if mode == "causal":
        inputs = embeddings.prepend_start_patch(inputs)
    return _attention_maps(pretrained, inputs, mode)


def patch_shape(model_config: ModelConfig) -> tuple[int, int]:
    """Returns the side in pixels and the number of channels of an image model's square patches.

    Raises:
      UserError: the model does not read images.
    """
    if "image" not in model_config.modalities:
        raise UserError("this model reads text, not images")
    P = model_config.patch_dim("image")
    # No number is a square and three times a square.
    channels = 1 if math.isqrt(P) ** 2 == P else 3
    return math.isqrt(P // channels), channels


def _attention_maps(pretrained: PretrainedModel, inputs: dict, mode: str) -> AttentionMaps:
    config, mask = pretrained.processor.model, Mask(causal=mode == "causal")
    L = inputs["positions"].shape[1]
    q, k = (
        jax.ShapeDtypeStruct((1, L, num_heads, config.head_dim), config.dtype)
        for num_heads in (config.num_heads, config.num_kv_heads)
    )
    return AttentionMaps(
        weights_NHLS=np.asarray(_weights(pretrained.params, inputs, config, mask=mask))[:, 0],
        visible_LS=np.asarray(mask.materialize(L, L))[0],
        kernel=config.attention or choose(q, k, mask),
        error=float(_error(pretrained.params, inputs, config, mask=mask)),
    )
