"""Named architectures and sizes of models, those of published models among them."""

from __future__ import annotations

import dataclasses
from typing import Any

from fm.errors import UserError
from fm.model.config import ArchConfig, ModelConfig, RopeScaling

# More layers than this run as a scan by default: unrolled, they compile for minutes.
_MAX_UNROLLED_LAYERS = 12
# Architectures that `transformers` has: GPT-2's (Radford et al. 2019) and Llama's (Touvron et al.
# 2023).
GPT2_ARCH = ArchConfig(
    norm="layer",
    norm_scale=True,
    norm_bias=True,
    embedding_norm=False,
    qk_norm="none",
    use_bias="all",
    activation="gelu_tanh",
    position_encoding="learned",
    tie_embeddings=True,
)
LLAMA_ARCH = ArchConfig(
    norm_scale=True,
    embedding_norm=False,
    qk_norm="none",
    activation="silu",
    gated_mlp=True,
)
# Those that can be asked for by name: fm's own and Llama's.
ARCHS: dict[str, ArchConfig] = {"fm": ArchConfig(), "llama": LLAMA_ARCH}


@dataclasses.dataclass(frozen=True)
class _Shape:
    """Sizes of a model, of GPT-2's shape (MHA, plain MLP of 4 D) unless said otherwise."""

    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int = 0
    mlp_dim: int = 0
    gated_mlp: bool = False


# Small ones of fm; GPT-2's three (Radford et al. 2019, table 2); Llama 3.2's 1B and 3B (their
# config.json) and Llama 3's 8B (Grattafiori et al. 2024, table 3). Heads are 64 wide or more, as
# the kernels of accelerators want them, but in models of 64 themselves, which have two of 32.
_SHAPES: dict[str, _Shape] = {
    "nano": _Shape(1, 64, 2),
    "micro": _Shape(2, 64, 2),
    "tiny": _Shape(4, 128, 2),
    "small": _Shape(6, 384, 6),
    "base": _Shape(12, 768, 12),
    "124m": _Shape(12, 768, 12),
    "355m": _Shape(24, 1024, 16),
    "774m": _Shape(36, 1280, 20),
    "1b": _Shape(16, 2048, 32, 8, 8192, gated_mlp=True),
    "3b": _Shape(28, 3072, 24, 8, 8192, gated_mlp=True),
    "8b": _Shape(32, 4096, 32, 8, 14336, gated_mlp=True),
}
# Other names of sizes, by which papers and other trainers call them.
SIZE_ALIASES = {
    "gpt2-124m": "124m",
    "gpt2-355m": "355m",
    "gpt2-774m": "774m",
    "gpt2-medium": "355m",
    "350m": "355m",
}
SIZES = tuple(_SHAPES)


def config_for_size(size: str, arch: str = "fm", **overrides: Any) -> ModelConfig:
    """Returns the ModelConfig of a named size and architecture, with overrides.

    Args:
      size: one of `SIZES` or `SIZE_ALIASES`.
      arch: one of `ARCHS`. The MLP is as large as the size's in parameters, whether or not the
        architecture's has a gate.
      **overrides: fields of `ModelConfig`.

    Raises:
      UserError: unknown size or architecture.
    """
    shape = _SHAPES.get(canonical_size(size))
    if shape is None:
        raise UserError(f"size {size!r} is unknown; accepted are {describe_sizes()}")
    num_layers = overrides.pop("num_layers", shape.num_layers)
    d_model = overrides.pop("d_model", shape.d_model)
    num_heads = overrides.pop("num_heads", shape.num_heads)
    config = ModelConfig(
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=overrides.pop("num_kv_heads", shape.num_kv_heads or num_heads),
        mlp_dim=overrides.pop("mlp_dim", shape.mlp_dim or 4 * d_model),
        scan_layers=overrides.pop("scan_layers", num_layers > _MAX_UNROLLED_LAYERS),
        arch=ArchConfig(gated_mlp=shape.gated_mlp),
        **overrides,
    )
    return with_arch(config, arch)


