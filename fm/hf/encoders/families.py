"""Families of published image and sound encoders: their config.json as `EncoderConfig`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from fm.errors import UserError
from fm.hf.config import ENCODER_MODALITIES
from fm.hf.config_reader import ConfigReader
from fm.hf.encoders.images import ImagePreprocessing
from fm.hf.encoders.spectrograms import SoundPreprocessing, WhisperPreprocessing
from fm.model.sizes import GPT2_ARCH
from fm.model.stems import (
    CONVOLUTIONS,
    IMAGE_PATCHES,
    SPECTROGRAM_PATCHES,
    EncoderConfig,
    StemConfig,
)

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}

# Names of tensors to those of `fm.hf.encoders.tensors`: the published files and `transformers` 5
# name the same tensor differently, and each family does.
_RENAMES = tuple(
    (re.compile(pattern), to)
    for pattern, to in (
        (r"^(vit|dinov2|dinov2_with_registers|audio_spectrogram_transformer|model)\.", ""),
        (r"^encoder\.(?=conv|embed_positions|layer_norm|layers?\.)", ""),
        (r"^layer\.", "layers."),
        (r"^(layernorm|layer_norm)\.", "final_norm."),
        (r"^embeddings\.patch_embeddings\.projection\.", "stem."),
        (r"^conv1\.", "stem."),
        (r"^conv2\.", "stem_second."),
        (r"^embeddings\.", ""),
        (r"^embed_positions\.weight$", "position_embeddings"),
        (r"^pooler\.dense\.", "pooler."),
        (r"\.(layernorm_before|norm1|self_attn_layer_norm)\.", ".attention_norm."),
        (r"\.(layernorm_after|norm2|final_layer_norm)\.", ".feed_forward_norm."),
        (r"\.(attention|self_attn)\.(attention\.)?q(uery|_proj)\.", ".query."),
        (r"\.(attention|self_attn)\.(attention\.)?k(ey|_proj)\.", ".key."),
        (r"\.(attention|self_attn)\.(attention\.)?v(alue|_proj)\.", ".value."),
        (r"\.(attention\.output\.dense|(attention|self_attn)\.(o|out)_proj)\.", ".attention_out."),
        (r"\.(intermediate\.dense|(mlp\.)?fc1|mlp\.up_proj)\.", ".up."),
        (r"\.(output\.dense|(mlp\.)?fc2|mlp\.weights_out|mlp\.down_proj)\.", ".down."),
        (r"\.mlp\.gate_proj\.", ".gate."),
        (r"\.mlp\.weights_in\.", ".gate_and_up."),
        (r"\.layer_scale1\.lambda1$", ".attention_scale"),
        (r"\.layer_scale2\.lambda1$", ".feed_forward_scale"),
    )
)


@dataclasses.dataclass(frozen=True)
class EncoderFamily:
    """A family of encoders (`model_type`): how its config.json and tensors map to fm's.

    Attributes:
      name: its `model_type`.
      title: its name for people.
      processor: of images, the processor of folders that name none.
      heads: regex of tensors, by their canonical names, without a place in `EncoderConfig`.
      has_layer_scale: each block's output is multiplied by a vector, folded into its last kernel.
      antialias: see `fm.hf.encoders.positions.resize_positions`.
      to_config: (config.json, canonical names of all tensors, preprocessing, shape of the inputs)
        to `EncoderConfig`.
    """

    name: str
    title: str
    to_config: Callable[[ConfigReader, Collection[str], Any, tuple[int, ...]], EncoderConfig]
    processor: str = ""
    heads: str = r"(classifier\..*|mask_token|decoder\..*)"
    has_layer_scale: bool = False
    antialias: bool = False

    @property
    def modality(self) -> str:
        """The modality that it reads."""
        return ENCODER_MODALITIES[self.name]


def canonical_name(name: str) -> str:
    """Returns a tensor's name as `fm.hf.encoders.tensors` has it."""
    for pattern, to in _RENAMES:
        name = pattern.sub(to, name, count=1)
    return name


def _pair(config: ConfigReader, key: str, default: int) -> tuple[int, int]:
    """Returns a size as (height, width); one number stands for both."""
    value = config.values.get(key, default)
    values = [value, value] if type(value) is int else value
    if not isinstance(values, list) or [type(n) for n in values] != [int, int] or min(values) < 1:
        raise UserError(f"config.json: {key}={value!r} must be one or two whole numbers over 0")
    return values[0], values[1]


