"""GGUF files (llama.cpp) as Hugging Face configurations and tensors."""

import pathlib
import re
from typing import Any

import numpy as np
import tokenizers

from fm.errors import UserError
from fm.transfer.pretrained.gguf_file import GgufFile
from fm.transfer.pretrained.gguf_tokenizer import rebuild, special_id

_LLAMA_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LLAMA_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GPT2_TOP = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_GPT2_BLOCK = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
# Architecture to the names of its tensors outside the blocks, inside one, and before its number.
_NAMES = {
    "gpt2": (_GPT2_TOP, _GPT2_BLOCK, "transformer.h"),
    "llama": (_LLAMA_TOP, _LLAMA_BLOCK, "model.layers"),
    "qwen2": (_LLAMA_TOP, _LLAMA_BLOCK, "model.layers"),
    "qwen3": (_LLAMA_TOP, _LLAMA_BLOCK, "model.layers"),
}
_CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# What a file can ask for that a plain transformer of these families does not do.
_UNSUPPORTED = (
    "expert_count",
    "attention.sliding_window",
    "rope.scaling.factor",
    "rope.scale_linear",
    "attention.alibi_bias_max",
)


def read_gguf(
    path: str | pathlib.Path,
) -> tuple[dict[str, Any], dict[str, np.ndarray], tokenizers.Tokenizer]:
    """Reads a GGUF file as if it were the Hugging Face folder that it was converted from.

    llama.cpp turns the rotary pairs of `llama` queries and keys from halves to neighbours; here
    they are turned back. Architectures: gpt2, llama, qwen2, qwen3. Reading executes nothing.

    Returns:
        config: what config.json has for the family, special ids included.
        tensors: float32 by Hugging Face name, dequantised, axes as `transformers` has them.
        tokenizer: see `gguf_tokenizer.rebuild`.

    Raises:
        UserError: the file is malformed or cut short, a key is missing, the architecture or the
            tokenizer is not a known one, or a tensor has no place in it.
    """
    file = GgufFile(path)
    try:
        config = _config(file)
        tokenizer = rebuild(file.metadata)
        tokens, vocab = tokenizer.get_vocab_size(), config["vocab_size"]
        if tokens > vocab:
            raise UserError(f"its tokenizer has {tokens} tokens, its embedding {vocab} rows")
        tensors = _tensors(file, config)
    except UserError as error:
        raise UserError(f"{file.path}: {str(error).removeprefix(f'{file.path}: ')}") from error
    return config, tensors, tokenizer


