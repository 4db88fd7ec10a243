"""The choices by which families of transformers differ; the defaults are fm's own."""

from __future__ import annotations

import dataclasses
from typing import Any

from fm.config_io import parse
from fm.errors import UserError
from fm.model.positions import RopeScaling

_ARCH_CHOICES = {
    "norm": ("rms", "layer"),
    "qk_norm": ("none", "plain", "gain"),
    "use_bias": ("none", "qkv", "attention", "all"),
    "activation": ("relu2", "gelu", "gelu_tanh", "silu"),
    "position_encoding": ("rotary", "learned"),
}


@dataclasses.dataclass(frozen=True)
class ArchConfig:
    """What a transformer is made of, whatever its size.

    Attributes:
      norm: "rms" (Zhang & Sennrich 2019) or "layer" (Ba et al. 2016).
      norm_scale: norms multiply by a learned vector.
      norm_bias: norms add a learned vector; only with a gain.
      post_norm: each residual sum is normalised (BERT), instead of what each block reads.
      embedding_norm: what enters the first layer is normalised.
      final_norm: what leaves the last layer is normalised.
      qk_norm: RMS norm of every query and key: "none", "plain", or with a learned "gain" (Qwen3).
      use_bias: of the linear maps: "none", "qkv" (queries, keys, values), "attention" (these and the
        one out of attention) or "all" of a layer's.
      activation: "relu2" (So et al. 2021), "gelu" (exact), "gelu_tanh" (GPT-2's) or "silu".
      gated_mlp: the activation multiplies a second linear map (Shazeer 2020, eq. 6).
      position_encoding: "rotary", pairing (c, c + C/2), or "learned" vectors, as many as
        `ModelConfig.context`.
      rope_scaling: Llama 3's stretched rotary frequencies, or None.
      tie_embeddings: the embedding is also the softmax's kernel.
      num_token_types: kinds of token, each with a vector added to its embedding (BERT's sentences A
        and B); 0 for none.
      pooler: a tanh layer over the first piece, as BERT has (read by `streams.summary` alone).
    """

    norm: str = "rms"
    norm_scale: bool = False
    norm_bias: bool = False
    post_norm: bool = False
    embedding_norm: bool = True
    final_norm: bool = True
    qk_norm: str = "plain"
    use_bias: str = "none"
    activation: str = "relu2"
    gated_mlp: bool = False
    position_encoding: str = "rotary"
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False
    num_token_types: int = 0
    pooler: bool = False

    def __post_init__(self):
        for name, accepted in _ARCH_CHOICES.items():
            if getattr(self, name) not in accepted:
                raise UserError(
                    f"{name}={getattr(self, name)!r} is not known; accepted are "
                    f"{', '.join(accepted)}"
                )
        if self.norm_bias and not self.norm_scale:
            raise UserError("shift=True takes gain=True: no norm here has a shift alone")
        if self.rope_scaling and self.position_encoding != "rotary":
            raise UserError(
                f"rope_scaling is for rotary positions, not {self.position_encoding} ones"
            )
        if self.num_token_types < 0:
            raise UserError(f"num_token_types={self.num_token_types} must be at least 0")

    def has_bias(self, name: str) -> bool:
        """Whether a layer's linear map of this name adds a bias."""
        covered = {
            "none": (),
            "qkv": ("query", "key", "value"),
            "attention": ("query", "key", "value", "attention_out"),
        }
        return self.use_bias == "all" or name in covered[self.use_bias]