def _encoder(
    config: ConfigReader,
    stem: StemConfig,
    *,
    mlp_dim: int,
    norm_eps: float,
    activation: str = "hidden_act",
    num_layers: str = "num_hidden_layers",
    num_heads: str = "num_attention_heads",
    d_model: str = "hidden_size",
    pooler: bool = False,
    gated_mlp: bool = False,
) -> EncoderConfig:
    """Returns the config of a pre-norm encoder with biases, from keys of these names."""
    heads = config.size(num_heads)
    width = config.size(d_model)
    head_dim = config.size("head_dim", max(1, width // heads))
    return EncoderConfig(
        num_layers=config.size(num_layers),
        d_model=width,
        num_heads=heads,
        num_kv_heads=heads,
        mlp_dim=mlp_dim,
        max_seq_len=stem.num_tokens,
        norm_eps=norm_eps,
        head_dim_override=0 if head_dim * heads == width else head_dim,
        arch=dataclasses.replace(
            GPT2_ARCH,
            activation=("silu" if gated_mlp else config.choice(activation, _ACTIVATIONS, "gelu")),
            gated_mlp=gated_mlp,
            tie_embeddings=False,
            pooler=pooler,
        ),
        stem=stem,
    )


def _image_stem(
    config: ConfigReader,
    preprocessing: ImagePreprocessing,
    shape: tuple[int, ...],
    *,
    patch: int,
    num_registers: int = 0,
) -> StemConfig:
    size = _pair(config, "patch_size", patch)
    return StemConfig(
        IMAGE_PATCHES,
        "image",
        preprocessing.output_shape(*shape[:2]),
        size,
        size,
        num_class_tokens=1,
        num_registers=num_registers,
        rescale=preprocessing.rescale,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )


def pretraining_grid(config: ConfigReader, patch: tuple[int, int]) -> tuple[int, int]:
    """Returns rows and columns of patches that an image encoder's positions are for."""
    height, width = _pair(config, "image_size", 224)
    return height // patch[0], width // patch[1]


def _vit(config, names, preprocessing, shape):
    pooler = "pooler.weight" in names
    if pooler:
        config.require("pooler_act", "tanh")
        config.require("pooler_output_size", config.size("hidden_size"))
    return _encoder(
        config,
        _image_stem(config, preprocessing, shape, patch=16),
        mlp_dim=config.size("intermediate_size", 3072),
        norm_eps=config.number("layer_norm_eps", 1e-12),
        pooler=pooler,
    )


def _dinov2(config, names, preprocessing, shape, num_registers=0):
    mlp_dim = int(config.size("hidden_size") * config.number("mlp_ratio", 4))
    gated_mlp = config.flag("use_swiglu_ffn", False)
    if gated_mlp:  # two thirds, as a multiple of 8
        mlp_dim = (int(mlp_dim * 2 / 3) + 7) // 8 * 8
    return _encoder(
        config,
        _image_stem(config, preprocessing, shape, patch=14, num_registers=num_registers),
        mlp_dim=mlp_dim,
        norm_eps=config.number("layer_norm_eps", 1e-6),
        gated_mlp=gated_mlp,
    )


def _dinov2_with_registers(config, names, preprocessing, shape):
    registers = config.size("num_register_tokens", 4)
    return _dinov2(config, names, preprocessing, shape, num_registers=registers)


def _ast(config, names, preprocessing: SoundPreprocessing, shape):
    for key, own in (
        ("num_mel_bins", preprocessing.num_bins),
        ("max_length", preprocessing.num_frames),
    ):
        if (given := config.size(key, {"num_mel_bins": 128, "max_length": 1024}[key])) != own:
            raise UserError(f"config.json: {key}={given}, but preprocessor_config.json has {own}")
    stem = StemConfig(
        SPECTROGRAM_PATCHES,
        "audio",
        (preprocessing.num_frames, preprocessing.num_bins),
        _pair(config, "patch_size", 16),
        (config.size("frequency_stride", 10), config.size("time_stride", 10)),
        num_class_tokens=2,
    )
    return _encoder(
        config,
        stem,
        mlp_dim=config.size("intermediate_size", 3072),
        norm_eps=config.number("layer_norm_eps", 1e-12),
    )


def _whisper(config, names, preprocessing: WhisperPreprocessing, shape):
    for key, default, own in (
        ("num_mel_bins", 80, preprocessing.num_bins),
        ("max_source_positions", 1500, preprocessing.num_frames / 2),
    ):
        if (given := config.size(key, default)) != own:
            raise UserError(f"config.json: {key}={given}, but preprocessor_config.json has {own:g}")
    frames = (preprocessing.num_frames, preprocessing.num_bins)
    return _encoder(
        config,
        StemConfig(CONVOLUTIONS, "audio", frames),
        mlp_dim=config.size("encoder_ffn_dim", 1536),
        norm_eps=1e-5,  # PyTorch's default, which no key changes
        activation="activation_function",
        num_layers="encoder_layers",
        num_heads="encoder_attention_heads",
        d_model="d_model",
    )


ENCODER_FAMILIES: Mapping[str, EncoderFamily] = {
    family.name: family
    for family in (
        EncoderFamily("vit", "ViT", _vit, processor="ViTImageProcessor"),
        EncoderFamily(
            "dinov2", "DINOv2", _dinov2, processor="BitImageProcessor", has_layer_scale=True
        ),
        EncoderFamily(
            "dinov2_with_registers",
            "DINOv2 with registers",
            _dinov2_with_registers,
            processor="BitImageProcessor",
            has_layer_scale=True,
            antialias=True,
        ),
        EncoderFamily("audio-spectrogram-transformer", "AST", _ast),
        EncoderFamily(
            "whisper", "Whisper's encoder", _whisper, heads=r"(decoder\..*|proj_out\..*)"
        ),
    )
}
assert ENCODER_FAMILIES.keys() == ENCODER_MODALITIES.keys()


def unused_tensors(family: EncoderFamily, names: Iterable[str]) -> tuple[str, ...]:
    """Returns the canonical names of tensors that are not read, such as heads and decoders."""
    return tuple(sorted(name for name in names if re.fullmatch(family.heads, name)))
