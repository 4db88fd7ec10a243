"""Model families of Hugging Face: their config.json as `ModelConfig`, and back."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from fm.errors import UserError
from fm.hf import tensor_names
from fm.hf.config_reader import (
    ACTIVATIONS,
    ConfigReader,
    activation_name,
    layer_pattern,
    layer_types,
    refuse_own_code,
    rope_config,
)
from fm.model.config import ArchConfig, ModelConfig, RopeScaling
from fm.model.sizes import GPT2_ARCH, LLAMA_ARCH

# Models of text and images whose text model is read, and the family of that.
_TEXT_PARTS = {"gemma3": "gemma3_text"}
# Families of images and sounds, which `fm.hf.encoders` reads, and what they read.
ENCODER_MODALITIES = {
    "vit": "image",
    "dinov2": "image",
    "dinov2_with_registers": "image",
    "audio-spectrogram-transformer": "audio",
    "whisper": "audio",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """A Hugging Face model family (`model_type`): how its config.json and tensors map to fm's.

    Attributes:
      name: its `model_type`.
      architecture: class of `transformers` that a written folder names.
      causal: whether tokens attend to earlier ones only.
      prefix: of tensor names; written, optional when read; the head never has it.
      entries: its tensors, see `tensor_names`.
      buffers: regex of tensors that are computed, not learned; ignored.
      heads: regex of tensors without a place in `ModelConfig`; ignored, and listed to the reader.
      to_model_config: (config.json, names of all tensors) -> `ModelConfig`.
      to_hf_config: `ModelConfig` -> the keys of config.json that vary within the family.
    """

    name: str
    architecture: str
    causal: bool
    prefix: str
    entries: tuple[tensor_names.TensorSpec, ...]
    buffers: str
    heads: str
    to_model_config: Callable[[ConfigReader, Collection[str]], ModelConfig]
    to_hf_config: Callable[[ModelConfig], dict[str, Any]]


def _gpt2(config: ConfigReader, tensors: Collection[str]) -> ModelConfig:
    config.require("scale_attn_weights", True)
    config.require("scale_attn_by_inverse_layer_idx", False)
    config.require("add_cross_attention", False)
    d_model = config.size("n_embd")
    return ModelConfig(
        num_layers=config.size("n_layer"),
        d_model=d_model,
        num_heads=config.size("n_head"),
        num_kv_heads=config.size("n_head"),
        mlp_dim=config.size("n_inner", 4 * d_model),
        vocab_size=config.size("vocab_size"),
        max_seq_len=config.size("n_positions"),
        norm_eps=config.number("layer_norm_epsilon", 1e-5),
        arch=dataclasses.replace(
            GPT2_ARCH,
            activation=config.choice("activation_function", ACTIVATIONS, "gelu_new"),
            tie_embeddings=config.flag("tie_word_embeddings", True),
        ),
    )


def _gpt2_hf_config(model: ModelConfig) -> dict[str, Any]:
    return {
        "n_layer": model.num_layers,
        "n_embd": model.d_model,
        "n_head": model.num_heads,
        "n_inner": model.mlp_dim,
        "n_positions": model.max_seq_len,
        "layer_norm_epsilon": model.norm_eps,
        "activation_function": activation_name(model.arch.activation),
    }


def _llama(config: ConfigReader, tensors: Collection[str]) -> ModelConfig:
    attention, mlp = (config.flag(key, False) for key in ("attention_bias", "mlp_bias"))
    if mlp and not attention:
        raise UserError("config.json: mlp_bias without attention_bias is not supported")
    use_bias = "all" if mlp else "attention" if attention else "none"
    num_heads, d_model = config.size("num_attention_heads"), config.size("hidden_size")
    if d_model % num_heads:  # as `transformers` has it
        raise UserError(f"config.json: {num_heads} heads do not divide hidden_size={d_model}")
    num_layers = config.size("num_hidden_layers")
    if "sliding" in config.layer_kinds(num_layers, ()):
        raise UserError("config.json: sliding_attention in layer_types is not known of a llama")
    return _rotary(config, use_bias=use_bias, qk_norm="none")


def _mistral(config: ConfigReader, tensors: Collection[str]) -> ModelConfig:
    window = config.optional_size("sliding_window", 4096)
    kinds = ("sliding" if window else "full",) * config.size("num_hidden_layers")
    return _rotary(config, use_bias="none", qk_norm="none", kinds=kinds, window=window, kv_heads=8)


def _phi3(config: ConfigReader, tensors: Collection[str]) -> ModelConfig:
    given = config.values.get("sliding_window")
    window = 0 if given is None else config.size("sliding_window")
    kinds = ("sliding" if window else "full",) * config.size("num_hidden_layers")
    return _rotary(
        config, use_bias="none", qk_norm="none", kinds=kinds, window=window, norm_eps=1e-5
    )


def _mistral_hf_config(model: ModelConfig) -> dict[str, Any]:
    return _rotary_hf_config(model) | {"sliding_window": _window(model) or None}


def _llama_hf_config(model: ModelConfig) -> dict[str, Any]:
    bias = {"mlp_bias": model.arch.use_bias == "all"}
    return _rotary_hf_config(model) | _attention_bias(model) | bias


def _qwen2(config: ConfigReader, tensors: Collection[str]) -> ModelConfig:
    return _rotary(config, use_bias="qkv", qk_norm="none", **_qwen_windows(config))


def _qwen3(config: ConfigReader, tensors: Collection[str]) -> ModelConfig:
    use_bias = "attention" if config.flag("attention_bias", False) else "none"
    return _rotary(
        config,
        use_bias=use_bias,
        qk_norm="gain",
        head_dim=config.size("head_dim", 128),
        **_qwen_windows(config),
    )


def _qwen_windows(config: ConfigReader) -> dict[str, Any]:
    """The kinds of layers and the window: layers from `max_window_layers` on slide."""
    num_layers = config.size("num_hidden_layers")
    slides = config.flag("use_sliding_window", False)
    window = config.optional_size("sliding_window", 4096) if slides else 0
    first = config.values.get("max_window_layers", 28)
    if not isinstance(first, int) or isinstance(first, bool) or first < 0:
        raise UserError(f"config.json: max_window_layers={first!r} must be a whole number")
    first = min(first, num_layers) if window else num_layers
    kinds = config.layer_kinds(num_layers, ["full"] * first + ["sliding"] * (num_layers - first))
    return {"kinds": kinds, "window": window}


def _qwen2_hf_config(model: ModelConfig) -> dict[str, Any]:
    if not _window(model):
        return _rotary_hf_config(model)
    return _rotary_hf_config(model) | {
        "use_sliding_window": True,
        "sliding_window": _window(model),
        "layer_types": layer_types(model),
    }


def _attention_bias(model: ModelConfig) -> dict[str, Any]:
    return {"attention_bias": model.arch.use_bias in ("attention", "all")}


def _qwen3_hf_config(model: ModelConfig) -> dict[str, Any]:
    return _qwen2_hf_config(model) | _attention_bias(model)


def _rotary(
    config: ConfigReader,
    *,
    use_bias: str,
    qk_norm: str,
    head_dim: int | None = None,
    kinds: Sequence[str] = (),
    window: int = 0,
    kv_heads: int = 0,
    norm_eps: float = 1e-6,
) -> ModelConfig:
    """Llama and its successors."""
    num_layers, d_model = config.size("num_hidden_layers"), config.size("hidden_size")
    num_heads = config.size("num_attention_heads")
    kv_heads = config.optional_size("num_key_value_heads", kv_heads or num_heads) or num_heads
    head_dim = head_dim or config.size("head_dim", max(1, d_model // num_heads))
    theta, scaling = config.rope()
    return ModelConfig(
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=kv_heads,
        mlp_dim=config.size("intermediate_size"),
        vocab_size=config.size("vocab_size"),
        max_seq_len=config.size("max_position_embeddings"),
        rope_theta=theta,
        norm_eps=config.number("rms_norm_eps", norm_eps),
        head_dim_override=0 if head_dim * num_heads == d_model else head_dim,
        arch=dataclasses.replace(
            LLAMA_ARCH,
            qk_norm=qk_norm,
            use_bias=use_bias,
            activation=config.choice("hidden_act", ACTIVATIONS, "silu"),
            rope_scaling=scaling,
            tie_embeddings=config.flag("tie_word_embeddings", False),
            **_windows(kinds, window),
        ),
    )


def _windows(kinds: Sequence[str], window: int) -> dict[str, Any]:
    """The fields of `ArchConfig` of layers of these kinds."""
    if "sliding" not in kinds:
        return {}
    if not window:
        raise UserError("config.json: sliding_attention in layer_types needs a sliding_window")
    return {"layer_pattern": layer_pattern(kinds), "sliding_window": window}


def _window(model: ModelConfig) -> int:
    """The window of a model's sliding layers; 0 if it has none."""
    return model.arch.sliding_window if "sliding" in model.layer_kinds else 0