def _config(file: GgufFile) -> dict[str, Any]:
    """config.json of the family, from the metadata and the shapes of the tensors."""
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _NAMES:
        raise UserError(f"architecture {architecture!r} is not known; known: {', '.join(_NAMES)}")
    keys = _Keys(file.metadata, architecture)
    for key in _UNSUPPORTED:
        if keys.number(key, 0) not in (0, 1):
            raise UserError(f"{architecture}.{key} is set, which is not supported")
    if "rope_freqs.weight" in file.entries:
        raise UserError("it has scaled rotary frequencies (rope_freqs), which are not supported")
    embedding = file.entries.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise UserError("it has no matrix token_embd.weight")
    vocab, width = embedding.shape
    layers = keys.whole("block_count")
    if width != keys.whole("embedding_length") or layers > len(file.entries):
        raise UserError(f"{architecture}.embedding_length or block_count does not fit its tensors")
    common = {
        "model_type": architecture,
        "architectures": [_CLASSES[architecture]],
        "vocab_size": vocab,
        "tie_word_embeddings": not _has_output(file),
        "bos_token_id": special_id(file.metadata, "bos"),
        "eos_token_id": special_id(file.metadata, "eos"),
        "pad_token_id": special_id(file.metadata, "padding"),
        "torch_dtype": "float32",
    }
    heads = keys.whole("attention.head_count")
    if architecture == "gpt2":
        return common | {
            "n_embd": width,
            "n_layer": layers,
            "n_head": heads,
            "n_inner": keys.whole("feed_forward_length"),
            "n_positions": keys.whole("context_length"),
            "layer_norm_epsilon": keys.real("attention.layer_norm_epsilon"),
            "activation_function": "gelu_new",
        }
    head = keys.whole("attention.key_length", width // heads)
    rotated = keys.whole("rope.dimension_count", head)
    if rotated != head or keys.whole("attention.value_length", head) != head:
        raise UserError(f"only {rotated} of a head's {head} numbers are rotated, or values differ")
    config = common | {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.whole("attention.head_count_kv", heads),
        "head_dim": head,
        "intermediate_size": keys.whole("feed_forward_length"),
        "max_position_embeddings": keys.whole("context_length"),
        "rms_norm_eps": keys.real("attention.layer_norm_rms_epsilon"),
        # llama.cpp's own value where the file has none.
        "rope_theta": keys.real("rope.freq_base", 10000.0),
        "hidden_act": "silu",
    }
    if architecture != "qwen2":
        config["attention_bias"] = "blk.0.attn_q.bias" in file.entries
    if architecture == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in file.entries
    return config


class _Keys:
    """The numbers of one architecture in the metadata, each of the right type or an error."""

    def __init__(self, metadata: dict[str, Any], architecture: str):
        self._metadata = metadata
        self._architecture = architecture

    def number(self, key: str, default: float | None = None) -> float:
        key = f"{self._architecture}.{key}"
        found = self._metadata.get(key, default)
        if found is None:
            raise UserError(f"the metadata has no {key}")
        if isinstance(found, bool) or not isinstance(found, int | float):
            kept = "text" if isinstance(found, str) else type(found).__name__
            raise UserError(f"{key} is not one number but {kept}")
        return found

    def whole(self, key: str, default: int | None = None) -> int:
        """A count from 1 to 2**31 - 1."""
        found = self.number(key, default)
        if not isinstance(found, int) or not 0 < found < 2**31:
            raise UserError(f"{self._architecture}.{key} is {found}, not a count")
        return found

    def real(self, key: str, default: float | None = None) -> float:
        """A positive number, as short as float32 allows: 1e-05, not 9.99999974e-06."""
        found = float(str(np.float32(self.number(key, default))))
        if not 0 < found < float("inf"):
            raise UserError(f"{self._architecture}.{key} is {found}, not a positive number")
        return found


def _has_output(file: GgufFile) -> bool:
    """Whether the output is a matrix of its own; converters of GPT-2 store the embedding twice."""
    if "output.weight" not in file.entries:
        return False
    if file.entries["output.weight"].shape != file.entries["token_embd.weight"].shape:
        return True
    return not np.array_equal(file.tensor("output.weight"), file.tensor("token_embd.weight"))


def _tensors(file: GgufFile, config: dict[str, Any]) -> dict[str, np.ndarray]:
    tensors = {}
    for name in file.entries:
        if name == "output.weight" and config["tie_word_embeddings"]:
            continue
        renamed = _renamed(name, config["model_type"])
        value = file.tensor(name)
        if config["model_type"] == "gpt2" and value.ndim == 2 and name.startswith("blk."):
            # GPT-2's matrices are stored input first in its safetensors, output first here.
            value = np.ascontiguousarray(value.T)
        if config["model_type"] == "llama" and (found := re.search(r"\.attn_([qk])\.", name)):
            heads = {"q": "num_attention_heads", "k": "num_key_value_heads"}[found[1]]
            value = _unpermuted(name, value, config[heads], config["head_dim"])
        tensors[renamed] = value
    return tensors


def _renamed(name: str, architecture: str) -> str:
    """The Hugging Face name of a tensor."""
    top, block, prefix = _NAMES[architecture]
    stem, _, ending = name.rpartition(".")
    if ending in ("weight", "bias"):
        if stem in top:
            return f"{top[stem]}.{ending}"
        inside = re.fullmatch(r"blk\.(0|[1-9]\d{0,5})\.(\w+)", stem, re.ASCII)
        if inside and inside[2] in block:
            return f"{prefix}.{inside[1]}.{block[inside[2]]}.{ending}"
    raise UserError(f"tensor {name!r} has no place in a {architecture} model")


def _unpermuted(name: str, value: np.ndarray, heads: int, head: int) -> np.ndarray:
    """Rows of each head from neighbouring rotary pairs (0, C/2, 1, ...) back to halves."""
    if value.shape[0] != heads * head or head % 2:
        raise UserError(f"tensor {name!r} has {value.shape[0]} rows, not {heads} x {head}")
    pairs = value.reshape(heads, head // 2, 2, *value.shape[1:])
    return pairs.swapaxes(1, 2).reshape(value.shape)