def canonical_size(size: str) -> str:
    """Returns the name of a size in `SIZES`, given that or another name of it."""
    return SIZE_ALIASES.get(size, size)


def with_arch(config: ModelConfig, arch: str) -> ModelConfig:
    """Returns the config with a named architecture and an MLP of as many parameters.

    A gated MLP has three kernels instead of two, so its width is two thirds, rounded to a multiple
    of 8 (Shazeer 2020).

    Raises:
      UserError: unknown architecture.
    """
    if arch not in ARCHS:
        raise UserError(f"arch {arch!r} is unknown; accepted are {', '.join(ARCHS)}")
    new, mlp_dim = ARCHS[arch], config.mlp_dim
    if new.gated_mlp != config.arch.gated_mlp:
        ratio = 2 / 3 if new.gated_mlp else 3 / 2
        mlp_dim = max(8, 8 * round(ratio * mlp_dim / 8))
    return dataclasses.replace(config, mlp_dim=mlp_dim, arch=new)


def num_layer_params(config: ModelConfig) -> int:
    """Returns the number of parameters of all layers, without embeddings and output heads."""
    D, C, arch = config.d_model, config.head_dim, config.arch
    q, kv = config.num_heads * C, config.num_kv_heads * C
    outputs = {
        **{"query": q, "key": kv, "value": kv, "attention_out": D},
        **{name: config.mlp_dim for name in ("up", *["gate"] * arch.gated_mlp)},
        "down": D,
    }
    inputs = {"attention_out": q, "down": config.mlp_dim}
    kernels = sum(inputs.get(name, D) * width for name, width in outputs.items())
    biases = sum(width for name, width in outputs.items() if arch.has_bias(name))
    num_norms = 4 if arch.sandwich_norm else 2
    norms = num_norms * D * (arch.norm_scale + arch.norm_bias) + 2 * C * (arch.qk_norm == "gain")
    return config.num_layers * (kernels + biases + norms)


def describe_sizes() -> str:
    """Returns all sizes with their layer parameters, such as `nano (49 k), ..., 8b (7.0 B)`.

    Other names of a size stand beside it: `124m or gpt2-124m (85 M)`.
    """
    described = []
    for size in SIZES:
        names = [size, *(alias for alias, of in SIZE_ALIASES.items() if of == size)]
        count = format_count(num_layer_params(config_for_size(size)))
        described.append(f"{' or '.join(names)} ({count})")
    return ", ".join(described)


def format_count(count: float) -> str:
    """Returns a number of parameters with two digits or more, such as 49 k, 7.1 M or 8.0 B."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:.1f}{unit}" if value < 9.95 else f"{value:.0f}{unit}"
    return f"{count:.0f}"


def _gpt2(size: str) -> ModelConfig:
    base = config_for_size(size, vocab_size=50257, max_seq_len=1024, norm_eps=1e-5)
    return dataclasses.replace(base, arch=GPT2_ARCH, scan_layers=False)


def _llama3(size: str, rope_factor: float, *, tie_embeddings: bool) -> ModelConfig:
    rope_scaling = RopeScaling(rope_factor, 1.0, 4.0, 8192)
    arch = dataclasses.replace(LLAMA_ARCH, rope_scaling=rope_scaling, tie_embeddings=tie_embeddings)
    base = config_for_size(
        size,
        "llama",
        vocab_size=128256,
        max_seq_len=131072,
        rope_theta=500_000.0,
        norm_eps=1e-5,
    )
    return dataclasses.replace(base, arch=arch, scan_layers=False)


# Configs of published sizes, to plan with (no weights): GPT-2's and Llama 3's.
PUBLISHED_CONFIGS: dict[str, ModelConfig] = {
    **{size: _gpt2(size) for size in ("124m", "355m", "774m")},
    "1b": _llama3("1b", 32.0, tie_embeddings=True),
    "3b": _llama3("3b", 32.0, tie_embeddings=True),
    "8b": _llama3("8b", 8.0, tie_embeddings=False),
}
