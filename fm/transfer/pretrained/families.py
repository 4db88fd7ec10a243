"""The families of published models: what their config.json says, as `ModelConfig` and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.model.style import Style
from fm.transfer.pretrained import names
from fm.transfer.pretrained.settings import Settings, rope_settings

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
      model: config.json, and names of all tensors, to a model.
      settings: a model to the keys of config.json that differ between models.
    """

    name: str
    architecture: str
    causal: bool
    prefix: str
    entries: tuple[names.Entry, ...]
    buffers: str
    heads: str
    model: Callable[[Settings, Collection[str]], ModelConfig]
    settings: Callable[[ModelConfig], dict[str, Any]]


def _gpt2(config: Settings, tensors: Collection[str]) -> ModelConfig:
    config.only("scale_attn_weights", True)
    config.only("scale_attn_by_inverse_layer_idx", False)
    config.only("add_cross_attention", False)
    width = config.size("n_embd")
    return ModelConfig(
        depth=config.size("n_layer"),
        width=width,
        heads=config.size("n_head"),
        kv_heads=config.size("n_head"),
        hidden=config.size("n_inner", 4 * width),
        vocab=config.size("vocab_size"),
        context=config.size("n_positions"),
        norm_eps=config.number("layer_norm_epsilon", 1e-5),
        style=Style(
            norm="layer",
            gain=True,
            shift=True,
            embedding_norm=False,
            qk_norm="none",
            biases="all",
            activation=config.choice("activation_function", _ACTIVATIONS, "gelu_new"),
            positions="learned",
            tied=config.flag("tie_word_embeddings", True),
        ),
    )


def _gpt2_settings(model: ModelConfig) -> dict[str, Any]:
    return {
        "n_layer": model.depth,
        "n_embd": model.width,
        "n_head": model.heads,
        "n_inner": model.hidden,
        "n_positions": model.context,
        "layer_norm_epsilon": model.norm_eps,
        "activation_function": _name(model.style.activation),
    }


def _llama(config: Settings, tensors: Collection[str]) -> ModelConfig:
    attention, feed_forward = (config.flag(key, False) for key in ("attention_bias", "mlp_bias"))
    if feed_forward and not attention:
        raise UserError("config.json: mlp_bias without attention_bias is not supported")
    biases = "all" if feed_forward else "attention" if attention else "none"
    heads, width = config.size("num_attention_heads"), config.size("hidden_size")
    if width % heads:  # as `transformers` has it
        raise UserError(f"config.json: {heads} heads do not divide a Llama's width of {width}")
    return _rotary(config, biases=biases, qk_norm="none")


def _llama_settings(model: ModelConfig) -> dict[str, Any]:
    return _qwen3_settings(model) | {"mlp_bias": model.style.biases == "all"}


def _qwen2(config: Settings, tensors: Collection[str]) -> ModelConfig:
    return _rotary(config, biases="qkv", qk_norm="none")


def _qwen3(config: Settings, tensors: Collection[str]) -> ModelConfig:
    biases = "attention" if config.flag("attention_bias", False) else "none"
    return _rotary(config, biases=biases, qk_norm="gain", head_width=config.size("head_dim", 128))


def _qwen3_settings(model: ModelConfig) -> dict[str, Any]:
    return _rotary_settings(model) | {"attention_bias": model.style.biases in ("attention", "all")}


def _rotary(
    config: Settings, *, biases: str, qk_norm: str, head_width: int | None = None
) -> ModelConfig:
    """Llama and what followed it."""
    depth, width = config.size("num_hidden_layers"), config.size("hidden_size")
    heads = config.size("num_attention_heads")
    config.full_attention(depth)
    head_width = head_width or config.size("head_dim", max(1, width // heads))
    base, scaling = config.rope()
    return ModelConfig(
        depth=depth,
        width=width,
        heads=heads,
        kv_heads=config.size("num_key_value_heads", heads),
        hidden=config.size("intermediate_size"),
        vocab=config.size("vocab_size"),
        context=config.size("max_position_embeddings"),
        rope_base=base,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        head_dim=0 if head_width * heads == width else head_width,
        style=Style(
            gain=True,
            embedding_norm=False,
            qk_norm=qk_norm,
            biases=biases,
            activation=config.choice("hidden_act", _ACTIVATIONS, "silu"),
            gated=True,
            rope_scaling=scaling,
            tied=config.flag("tie_word_embeddings", False),
        ),
    )


def _rotary_settings(model: ModelConfig) -> dict[str, Any]:
    return {
        "num_hidden_layers": model.depth,
        "hidden_size": model.width,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "intermediate_size": model.hidden,
        "head_dim": model.head_width,
        "max_position_embeddings": model.context,
        "rms_norm_eps": model.norm_eps,
        "hidden_act": _name(model.style.activation),
        **rope_settings(model.rope_base, model.style.rope_scaling),
    }


def _bert(config: Settings, tensors: Collection[str]) -> ModelConfig:
    config.only("position_embedding_type", "absolute")
    config.only("is_decoder", False)
    config.only("add_cross_attention", False)
    return ModelConfig(
        depth=config.size("num_hidden_layers"),
        width=config.size("hidden_size"),
        heads=config.size("num_attention_heads"),
        kv_heads=config.size("num_attention_heads"),
        hidden=config.size("intermediate_size"),
        vocab=config.size("vocab_size"),
        context=config.size("max_position_embeddings"),
        norm_eps=config.number("layer_norm_eps", 1e-12),
        style=Style(
            norm="layer",
            gain=True,
            shift=True,
            post_norm=True,
            final_norm=False,
            qk_norm="none",
            biases="all",
            activation=config.choice("hidden_act", _ACTIVATIONS, "gelu"),
            positions="learned",
            tied=True,
            token_types=config.size("type_vocab_size", 2),
            pooler="pooler.dense.weight" in tensors,
        ),
    )


def _bert_settings(model: ModelConfig) -> dict[str, Any]:
    return {
        "num_hidden_layers": model.depth,
        "hidden_size": model.width,
        "num_attention_heads": model.heads,
        "intermediate_size": model.hidden,
        "max_position_embeddings": model.context,
        "type_vocab_size": model.style.token_types,
        "layer_norm_eps": model.norm_eps,
        "hidden_act": _name(model.style.activation),
    }


def _name(activation: str) -> str:
    return next(name for name, ours in _ACTIVATIONS.items() if ours == activation)


def _decoder(name: str, architecture: str, model: Any, settings: Any) -> Family:
    return Family(
        name=name,
        architecture=architecture,
        causal=True,
        prefix="model.",
        entries=names.LLAMA,
        buffers=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
        heads=r"(?!)",
        model=model,
        settings=settings,
    )


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="gpt2",
            architecture="GPT2LMHeadModel",
            causal=True,
            prefix="transformer.",
            entries=names.GPT2,
            buffers=r"h\.\d+\.attn\.(masked_)?bias",
            heads=r"(?!)",
            model=_gpt2,
            settings=_gpt2_settings,
        ),
        _decoder("llama", "LlamaForCausalLM", _llama, _llama_settings),
        _decoder("qwen2", "Qwen2ForCausalLM", _qwen2, _rotary_settings),
        _decoder("qwen3", "Qwen3ForCausalLM", _qwen3, _qwen3_settings),
        Family(
            name="bert",
            architecture="BertModel",
            causal=False,
            prefix="bert.",
            entries=names.BERT,
            buffers=r"embeddings\.position_ids",
            heads=r"cls\..*",
            model=_bert,
            settings=_bert_settings,
        ),
    )
}


def of(config: Mapping[str, Any]) -> Family:
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
