"""Model families of Hugging Face: their config.json as `ModelConfig`, and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from fm.errors import UserError
from fm.hf import tensor_names
from fm.model.config import ArchConfig, ModelConfig, RopeScaling

# Of several names for one activation the first is written.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu2": "relu2",
}


class ConfigReader:
    """Reads typed, checked values from a Hugging Face config.json; a bad value is a `UserError`.

    A key that is absent or null takes the default; without a default it is an error.
    """

    def __init__(self, values: Mapping[str, Any]):
        self.values = values

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise UserError(f"config.json lacks {key}")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """Returns a key's value, an integer of at least 1."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"config.json: {key}={value!r} must be a whole number of at least 1")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a key's value, a finite number above 0."""
        value = self._value(key, default)
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not numeric or not math.isfinite(value) or value <= 0:
            raise UserError(f"config.json: {key}={value!r} must be a number over 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Returns a key's value, a boolean."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise UserError(f"config.json: {key}={value!r} must be true or false")
        return value

    def choice(self, key: str, accepted: Mapping[str, str], default: str) -> str:
        """Returns what `accepted` maps a key's value to."""
        value = self._value(key, default)
        if not isinstance(value, str) or value not in accepted:
            raise UserError(
                f"config.json: {key}={value!r} is not known; accepted are {', '.join(accepted)}"
            )
        return accepted[value]

    def require(self, key: str, value: Any) -> None:
        """Raises UserError if a key is present with a value other than the supported one."""
        given = self.values.get(key)
        if given is not None and given != value:
            raise UserError(f"config.json: {key}={given!r} is not supported, only {value!r} is")

    def check_full_attention(self, num_layers: int) -> None:
        """Raises UserError if a layer uses sliding-window attention."""
        types = self.values.get("layer_types")
        if types is None:
            windowed = self.flag("use_sliding_window", False) and self.values.get("sliding_window")
            first = self._value("max_window_layers", 28)
            if not isinstance(first, int):
                raise UserError(f"config.json: max_window_layers={first!r} must be a whole number")
            types = ["sliding_attention"] if windowed and first < num_layers else []
        for layer_type in types:
            if layer_type != "full_attention":
                raise UserError(
                    f"config.json: a layer of {layer_type!r} is not supported, only "
                    "full_attention is"
                )

    def rope(self) -> tuple[float, RopeScaling | None]:
        """Returns RoPE theta and scaling, from `rope_parameters` or the older keys.

        The older spelling is `rope_theta` and `rope_scaling`.
        """
        self.require("partial_rotary_factor", 1.0)
        given = self.values.get("rope_parameters") or self.values.get("rope_scaling") or {}
        if not isinstance(given, Mapping):
            raise UserError(f"config.json: rope_parameters={given!r} must be an object")
        rope = ConfigReader(given)
        rope.require("partial_rotary_factor", 1.0)
        theta = (rope if "rope_theta" in given else self).number("rope_theta", 10_000.0)
        rope_type = given.get("rope_type", given.get("type", "default"))
        if rope_type == "default":
            return theta, None
        if rope_type != "llama3":
            raise UserError(
                f"config.json: rope scaling {rope_type!r} is not supported; accepted are default, "
                "llama3"
            )
        return theta, RopeScaling(
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_max_seq_len=rope.size("original_max_position_embeddings"),
        )


