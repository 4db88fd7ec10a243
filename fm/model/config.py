"""Model configuration: the architecture's options and the sizes of one model."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from fm import config_io
from fm.errors import UserError

# Named arrays: parameters, inputs or outputs.
Arrays = dict[str, jax.Array]
# The built-in modalities whose tokens are continuous patches.
CONTINUOUS_MODALITIES = ("image", "audio", "video")
# Of matrix products and activations.
DTYPES = ("float32", "bfloat16")
# What a layer saves for its backward pass, from everything to the least.
REMAT_POLICIES = ("none", "dots", "attention", "full")
_ARCH_CHOICES = {
    "norm": ("rms", "layer"),
    "qk_norm": ("none", "plain", "gain"),
    "use_bias": ("none", "qkv", "attention", "all"),
    "activation": ("relu2", "gelu", "gelu_tanh", "silu"),
    "position_encoding": ("rotary", "learned"),
}
# What a layer attends to: all tokens, or those within `ArchConfig.sliding_window`.
LAYER_KINDS = ("full", "sliding")
_ROPE_TYPES = ("llama3", "linear", "yarn")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """A scaling of RoPE frequencies for longer inputs.

    "llama3" (Llama Team 2024): wavelengths longer than `original_max_seq_len / low_freq_factor`
    grow by `factor`, those shorter than `original_max_seq_len / high_freq_factor` stay unchanged,
    and those in between are interpolated. "linear" (Chen et al. 2023): all grow by `factor`. "yarn"
    (Peng et al. 2023, sec. 3.2): those that turn fewer than `beta_slow` times within
    `original_max_seq_len` grow by `factor`, those that turn more than `beta_fast` times stay
    unchanged, and a linear ramp over the channel pairs lies in between.

    Attributes:
      factor: of the wavelengths.
      low_freq_factor: of "llama3".
      high_freq_factor: of "llama3".
      original_max_seq_len: input length in tokens of the first pretraining stage; not read by
        "linear".
      rope_type: "llama3", "linear" or "yarn".
      beta_fast: of "yarn".
      beta_slow: of "yarn".
      attention_factor: of the cosines and sines, so its square multiplies the scores.
      truncate: whether the ramp of "yarn" starts and ends at whole channel pairs.
    """

    ADDED_FIELDS: ClassVar[tuple[str, ...]] = (
        *("rope_type", "beta_fast", "beta_slow"),
        *("attention_factor", "truncate"),
    )

    RENAMED_FIELDS: ClassVar[dict[str, str]] = {
        "low": "low_freq_factor",
        "high": "high_freq_factor",
        "context": "original_max_seq_len",
    }

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192
    rope_type: str = "llama3"
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True

    def __post_init__(self):
        if self.rope_type not in _ROPE_TYPES:
            raise UserError(
                f"rope scaling: rope_type={self.rope_type!r} is unknown; accepted are "
                f"{', '.join(_ROPE_TYPES)}"
            )
        if not 0 < self.beta_slow < self.beta_fast or self.attention_factor <= 0:
            raise UserError(
                f"rope scaling: beta_slow={self.beta_slow} must be above 0, beta_fast="
                f"{self.beta_fast} above it, and attention_factor={self.attention_factor} above 0"
            )
        positive = min(self.factor, self.low_freq_factor, self.original_max_seq_len) > 0
        if not positive or self.high_freq_factor <= self.low_freq_factor:
            raise UserError(
                f"rope scaling: factor={self.factor}, low_freq_factor={self.low_freq_factor} and "
                f"original_max_seq_len={self.original_max_seq_len} must be above 0, and "
                f"high_freq_factor={self.high_freq_factor} above low_freq_factor"
            )

    def __call__(self, frequencies: jax.Array, theta: float) -> jax.Array:
        """Returns the scaled frequencies theta ** (-c / (C/2)) of all channel pairs c."""
        if self.rope_type == "linear":
            return frequencies / self.factor
        if self.rope_type == "yarn":
            scaled = self._yarn_ramp(len(frequencies), theta)
            return frequencies * (1.0 - scaled + scaled / self.factor)
        wavelengths_in_input = frequencies * self.original_max_seq_len / (2.0 * math.pi)
        unscaled = jnp.clip(
            (wavelengths_in_input - self.low_freq_factor)
            / (self.high_freq_factor - self.low_freq_factor),
            0.0,
            1.0,
        )
        return frequencies * (unscaled + (1.0 - unscaled) / self.factor)

    def _yarn_ramp(self, pairs: int, theta: float) -> jax.Array:
        """Returns which part of each channel pair's frequency is scaled, from 0 to 1."""

        def pair_of(turns: float) -> float:
            wavelength_ratio = self.original_max_seq_len / (2.0 * math.pi * turns)
            return pairs * math.log(wavelength_ratio) / math.log(theta)

        first, last = pair_of(self.beta_fast), pair_of(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        # As in the reference implementation, the upper bound is that of channels, not of pairs.
        first, last = max(first, 0), min(last, 2 * pairs - 1)
        width = last - first or 0.001
        return jnp.clip((jnp.arange(pairs, dtype=jnp.float32) - first) / width, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class ArchConfig:
    """Architecture options of a transformer other than its sizes: norms, biases, MLP, positions.

    Attributes:
      norm: "rms" (Zhang & Sennrich 2019) or "layer" (Ba et al. 2016).
      norm_scale: norms have a learned scale.
      norm_bias: norms have a learned bias; requires `norm_scale`.
      post_norm: normalize each residual sum (BERT) instead of each block's input.
      embedding_norm: normalize the input of the first layer.
      final_norm: normalize the output of the last layer.
      qk_norm: RMS norm of queries and keys: "none", "plain", or with a learned scale ("gain",
        Qwen3).
      use_bias: linear maps with a bias: "none", "qkv", "attention" (qkv and the output projection)
        or "all".
      activation: "relu2" (So et al. 2021), "gelu" (exact), "gelu_tanh" (GPT-2) or "silu".
      gated_mlp: multiply the activation by a second linear map (Shazeer 2020, eq. 6).
      position_encoding: "rotary", which pairs channels (c, c + C/2), or "learned" embeddings,
        `ModelConfig.max_seq_len` of them.
      rope_scaling: scaling of rotary frequencies, or None.
      tie_embeddings: use the token embedding as the output projection.
      num_token_types: rows of the token type embedding (BERT's sentences A and B); 0 for none.
      pooler: tanh layer over the first token (BERT), read by `embeddings.pooled_output` only.
      layer_pattern: what the layers attend to, repeated over them: "full", or "sliding" for tokens
        within `sliding_window`.
      sliding_window: a query of a sliding layer sees keys fewer than this many positions away, its
        own included; not read if no layer slides.
      local_rope_theta: base of the rotary frequencies of sliding layers, which are then not scaled
        (Gemma 3); 0 to rotate them like the others.
      attention_softcap: attention scores become `cap * tanh(scores / cap)` (Gemma 2); 0 for none.
      logit_softcap: the same of the logits of text tokens.
      query_pre_attn_scalar: attention scores are divided by its square root; 0 for head_dim.
      sandwich_norm: normalize each block's output too, before it is added to the residual (Gemma 2;
        Ding et al. 2021, sec. 2.4).
      scale_embeddings: multiply token embeddings by sqrt(d_model) (Vaswani et al. 2017, sec. 3.4).
      first_attention_norm: normalize the input of the first layer's attention; False where an
        embedding norm precedes it (ModernBERT). Requires `norm_scale`.
    """

    ADDED_FIELDS: ClassVar[tuple[str, ...]] = (
        *("layer_pattern", "sliding_window", "local_rope_theta", "attention_softcap"),
        *("logit_softcap", "query_pre_attn_scalar", "sandwich_norm", "scale_embeddings"),
        "first_attention_norm",
    )
    RENAMED_FIELDS: ClassVar[dict[str, str]] = {
        "gain": "norm_scale",
        "shift": "norm_bias",
        "biases": "use_bias",
        "gated": "gated_mlp",
        "positions": "position_encoding",
        "tied": "tie_embeddings",
        "token_types": "num_token_types",
    }

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
    layer_pattern: tuple[str, ...] = ("full",)
    sliding_window: int = 0
    local_rope_theta: float = 0.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    query_pre_attn_scalar: int = 0
    sandwich_norm: bool = False
    scale_embeddings: bool = False
    first_attention_norm: bool = True

    def __post_init__(self):
        for name, accepted in _ARCH_CHOICES.items():
            if getattr(self, name) not in accepted:
                raise UserError(
                    f"{name}={getattr(self, name)!r} is unknown; accepted are {', '.join(accepted)}"
                )
        if self.norm_bias and not self.norm_scale:
            raise UserError("norm_bias=True requires norm_scale=True")
        if self.rope_scaling and self.position_encoding != "rotary":
            raise UserError(
                f"rope_scaling requires position_encoding='rotary', not {self.position_encoding!r}"
            )
        if self.num_token_types < 0:
            raise UserError(f"num_token_types={self.num_token_types} must be at least 0")
        self._check_windows()
        for name in ("attention_softcap", "logit_softcap", "query_pre_attn_scalar"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name}={getattr(self, name)} must be at least 0; 0 is none")
        if self.sandwich_norm and self.post_norm:
            raise UserError("sandwich_norm=True requires post_norm=False")
        if not self.first_attention_norm and (self.post_norm or not self.norm_scale):
            raise UserError(
                "first_attention_norm=False requires norm_scale=True and post_norm=False"
            )

    def _check_windows(self) -> None:
        if not self.layer_pattern or set(self.layer_pattern) - set(LAYER_KINDS):
            raise UserError(
                f"layer_pattern={self.layer_pattern}: takes one or more of {', '.join(LAYER_KINDS)}"
            )
        slides = "sliding" in self.layer_pattern
        if self.sliding_window < slides:
            raise UserError(
                f"sliding_window={self.sliding_window} must be at least {int(slides)} with "
                f"layer_pattern={','.join(self.layer_pattern)}; set sliding_window first"
            )
        learned = self.position_encoding == "learned"
        if self.local_rope_theta < 0 or (self.local_rope_theta and learned):
            raise UserError(
                f"local_rope_theta={self.local_rope_theta} must be at least 0, and 0 where "
                "position_encoding is 'learned'"
            )

    def has_bias(self, name: str) -> bool:
        """Returns whether a layer's linear map `name` has a bias."""
        covered = {
            "none": (),
            "qkv": ("query", "key", "value"),
            "attention": ("query", "key", "value", "attention_out"),
        }
        return self.use_bias == "all" or name in covered[self.use_bias]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes, modalities, architecture options and compute dtype of a transformer.

    Attributes:
      num_layers: layers (N).
      d_model: residual width (D).
      num_heads: query heads (H).
      num_kv_heads: key/value heads (K); divides `num_heads`.
      mlp_dim: MLP width (F).
      vocab_size: text vocabulary (V); 0 for a model without text.
      patch_dims: continuous modalities with the numbers per patch (P), such as
        (("image", 16), ("audio", 80)).
      position_axes: axes of a position (A): 1 for text and audio, 2 for images (row, column), 3 for
        video (time, row, column) and for models of all modalities.
      num_mixtures: components of the Gaussian-mixture head (M).
      rope_theta: base of the rotary frequencies.
      norm_eps: added to the variance in norms.
      scan_layers: run the layers as one `lax.scan` (compiles fast) or unrolled (faster on a CPU).
      dtype: of activations and matrix products. Parameters stay float32 in training; a model that
        is only read may hold them in bfloat16.
      attention: implementation name, or None for the fastest correct one.
      head_dim_override: head width (C) where it is not d_model / num_heads; 0 where it is.
      max_seq_len: longest input in tokens; 0 for no limit.
      arch: architecture options.
      remat_policy: what a layer saves for its backward pass: everything ("none"), products with
        kernels ("dots"), inputs and outputs of attention ("attention"), or its input ("full").
        Any policy other than "none" implies `scan_layers`.
    """

    RENAMED_FIELDS: ClassVar[dict[str, str]] = {
        "depth": "num_layers",
        "width": "d_model",
        "heads": "num_heads",
        "kv_heads": "num_kv_heads",
        "hidden": "mlp_dim",
        "vocab": "vocab_size",
        "continuous": "patch_dims",
        "axes": "position_axes",
        "mixtures": "num_mixtures",
        "rope_base": "rope_theta",
        "scan": "scan_layers",
        "head_dim": "head_dim_override",
        "context": "max_seq_len",
        "style": "arch",
        "remat": "remat_policy",
    }

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
        positive = (
            *("d_model", "num_heads", "num_kv_heads", "mlp_dim"),
            *("position_axes", "num_mixtures"),
        )
        non_negative = ("num_layers", "vocab_size", "head_dim_override", "max_seq_len")
        for names, least in ((positive, 1), (non_negative, 0)):
            for name in names:
                if getattr(self, name) < least:
                    raise UserError(f"{name}={getattr(self, name)} must be at least {least}")
        names = [name for name, _ in self.patch_dims]
        distinct = len(set(names)) == len(names) and not set(names) & {"token", "tokens", "text"}
        if not distinct or any(size < 1 for _, size in self.patch_dims):
            raise UserError(
                f"patch_dims={self.patch_dims}: takes modalities other than text, such as "
                f"{', '.join(CONTINUOUS_MODALITIES)}, each at most once, with the numbers per "
                "patch, at least 1"
            )
        divisible = self.head_dim_override or self.d_model % self.num_heads == 0
        if not divisible or self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_heads={self.num_heads} must divide d_model={self.d_model}, and "
                f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}"
            )
        learned = self.arch.position_encoding == "learned"
        if learned and (self.position_axes > 1 or not self.max_seq_len):
            raise UserError(
                "learned positions require text or a raster of patches, and a max_seq_len; got "
                f"position_axes={self.position_axes}, max_seq_len={self.max_seq_len}"
            )
        if not learned and (self.head_dim % 2 or self.head_dim < 2 * self.position_axes):
            raise UserError(
                f"head_dim={self.head_dim} must be even and at least {2 * self.position_axes} "
                f"for rotary positions on {self.position_axes} axes"
            )
        if self.dtype not in DTYPES:
            accepted = ", ".join(DTYPES)
            raise UserError(f"dtype={self.dtype} is unknown; accepted are {accepted}")
        if self.remat_policy not in REMAT_POLICIES:
            raise UserError(
                f"remat_policy={self.remat_policy} is unknown; "
                f"accepted are {', '.join(REMAT_POLICIES)}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one head (C)."""
        return self.head_dim_override or self.d_model // self.num_heads

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """What each layer attends to, "full" or "sliding": `arch.layer_pattern`, repeated."""
        pattern = self.arch.layer_pattern
        return tuple(pattern[n % len(pattern)] for n in range(self.num_layers))

    @property
    def uses_scan(self) -> bool:
        """Whether the layers run as a scan.

        With unrolled layers XLA:CPU schedules the recomputation of a remat policy as early as
        possible, so it saves no memory.
        """
        return self.scan_layers or self.remat_policy != "none"

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities: "tokens" first if there is text, then the continuous ones."""
        return ("tokens",) * bool(self.vocab_size) + tuple(name for name, _ in self.patch_dims)

    def patch_dim(self, modality: str) -> int:
        """Returns the numbers per patch (P) of a continuous modality."""
        return dict(self.patch_dims)[modality]

    def check_length(self, length: int) -> None:
        """Raises UserError if an input of `length` tokens exceeds `max_seq_len`."""
        if self.max_seq_len and length > self.max_seq_len:
            raise UserError(
                f"an input of {length} tokens exceeds the model's max_seq_len of {self.max_seq_len}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Builds a config from its JSON dictionary; field names before the renaming are accepted.

        Raises:
          UserError: a value has the wrong type or a field is missing or unknown.
        """
        return config_io.parse(cls, values, "model config")
