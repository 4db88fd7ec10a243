"""Input embeddings of published image and sound encoders: patches, or two convolutions.

The layers behind them are those of `fm.model.layers`. Inputs are whole images, uint8 [B, rows,
columns, channels], or spectrograms, float32 [B, frames, bins], under the name of the modality;
`positions` is int [B, L] and only tells the length.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fm.errors import UserError
from fm.model.config import Arrays, ModelConfig
from fm.model.layers import init_norm

# Square patches of images; overlapping patches of spectrograms (Gong et al. 2021); two convolutions
# over time, the second of stride 2 (Radford et al. 2022).
IMAGE_PATCHES, SPECTROGRAM_PATCHES, CONVOLUTIONS = "image", "spectrogram", "convolutions"
STEM_KINDS = (IMAGE_PATCHES, SPECTROGRAM_PATCHES, CONVOLUTIONS)
CONVOLUTION_WIDTH = 3


@dataclasses.dataclass(frozen=True)
class StemConfig:
    """What an encoder reads, and how its first layer's input is made of it.

    Attributes:
      kind: one of `STEM_KINDS`.
      modality: name of the input in a batch.
      input_shape: of one input: (rows, columns, channels) of an image, (frames, bins) of a
        spectrogram.
      patch: rows and columns of a patch, of a spectrogram bins and frames; not of convolutions.
      stride: from one patch to the next, likewise.
      num_class_tokens: learned tokens in front whose outputs stand for the whole input.
      num_registers: learned tokens behind them that are not read (Darcet et al. 2023).
      rescale: pixel values are multiplied by it,
      mean: then less this of each channel,
      std: then divided by this; both empty for inputs that are taken as they are.
    """

    kind: str
    modality: str
    input_shape: tuple[int, ...]
    patch: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    num_class_tokens: int = 0
    num_registers: int = 0
    rescale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self):
        if self.kind not in STEM_KINDS:
            raise UserError(f"stem {self.kind!r} is unknown; accepted are {', '.join(STEM_KINDS)}")
        if min(self.grid) < 1:
            raise UserError(
                f"an input of {'x'.join(map(str, self.input_shape))} is smaller than a patch of "
                f"{'x'.join(map(str, self.patch))}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along rows and columns, of spectrograms along bins and frames."""
        if self.kind == CONVOLUTIONS:
            return 1, (self.input_shape[0] - 1) // 2 + 1
        size = self.input_shape[:2]
        if self.kind == SPECTROGRAM_PATCHES:
            size = size[::-1]
        rows, columns = (
            (side - patch) // stride + 1
            for side, patch, stride in zip(size, self.patch, self.stride, strict=True)
        )
        return rows, columns

    @property
    def num_patches(self) -> int:
        """Tokens that are made of the input."""
        rows, columns = self.grid
        return rows * columns

    @property
    def num_prefix_tokens(self) -> int:
        """Learned tokens in front of them."""
        return self.num_class_tokens + self.num_registers

    @property
    def num_tokens(self) -> int:
        """Tokens that enter the layers (L)."""
        return self.num_prefix_tokens + self.num_patches

    @property
    def channels(self) -> int:
        """Numbers at one place of the input: colors of a pixel, bins of a convolved frame."""
        return 1 if self.kind == SPECTROGRAM_PATCHES else self.input_shape[-1]


@dataclasses.dataclass(frozen=True)
class EncoderConfig(ModelConfig):
    """Configuration of a transformer that reads images or sounds through a stem.

    Positions are learned ones, of the stem; there is no vocabulary.

    Attributes:
      stem: see `StemConfig`.
    """

    stem: StemConfig = dataclasses.field(kw_only=True)