def rope_config(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """Returns the config.json keys `rope_theta` and `rope_scaling` of a RoPE base and scaling."""
    if scaling is None:
        return {"rope_theta": theta}
    return {
        "rope_theta": theta,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len,
        },
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
        arch=ArchConfig(
            norm="layer",
            norm_scale=True,
            norm_bias=True,
            embedding_norm=False,
            qk_norm="none",
            use_bias="all",
            activation=config.choice("activation_function", _ACTIVATIONS, "gelu_new"),
            position_encoding="learned",
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
        "activation_function": _activation_name(model.arch.activation),
    }


def _llama(config: ConfigReader, tensors: Collection[str]) -> ModelConfig:
    attention, mlp = (config.flag(key, False) for key in ("attention_bias", "mlp_bias"))
    if mlp and not attention:
        raise UserError("config.json: mlp_bias without attention_bias is not supported")
    use_bias = "all" if mlp else "attention" if attention else "none"
    num_heads, d_model = config.size("num_attention_heads"), config.size("hidden_size")
    if d_model % num_heads:  # as `transformers` has it
        raise UserError(f"config.json: {num_heads} heads do not divide hidden_size={d_model}")
    return _rotary(config, use_bias=use_bias, qk_norm="none")


def _llama_hf_config(model: ModelConfig) -> dict[str, Any]:
    return _qwen3_hf_config(model) | {"mlp_bias": model.arch.use_bias == "all"}


def _qwen2(config: ConfigReader, tensors: Collection[str]) -> ModelConfig:
    return _rotary(config, use_bias="qkv", qk_norm="none")


def _qwen3(config: ConfigReader, tensors: Collection[str]) -> ModelConfig:
    use_bias = "attention" if config.flag("attention_bias", False) else "none"
    return _rotary(config, use_bias=use_bias, qk_norm="gain", head_dim=config.size("head_dim", 128))


def _qwen3_hf_config(model: ModelConfig) -> dict[str, Any]:
    return _rotary_hf_config(model) | {
        "attention_bias": model.arch.use_bias in ("attention", "all")
    }


def _rotary(
    config: ConfigReader, *, use_bias: str, qk_norm: str, head_dim: int | None = None
) -> ModelConfig:
    """Llama and its successors."""
    num_layers, d_model = config.size("num_hidden_layers"), config.size("hidden_size")
    num_heads = config.size("num_attention_heads")
    config.check_full_attention(num_layers)
    head_dim = head_dim or config.size("head_dim", max(1, d_model // num_heads))
    theta, scaling = config.rope()
    return ModelConfig(
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=config.size("num_key_value_heads", num_heads),
        mlp_dim=config.size("intermediate_size"),
        vocab_size=config.size("vocab_size"),
        max_seq_len=config.size("max_position_embeddings"),
        rope_theta=theta,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        head_dim_override=0 if head_dim * num_heads == d_model else head_dim,
        arch=ArchConfig(
            norm_scale=True,
            embedding_norm=False,
            qk_norm=qk_norm,
            use_bias=use_bias,
            activation=config.choice("hidden_act", _ACTIVATIONS, "silu"),
            gated_mlp=True,
            rope_scaling=scaling,
            tie_embeddings=config.flag("tie_word_embeddings", False),
        ),
    )


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
        "hidden_act": _activation_name(model.arch.activation),
        **rope_config(model.rope_theta, model.arch.rope_scaling),
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
        arch=ArchConfig(
            norm="layer",
            norm_scale=True,
            norm_bias=True,
            post_norm=True,
            final_norm=False,
            qk_norm="none",
            use_bias="all",
            activation=config.choice("hidden_act", _ACTIVATIONS, "gelu"),
            position_encoding="learned",
            tie_embeddings=True,
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
        "hidden_act": _activation_name(model.arch.activation),
    }


def _activation_name(activation: str) -> str:
    return next(name for name, ours in _ACTIVATIONS.items() if ours == activation)


def _decoder(name: str, architecture: str, to_model_config: Any, to_hf_config: Any) -> Family:
    return Family(
        name=name,
        architecture=architecture,
        causal=True,
        prefix="model.",
        entries=tensor_names.LLAMA,
        buffers=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
        heads=r"(?!)",
        to_model_config=to_model_config,
        to_hf_config=to_hf_config,
    )


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="gpt2",
            architecture="GPT2LMHeadModel",
            causal=True,
            prefix="transformer.",
            entries=tensor_names.GPT2,
            buffers=r"h\.\d+\.attn\.(masked_)?bias",
            heads=r"(?!)",
            to_model_config=_gpt2,
            to_hf_config=_gpt2_hf_config,
        ),
        _decoder("llama", "LlamaForCausalLM", _llama, _llama_hf_config),
        _decoder("qwen2", "Qwen2ForCausalLM", _qwen2, _rotary_hf_config),
        _decoder("qwen3", "Qwen3ForCausalLM", _qwen3, _qwen3_hf_config),
        Family(
            name="bert",
            architecture="BertModel",
            causal=False,
            prefix="bert.",
            entries=tensor_names.BERT,
            buffers=r"embeddings\.position_ids",
            heads=r"cls\..*",
            to_model_config=_bert,
            to_hf_config=_bert_hf_config,
        ),
    )
}


def family_of(config: Mapping[str, Any]) -> Family:
    """Returns the `Family` that the `model_type` of a config.json names.

    Raises:
      UserError: an unknown family (lists the known ones), custom code or quantized tensors.
    """
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(
            f"config.json: model_type={name!r} is not a known family; known are "
            f"{', '.join(FAMILIES)}"
        )
    for key in ("auto_map", "quantization_config"):
        if config.get(key):
            raise UserError(f"config.json: {key} is not supported (fm runs no model's own code)")
    return FAMILIES[name]