def _rotary_hf_config(model: ModelConfig) -> dict[str, Any]:
    return {
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.d_model,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "intermediate_size": model.mlp_dim,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.max_seq_len,
        "rms_norm_eps": model.norm_eps,
        "hidden_act": activation_name(model.arch.activation),
        **rope_config(model.rope_theta, model.arch.rope_scaling),
    }


def _gemma2(config: ConfigReader, tensors: Collection[str]) -> ModelConfig:
    num_layers = config.size("num_hidden_layers")
    alternating = ["full" if n % 2 else "sliding" for n in range(num_layers)]
    return _gemma(
        config,
        config.layer_kinds(num_layers, alternating),
        vocab_size=256_000,
        max_seq_len=8192,
        softcaps=(50.0, 30.0),
    )


def _gemma3(config: ConfigReader, tensors: Collection[str]) -> ModelConfig:
    num_layers = config.size("num_hidden_layers")
    period = config.size("sliding_window_pattern", 6)
    default = ["sliding" if (n + 1) % period else "full" for n in range(num_layers)]
    kinds = config.layer_kinds(num_layers, default)
    by_type = config.values.get("rope_parameters") or {}
    theta, scaling = config.rope("full_attention", 1_000_000.0)
    local_theta, local_scaling = config.number("rope_local_base_freq", 10_000.0), None
    if "sliding_attention" in by_type:
        own = ConfigReader({"rope_parameters": by_type})
        local_theta, local_scaling = own.rope("sliding_attention", local_theta)
    if local_scaling is not None:
        raise UserError("config.json: rope scaling of sliding_attention layers is not supported")
    model = _gemma(
        config,
        kinds,
        vocab_size=262_208,
        max_seq_len=131_072,
        qk_norm="gain",
        rope=(theta, scaling),
    )
    if "sliding" not in kinds:
        return model
    return dataclasses.replace(
        model, arch=dataclasses.replace(model.arch, local_rope_theta=local_theta)
    )