# Streams of continuous pieces a model may have.
CONTINUOUS_MODALITIES = ("image", "audio", "video")
# What a layer may keep for its backward pass, from all to the least.
REMAT_POLICIES = ("none", "dots", "attention", "full")
_DIAL = {"nano": 1, "micro": 2, "tiny": 4, "small": 6, "base": 12}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture of one transformer.

    Attributes:
      num_layers: number of layers (N).
      d_model: residual width (D).
      num_heads: query heads (H).
      num_kv_heads: key/value heads (K); divides `num_heads`.
      mlp_dim: feed-forward width (F).
      vocab_size: tokens of the discrete stream (V); 0 for a model without text.
      patch_dims: streams of continuous pieces, each with the numbers in one piece (P), such as
        (("image", 16), ("audio", 80)).
      position_axes: position axes (A): 1 for text and sound, 2 for pictures (row, column), 3 for clips
        (time, row, column) and for all of them in one model.
      num_mixtures: components of the Gaussian-mixture head (M).
      rope_theta: base of the rotary frequencies.
      norm_eps: added to the mean square in RMSNorm.
      scan_layers: run the layers as one `lax.scan` (quick to compile) or unrolled (faster on a CPU).
      dtype: what activations and matrix products are computed in; parameters stay float32 in
        training (to read a model they may be bfloat16, in half the memory).
      attention: implementation name, or None for the fastest that is right.
      head_dim_override: width of one head (C) where it is not width / heads; 0 where it is.
      max_seq_len: the longest input, in pieces; 0 for no limit.
      arch: what the layers are made of.
      remat_policy: what a layer keeps for its backward pass: all of it ("none"), products with kernels
        ("dots"), what attention reads and gives ("attention"), or its input alone ("full"). But
        for "none" the layers run as a scan.
    """

    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    mlp_dim: int
    vocab_size: int = 0
    patch_dims: tuple[tuple[str, int], ...] = ()
    position_axes: int = 1
    num_mixtures: int = 4
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    scan_layers: bool = False
    dtype: str = "float32"
    attention: str | None = None
    head_dim_override: int = 0
    max_seq_len: int = 0
    arch: ArchConfig = dataclasses.field(default_factory=ArchConfig)
    remat_policy: str = "none"

    def __post_init__(self):
        for name in (
            "d_model",
            "num_heads",
            "num_kv_heads",
            "mlp_dim",
            "position_axes",
            "num_mixtures",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("num_layers", "vocab_size", "head_dim_override", "max_seq_len"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must be at least 0")
        names = [name for name, _ in self.patch_dims]
        known = len(set(names)) == len(names) and set(names) <= set(CONTINUOUS_MODALITIES)
        if not known or any(size < 1 for _, size in self.patch_dims):
            raise UserError(
                f"patch_dims={self.patch_dims} takes each of {', '.join(CONTINUOUS_MODALITIES)} at most once, "
                "with the numbers in a piece, at least 1"
            )
        divisible = self.head_dim_override or self.d_model % self.num_heads == 0
        if not divisible or self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_heads={self.num_heads} must divide d_model={self.d_model}, and num_kv_heads={self.num_kv_heads} "
                f"must divide num_heads={self.num_heads}"
            )
        learned = self.arch.position_encoding == "learned"
        if learned and (self.position_axes > 1 or self.patch_dims or not self.max_seq_len):
            raise UserError(
                f"learned positions are for text and take a context: not position_axes={self.position_axes}, "
                f"patch_dims={self.patch_dims}, max_seq_len={self.max_seq_len}"
            )
        if not learned and (self.head_dim % 2 or self.head_dim < 2 * self.position_axes):
            raise UserError(
                f"head width {self.head_dim} must be even and at least {2 * self.position_axes} "
                f"for rotary positions on {self.position_axes} axes"
            )
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"dtype={self.dtype} is not known; accepted are float32, bfloat16")
        if self.remat_policy not in REMAT_POLICIES:
            raise UserError(
                f"remat_policy={self.remat_policy} is not known; accepted are {', '.join(REMAT_POLICIES)}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one head (C)."""
        return self.head_dim_override or self.d_model // self.num_heads

    @property
    def uses_scan(self) -> bool:
        """Whether the layers run as a scan.

        Of unrolled ones XLA:CPU computes everything again as soon as it can, not as late, and
        holds as much as if all had been kept.
        """
        return self.scan_layers or self.remat_policy != "none"

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the streams: "tokens" first, if there are any, then the continuous ones."""
        return ("tokens",) * bool(self.vocab_size) + tuple(name for name, _ in self.patch_dims)

    def patch_dim(self, modality: str) -> int:
        """Numbers in one piece (P) of a continuous stream."""
        return dict(self.patch_dims)[modality]

    def check_length(self, length: int) -> None:
        """That an input of so many pieces fits the context.

        Raises:
          UserError: if it does not.
        """
        if self.max_seq_len and length > self.max_seq_len:
            raise UserError(
                f"an input of {length} pieces is over the context of {self.max_seq_len}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """A config from what `dataclasses.asdict` and JSON make of one.

        Raises:
          UserError: a value is of the wrong kind, or the model of another version of this.
        """
        return parse(cls, values, "a model")


def config_for_size(size: str, **overrides) -> ModelConfig:
    """A model from one dial: depth N gives width 32 N (64 at least), heads of 32 to 64.

    Args:
      size: one of nano, micro, tiny, small, base.
      **overrides: any field of `ModelConfig`.

    Raises:
      UserError: if the size is not on the dial.
    """
    if size not in _DIAL:
        raise UserError(f"size {size!r} is not known; accepted are {', '.join(_DIAL)}")
    depth = overrides.pop("depth", _DIAL[size])
    width = overrides.pop("width", max(64, (64 if depth > 4 else 32) * depth))
    heads = overrides.pop("heads", max(1, width // (64 if width >= 384 else 32)))
    derived = {"kv_heads": heads, "hidden": 4 * width, **overrides}
    return ModelConfig(num_layers=depth, d_model=width, num_heads=heads, **derived)


_LLAMA = ArchConfig(
    norm_scale=True,
    embedding_norm=False,
    qk_norm="none",
    activation="silu",
    gated_mlp=True,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
)
_SMALL_LLAMA = dataclasses.replace(
    _LLAMA, tie_embeddings=True, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192)
)

# GPT-2 (Radford et al. 2019) and the Llama 3 of 1B and 8B (Grattafiori et al. 2024; the smaller
# one's sizes are those of its config.json).
PUBLISHED_CONFIGS: dict[str, ModelConfig] = {
    "124m": ModelConfig(
        num_layers=12,
        d_model=768,
        num_heads=12,
        num_kv_heads=12,
        mlp_dim=3072,
        vocab_size=50257,
        max_seq_len=1024,
        norm_eps=1e-5,
        arch=ArchConfig(
            norm="layer",
            norm_scale=True,
            norm_bias=True,
            embedding_norm=False,
            qk_norm="none",
            use_bias="all",
            activation="gelu_tanh",
            position_encoding="learned",
            tie_embeddings=True,
        ),
    ),
    "1b": ModelConfig(
        num_layers=16,
        d_model=2048,
        num_heads=32,
        num_kv_heads=8,
        mlp_dim=8192,
        vocab_size=128256,
        max_seq_len=131072,
        rope_theta=500_000.0,
        norm_eps=1e-5,
        arch=_SMALL_LLAMA,
    ),
    "8b": ModelConfig(
        num_layers=32,
        d_model=4096,
        num_heads=32,
        num_kv_heads=8,
        mlp_dim=14336,
        vocab_size=128256,
        max_seq_len=131072,
        rope_theta=500_000.0,
        norm_eps=1e-5,
        arch=_LLAMA,
    ),
}