def init_stem(rng: jax.Array, config: EncoderConfig) -> Arrays:
    """Returns initial parameters of the stem, and of the final norm and the pooler.

    Kernels are normal with variance 1/fan_in, tokens and positions with a deviation of 0.02.
    """
    stem, D = config.stem, config.d_model
    keys = jax.random.split(rng, 5)
    P = (
        CONVOLUTION_WIDTH * stem.channels
        if stem.kind == CONVOLUTIONS
        else stem.patch[0] * stem.patch[1] * stem.channels
    )
    params = {
        "stem": jax.random.normal(keys[0], (P, D)) * P**-0.5,
        "stem_bias": jnp.zeros(D),
        "position_embedding": jax.random.normal(keys[1], (stem.num_patches, D)) * 0.02,
    }
    if stem.kind == CONVOLUTIONS:
        fan_in = CONVOLUTION_WIDTH * D
        params["stem_second"] = jax.random.normal(keys[2], (fan_in, D)) * fan_in**-0.5
        params["stem_second_bias"] = jnp.zeros(D)
    for key, name, count in (
        (keys[3], "class_tokens", stem.num_class_tokens),
        (keys[4], "registers", stem.num_registers),
    ):
        if count:
            params[name] = jax.random.normal(key, (count, D)) * 0.02
    params |= init_norm(config.arch, "final_norm", D)
    if config.arch.pooler:
        params |= {"pooler": jnp.eye(D), "pooler_bias": jnp.zeros(D)}
    return params


def embed_stem(params: Arrays, inputs: Arrays, config: EncoderConfig) -> jax.Array:
    """Returns the residual x_BLD before the first layer: class tokens, registers, then patches."""
    stem, dtype = config.stem, jnp.dtype(config.dtype)
    values = inputs[stem.modality]
    if stem.kind == CONVOLUTIONS:
        x_BLD = values.astype(dtype)
        for name, stride in (("stem", 1), ("stem_second", 2)):
            x_BLD = jax.nn.gelu(_convolve_frames(params, name, x_BLD, stride), approximate=False)
    else:
        x_BLD = _embed_patches(params, _normalized(values, stem).astype(dtype), stem)
    x_BLD = x_BLD + params["position_embedding"].astype(dtype)
    prefix = [
        jnp.broadcast_to(params[name].astype(dtype), (len(x_BLD), *params[name].shape))
        for name in ("class_tokens", "registers")
        if name in params
    ]
    return jnp.concatenate([*prefix, x_BLD], axis=1)


def _normalized(values: jax.Array, stem: StemConfig) -> jax.Array:
    """Returns images or spectrograms as float32 [B, rows, columns, channels], normalized."""
    x = values.astype(jnp.float32)
    if stem.kind == SPECTROGRAM_PATCHES:
        x = jnp.swapaxes(x, 1, 2)[..., None]
    if stem.mean:
        x = (x * stem.rescale - jnp.asarray(stem.mean)) / jnp.asarray(stem.std)
    return x


def _embed_patches(params: Arrays, x: jax.Array, stem: StemConfig) -> jax.Array:
    """Returns a linear map of every patch [B, L, D], by rows."""
    kernel = params["stem"].astype(x.dtype)
    (rows, columns), (height, width) = stem.grid, stem.patch
    B, C = len(x), x.shape[-1]
    if stem.patch == stem.stride:
        x = x[:, : rows * height, : columns * width].reshape(B, rows, height, columns, width, C)
        y = x.swapaxes(2, 3).reshape(B, rows * columns, -1) @ kernel
    else:
        y = jax.lax.conv_general_dilated(
            x,
            kernel.reshape(height, width, C, -1),
            stem.stride,
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ).reshape(B, rows * columns, -1)
    return y + params["stem_bias"].astype(x.dtype)


def _convolve_frames(params: Arrays, name: str, x: jax.Array, stride: int) -> jax.Array:
    """Returns a convolution of width 3 over time, [B, frames / stride, D], zeros at the ends."""
    kernel = params[name].astype(x.dtype).reshape(CONVOLUTION_WIDTH, x.shape[-1], -1)
    y = jax.lax.conv_general_dilated(
        x, kernel, (stride,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC")
    )
    return y + params[f"{name}_bias"].astype(x.dtype)
