"""Reading a Hugging Face config.json: sizes checked, and nothing that matters passed over."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from fm.errors import UserError
from fm.hf import tensor_names
from fm.model.config import ArchConfig, ModelConfig, RopeScaling


class ConfigReader:
    """The keys of a config.json, each read by what it must be; none is trusted.

    A key that is absent or null has the default given, and without one is an error.
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
        """A whole number, at least 1."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"config.json: {key}={value!r} must be a whole number of at least 1")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number over 0."""
        value = self._value(key, default)
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not numeric or not math.isfinite(value) or value <= 0:
            raise UserError(f"config.json: {key}={value!r} must be a number over 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise UserError(f"config.json: {key}={value!r} must be true or false")
        return value

    def choice(self, key: str, accepted: Mapping[str, str], default: str) -> str:
        """What `accepted` makes of a name."""
        value = self._value(key, default)
        if not isinstance(value, str) or value not in accepted:
            raise UserError(
                f"config.json: {key}={value!r} is not known; accepted are {', '.join(accepted)}"
            )
        return accepted[value]

    def require(self, key: str, value: Any) -> None:
        """That a key, if there, has the one value `fm` can honour."""
        given = self.values.get(key)
        if given is not None and given != value:
            raise UserError(f"config.json: {key}={given!r} is not supported, only {value!r} is")

    def full_attention(self, depth: int) -> None:
        """That no layer uses a sliding window (Qwen's rule where `layer_types` does not say)."""
        kinds = self.values.get("layer_types")
        if kinds is None:
            used = self.flag("use_sliding_window", False) and self.values.get("sliding_window")
            kinds = ["sliding_attention"] if used and self._window_start() < depth else []
        for kind in kinds:
            if kind != "full_attention":
                raise UserError(
                    f"config.json: a layer of {kind!r} is not supported, only full_attention is"
                )

    def _window_start(self) -> int:
        """The first layer that may slide."""
        start = self._value("max_window_layers", 28)
        if not isinstance(start, int):
            raise UserError(f"config.json: max_window_layers={start!r} must be a whole number")
        return start

    def rope(self) -> tuple[float, RopeScaling | None]:
        """Base and scaling of the rotary frequencies, in the older and the newer spelling.

        Older are `rope_theta` and `rope_scaling`, newer is `rope_parameters` with both.
        """
        self.require("partial_rotary_factor", 1.0)
        given = self.values.get("rope_parameters") or self.values.get("rope_scaling") or {}
        if not isinstance(given, Mapping):
            raise UserError(f"config.json: rope_parameters={given!r} must be an object")
        rope = ConfigReader(given)
        rope.require("partial_rotary_factor", 1.0)
        base = (rope if "rope_theta" in given else self).number("rope_theta", 10_000.0)
        kind = given.get("rope_type", given.get("type", "default"))
        if kind == "default":
            return base, None
        if kind != "llama3":
            raise UserError(
                f"config.json: rope scaling {kind!r} is not supported; accepted are default, llama3"
            )
        return base, RopeScaling(
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_max_seq_len=rope.size("original_max_position_embeddings"),
        )


def rope_config(base: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The keys `Settings.rope` reads, in the older spelling, which every version knows."""
    if scaling is None:
        return {"rope_theta": base}
    return {
        "rope_theta": base,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_seq_len,
        },
    }


# Of the names for one activation the first is written.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu2": "relu2",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One family, by its `model_type`.

    Attributes:
      name: the `model_type`.
      architecture: class of `transformers` that a written folder is for.
      causal: a piece sees only those before it; otherwise all see each other.
      prefix: led by which the tensors are written, and may be read; the head never is.
      entries: its tensors, see `names`.
      buffers: pattern of tensors that are computed, not learned; they are left out.
      heads: pattern of tensors that `fm` has no place for, left out and listed to the reader.
      to_model_config: config.json, and names of all tensors, to a model.
      to_hf_config: a model to the keys of config.json that differ between models.
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
    width = config.size("n_embd")
    return ModelConfig(
        num_layers=config.size("n_layer"),
        d_model=width,
        num_heads=config.size("n_head"),
        num_kv_heads=config.size("n_head"),
        mlp_dim=config.size("n_inner", 4 * width),
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


def _gpt2_settings(model: ModelConfig) -> dict[str, Any]:
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
    attention, feed_forward = (config.flag(key, False) for key in ("attention_bias", "mlp_bias"))
    if feed_forward and not attention:
        raise UserError("config.json: mlp_bias without attention_bias is not supported")
    biases = "all" if feed_forward else "attention" if attention else "none"
    heads, width = config.size("num_attention_heads"), config.size("hidden_size")
    if width % heads:  # as `transformers` has it
        raise UserError(f"config.json: {heads} heads do not divide a Llama's width of {width}")
    return _rotary(config, biases=biases, qk_norm="none")


def _llama_settings(model: ModelConfig) -> dict[str, Any]:
    return _qwen3_settings(model) | {"mlp_bias": model.arch.use_bias == "all"}


def _qwen2(config: ConfigReader, tensors: Collection[str]) -> ModelConfig:
    return _rotary(config, biases="qkv", qk_norm="none")


def _qwen3(config: ConfigReader, tensors: Collection[str]) -> ModelConfig:
    biases = "attention" if config.flag("attention_bias", False) else "none"
    return _rotary(config, biases=biases, qk_norm="gain", head_width=config.size("head_dim", 128))


def _qwen3_settings(model: ModelConfig) -> dict[str, Any]:
    return _rotary_settings(model) | {"attention_bias": model.arch.use_bias in ("attention", "all")}


def _rotary(
    config: ConfigReader, *, biases: str, qk_norm: str, head_width: int | None = None
) -> ModelConfig:
    """Llama and what followed it."""
    depth, width = config.size("num_hidden_layers"), config.size("hidden_size")
    heads = config.size("num_attention_heads")
    config.full_attention(depth)
    head_width = head_width or config.size("head_dim", max(1, width // heads))
    base, scaling = config.rope()
    return ModelConfig(
        num_layers=depth,
        d_model=width,
        num_heads=heads,
        num_kv_heads=config.size("num_key_value_heads", heads),
        mlp_dim=config.size("intermediate_size"),
        vocab_size=config.size("vocab_size"),
        max_seq_len=config.size("max_position_embeddings"),
        rope_theta=base,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        head_dim_override=0 if head_width * heads == width else head_width,
        arch=ArchConfig(
            norm_scale=True,
            embedding_norm=False,
            qk_norm=qk_norm,
            use_bias=biases,
            activation=config.choice("hidden_act", _ACTIVATIONS, "silu"),
            gated_mlp=True,
            rope_scaling=scaling,
            tie_embeddings=config.flag("tie_word_embeddings", False),
        ),
    )


def _rotary_settings(model: ModelConfig) -> dict[str, Any]:
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


def _bert_settings(model: ModelConfig) -> dict[str, Any]:
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


def _decoder(name: str, architecture: str, model: Any, settings: Any) -> Family:
    return Family(
        name=name,
        architecture=architecture,
        causal=True,
        prefix="model.",
        entries=tensor_names.LLAMA,
        buffers=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
        heads=r"(?!)",
        to_model_config=model,
        to_hf_config=settings,
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
            to_hf_config=_gpt2_settings,
        ),
        _decoder("llama", "LlamaForCausalLM", _llama, _llama_settings),
        _decoder("qwen2", "Qwen2ForCausalLM", _qwen2, _rotary_settings),
        _decoder("qwen3", "Qwen3ForCausalLM", _qwen3, _qwen3_settings),
        Family(
            name="bert",
            architecture="BertModel",
            causal=False,
            prefix="bert.",
            entries=tensor_names.BERT,
            buffers=r"embeddings\.position_ids",
            heads=r"cls\..*",
            to_model_config=_bert,
            to_hf_config=_bert_settings,
        ),
    )
}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family a config.json names.

    Raises:
      UserError: none, or one that is not known (lists those that are), or code of its own or
        quantised tensors are asked for.
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