def _gemma(
    config: ConfigReader,
    kinds: Sequence[str],
    *,
    vocab_size: int,
    max_seq_len: int,
    softcaps: tuple[float, float] = (0.0, 0.0),
    qk_norm: str = "none",
    rope: tuple[float, RopeScaling | None] | None = None,
) -> ModelConfig:
    """What Gemma 2 and 3 share.

    Published files leave out what has its default: `vocab_size`, `max_seq_len` and `softcaps` (of
    attention scores, of logits) are those that differ.
    """
    config.require("use_bidirectional_attention", False)
    num_heads, d_model = config.size("num_attention_heads", 8), config.size("hidden_size")
    if d_model % num_heads:  # as `transformers` has it
        raise UserError(f"config.json: {num_heads} heads do not divide hidden_size={d_model}")
    head_dim = config.size("head_dim", 256)
    scalar = config.size("query_pre_attn_scalar", 256)
    theta, scaling = rope or config.rope()
    return ModelConfig(
        num_layers=config.size("num_hidden_layers"),
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=config.size("num_key_value_heads", 4),
        mlp_dim=config.size("intermediate_size"),
        vocab_size=config.size("vocab_size", vocab_size),
        max_seq_len=config.size("max_position_embeddings", max_seq_len),
        rope_theta=theta,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        head_dim_override=0 if head_dim * num_heads == d_model else head_dim,
        arch=dataclasses.replace(
            LLAMA_ARCH,
            qk_norm=qk_norm,
            use_bias="attention" if config.flag("attention_bias", False) else "none",
            activation=config.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
            rope_scaling=scaling,
            tie_embeddings=config.flag("tie_word_embeddings", True),
            attention_softcap=config.optional_number("attn_logit_softcapping", softcaps[0]),
            logit_softcap=config.optional_number("final_logit_softcapping", softcaps[1]),
            query_pre_attn_scalar=0 if scalar == head_dim else scalar,
            sandwich_norm=True,
            scale_embeddings=True,
            **_windows(kinds, config.optional_size("sliding_window", 4096)),
        ),
    )


def _gemma2_hf_config(model: ModelConfig) -> dict[str, Any]:
    arch, values = model.arch, _rotary_hf_config(model)
    values["hidden_activation"] = values.pop("hidden_act")
    return (
        values
        | _attention_bias(model)
        | {
            "attn_logit_softcapping": arch.attention_softcap or None,
            "final_logit_softcapping": arch.logit_softcap or None,
            "query_pre_attn_scalar": arch.query_pre_attn_scalar or model.head_dim,
            "sliding_window": _window(model) or None,
            "layer_types": layer_types(model),
        }
    )


def _gemma3_hf_config(model: ModelConfig) -> dict[str, Any]:
    local_theta = model.arch.local_rope_theta
    return _gemma2_hf_config(model) | ({"rope_local_base_freq": local_theta} if local_theta else {})


def _modernbert(config: ConfigReader, tensors: Collection[str]) -> ModelConfig:
    num_layers, d_model = config.size("num_hidden_layers"), config.size("hidden_size")
    period = config.size("global_attn_every_n_layers", 3)
    default = ["sliding" if n % period else "full" for n in range(num_layers)]
    kinds = config.layer_kinds(num_layers, default)
    attention, mlp = (config.flag(key, False) for key in ("attention_bias", "mlp_bias"))
    if mlp and not attention:
        raise UserError("config.json: mlp_bias without attention_bias is not supported")
    theta, local_theta = (
        _modernbert_theta(config, layer_type, key, default_theta)
        for layer_type, key, default_theta in (
            ("full_attention", "global_rope_theta", 160_000.0),
            ("sliding_attention", "local_rope_theta", 10_000.0),
        )
    )
    slides = "sliding" in kinds
    return ModelConfig(
        num_layers=num_layers,
        d_model=d_model,
        num_heads=config.size("num_attention_heads"),
        num_kv_heads=config.size("num_attention_heads"),
        mlp_dim=config.size("intermediate_size"),
        vocab_size=config.size("vocab_size"),
        max_seq_len=config.size("max_position_embeddings"),
        rope_theta=theta,
        norm_eps=config.number("norm_eps", 1e-5),
        arch=ArchConfig(
            norm="layer",
            norm_scale=True,
            norm_bias=config.flag("norm_bias", False),
            embedding_norm=True,
            qk_norm="none",
            use_bias="all" if mlp else "attention" if attention else "none",
            activation=config.choice("hidden_activation", ACTIVATIONS, "gelu"),
            gated_mlp=True,
            tie_embeddings=True,
            local_rope_theta=local_theta if slides else 0.0,
            first_attention_norm=False,
            # The window is both ways, and half of it lies on each side.
            **_windows(kinds, config.size("local_attention", 128) // 2 + 1),
        ),
    )


def _modernbert_theta(config: ConfigReader, layer_type: str, key: str, default: float) -> float:
    """The RoPE base of a type of layers, from `rope_parameters` or the older key."""
    given = config.values.get("rope_parameters") or {}
    if config.values.get("rope_scaling"):
        raise UserError("config.json: rope_scaling of modernbert is not supported")
    own = ConfigReader({"rope_parameters": given, "rope_theta": config.number(key, default)})
    theta, scaling = own.rope(layer_type)
    if scaling is not None:
        raise UserError("config.json: rope scaling of modernbert is not supported")
    return theta


def _modernbert_hf_config(model: ModelConfig) -> dict[str, Any]:
    arch = model.arch
    return _attention_bias(model) | {
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.d_model,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.mlp_dim,
        "max_position_embeddings": model.max_seq_len,
        "norm_eps": model.norm_eps,
        "norm_bias": arch.norm_bias,
        "mlp_bias": arch.use_bias == "all",
        "hidden_activation": activation_name(arch.activation),
        "global_rope_theta": model.rope_theta,
        "layer_types": layer_types(model),
        **(
            {
                "local_rope_theta": arch.local_rope_theta,
                "local_attention": 2 * (_window(model) - 1),
            }
            if _window(model)
            else {}
        ),
    }


def _bert(config: ConfigReader, tensors: Collection[str]) -> ModelConfig:
    config.require("position_embedding_type", "absolute")
    config.require("is_decoder", False)
    config.require("add_cross_attention", False)
    return ModelConfig(
        num_layers=config.size("num_hidden_layers"),
        d_model=config.size("hidden_size"),
        num_heads=config.size("num_attention_heads"),
        num_kv_heads=config.size("num_attention_heads"),
        mlp_dim=config.size("intermediate_size"),
        vocab_size=config.size("vocab_size"),
        max_seq_len=config.size("max_position_embeddings"),
        norm_eps=config.number("layer_norm_eps", 1e-12),
        arch=dataclasses.replace(
            GPT2_ARCH,
            embedding_norm=True,
            post_norm=True,
            final_norm=False,
            activation=config.choice("hidden_act", ACTIVATIONS, "gelu"),
            num_token_types=config.size("type_vocab_size", 2),
            pooler="pooler.dense.weight" in tensors,
        ),
    )


def _bert_hf_config(model: ModelConfig) -> dict[str, Any]:
    return {
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.d_model,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.mlp_dim,
        "max_position_embeddings": model.max_seq_len,
        "type_vocab_size": model.arch.num_token_types,
        "layer_norm_eps": model.norm_eps,
        "hidden_act": activation_name(model.arch.activation),
    }


# A regex that no name matches.
_NONE = r"(?!)"


def _decoder(
    name: str,
    architecture: str,
    to_model_config: Any,
    to_hf_config: Any,
    entries: tuple[tensor_names.TensorSpec, ...] = tensor_names.LLAMA,
    prefix: str = "model.",
    buffers: str = r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    heads: str = _NONE,
    causal: bool = True,
) -> Family:
    return Family(
        name, architecture, causal, prefix, entries, buffers, heads, to_model_config, to_hf_config
    )


_encoder = functools.partial(_decoder, causal=False)

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        _decoder(
            *("gpt2", "GPT2LMHeadModel", _gpt2, _gpt2_hf_config, tensor_names.GPT2),
            prefix="transformer.",
            buffers=r"h\.\d+\.attn\.(masked_)?bias",
        ),
        _decoder("llama", "LlamaForCausalLM", _llama, _llama_hf_config),
        _decoder("qwen2", "Qwen2ForCausalLM", _qwen2, _qwen2_hf_config),
        _decoder("qwen3", "Qwen3ForCausalLM", _qwen3, _qwen3_hf_config),
        _decoder("mistral", "MistralForCausalLM", _mistral, _mistral_hf_config),
        _decoder("phi3", "Phi3ForCausalLM", _phi3, _mistral_hf_config, tensor_names.PHI3),
        _decoder("gemma2", "Gemma2ForCausalLM", _gemma2, _gemma2_hf_config, tensor_names.GEMMA),
        _decoder(
            *("gemma3_text", "Gemma3ForCausalLM", _gemma3, _gemma3_hf_config, tensor_names.GEMMA),
            heads=r"(vision_tower|multi_modal_projector)\..*",
        ),
        _encoder(
            *("bert", "BertModel", _bert, _bert_hf_config, tensor_names.BERT),
            prefix="bert.",
            buffers=r"embeddings\.position_ids",
            heads=r"cls\..*",
        ),
        _encoder(
            *("modernbert", "ModernBertModel", _modernbert, _modernbert_hf_config),
            entries=tensor_names.MODERNBERT,
            buffers=_NONE,
            heads=r"(head|decoder|classifier)\..*",
        ),
    )
}


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the part of a config.json that describes the text model, mostly the whole.

    A model of text and images that is known (`_TEXT_PARTS`) has it in `text_config`.
    """
    name, part = config.get("model_type"), config.get("text_config")
    if name not in _TEXT_PARTS:
        return config
    if not isinstance(part, Mapping):
        raise UserError(f"config.json: text_config={part!r} must be an object")
    return {**part, "model_type": _TEXT_PARTS[name]}


def family_of(config: Mapping[str, Any]) -> Family:
    """Returns the `Family` that the `model_type` of a config.json names, of text (see `text_part`).

    Raises:
      UserError: an unknown family (lists the known ones), custom code or quantized tensors.
    """
    name = text_part(config).get("model_type")
    if isinstance(name, str) and name in ENCODER_MODALITIES:
        raise UserError(
            f"config.json: model_type={name!r} is an encoder of {ENCODER_MODALITIES[name]} data; "
            f"text is read by {', '.join(FAMILIES)}"
        )
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(
            f"config.json: model_type={name!r} is not a known family; known are "
            f"{', '.join(FAMILIES)}"
        )
    refuse_own_code(config)
    return FAMILIES[name]
