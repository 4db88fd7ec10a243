"""GGUF files (llama.cpp) as Hugging Face configurations, tensors and tokenizers."""

import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from fm.errors import UserError
from fm.hf.gguf_file import GgufFile
from fm.hf.tokenizer import read_tokenizer_json
from fm.hf.weights import check_finite

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
# Architecture -> tensor names outside the blocks, inside one, and the prefix of a block's number.
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
# Keys that ask for something a plain transformer of these families does not do.
_UNSUPPORTED = (
    "expert_count",
    "attention.sliding_window",
    "rope.scaling.factor",
    "rope.scale_linear",
    "attention.alibi_bias_max",
)
# Token types of the format, `tokenizer.ggml.token_type`.
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
# A file names one end of a text and may name an end of a turn and of a message. Files of before
# these keys lack the others, so llama.cpp takes control tokens spelled like this for ends too.
_END_ROLES = ("eos", "eot", "eom")
_END_TOKENS = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "<|end_of_text|>",
        "<end_of_utterance>",
    }
)

# Pre-tokenization regex of the tokenizer.json files of Llama 3 and Qwen 2, which differ in how many
# digits stay together.
_SPLIT_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2, _DIGITS, _LLAMA3, _QWEN2 = "gpt-2", "digits", "llama-3", "qwen-2"
# `tokenizer.ggml.pre`, as llama.cpp's converter writes it, to the kind of pre-tokenizer.
PRE_TOKENIZERS = {
    "gpt-2": _GPT2,
    "olmo": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}


def read_gguf(
    path: str | pathlib.Path,
) -> tuple[dict[str, Any], dict[str, np.ndarray], tokenizers.Tokenizer]:
    """Reads a GGUF file; returns a Hugging Face config dict, tensors by HF name, and the tokenizer.

    llama.cpp permutes the rotary pairs of `llama` queries and keys from halves to neighbors; this
    is undone. Architectures: gpt2, llama, qwen2, qwen3. Reading executes nothing.

    Returns:
      config: config.json, with the special token ids and the chat template (None without one).
      tensors: float32 by Hugging Face name, dequantized, axes as in `transformers`.
      tokenizer: see `build_tokenizer`; where its kind is not known, a tokenizer.json beside the
        file is read instead.

    Raises:
      UserError: the file is malformed or cut short, a key is missing, the architecture or the
        tokenizer is not supported, a tensor has no place in it, or a number is not finite.
    """
    file = GgufFile(path)
    try:
        config = _hf_config(file)
        tokenizer = _tokenizer(file)
        tokens, vocab = tokenizer.get_vocab_size(), config["vocab_size"]
        if tokens > vocab:
            raise UserError(f"its tokenizer has {tokens} tokens, its embedding {vocab} rows")
        tensors = _hf_tensors(file, config)
    except UserError as error:
        raise UserError(f"{file.path}: {str(error).removeprefix(f'{file.path}: ')}") from error
    return config, tensors, tokenizer


def _hf_config(file: GgufFile) -> dict[str, Any]:
    """config.json, from the metadata and the shapes of the tensors."""
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _NAMES:
        raise UserError(f"architecture {architecture!r} is not known; known: {', '.join(_NAMES)}")
    keys = _ArchKeys(file.metadata, architecture)
    for key in _UNSUPPORTED:
        if keys.number(key, 0) not in (0, 1):
            raise UserError(f"{architecture}.{key} is set, which is not supported")
    if "rope_freqs.weight" in file.tensor_infos:
        raise UserError("it has scaled rotary frequencies (rope_freqs), which are not supported")
    embedding = file.tensor_infos.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise UserError("it has no matrix token_embd.weight")
    vocab, width = embedding.shape
    layers = keys.whole("block_count")
    if width != keys.whole("embedding_length") or layers > len(file.tensor_infos):
        raise UserError(f"{architecture}.embedding_length or block_count does not fit its tensors")
    common = {
        "model_type": architecture,
        "architectures": [_CLASSES[architecture]],
        "vocab_size": vocab,
        "tie_word_embeddings": not _has_output(file),
        "bos_token_id": special_token_id(file.metadata, "bos"),
        "eos_token_id": end_token_ids(file.metadata),
        "pad_token_id": special_token_id(file.metadata, "padding"),
        "torch_dtype": "float32",
        "chat_template": file.metadata.get("tokenizer.chat_template"),
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
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensor_infos
    if architecture == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensor_infos
    return config


class _ArchKeys:
    """Typed and checked access to one architecture's numbers in the metadata."""

    def __init__(self, metadata: dict[str, Any], architecture: str):
        self._metadata = metadata
        self._architecture = architecture

    def number(self, key: str, default: float | None = None) -> float:
        key = f"{self._architecture}.{key}"
        found = self._metadata.get(key, default)
        if found is None:
            raise UserError(f"the metadata has no {key}")
        if isinstance(found, bool) or not isinstance(found, int | float):
            found_type = "text" if isinstance(found, str) else type(found).__name__
            raise UserError(f"{key} is not one number but {found_type}")
        return found

    def whole(self, key: str, default: int | None = None) -> int:
        """A count from 1 to 2**31 - 1."""
        found = self.number(key, default)
        if not isinstance(found, int) or not 0 < found < 2**31:
            raise UserError(f"{self._architecture}.{key} is {found}, not a count")
        return found

    def real(self, key: str, default: float | None = None) -> float:
        """A positive number, rounded as float32 prints: 1e-05, not 9.99999974e-06."""
        found = float(str(np.float32(self.number(key, default))))
        if not 0 < found < float("inf"):
            raise UserError(f"{self._architecture}.{key} is {found}, not a positive number")
        return found


def _has_output(file: GgufFile) -> bool:
    """Whether the output head is its own matrix; GPT-2 converters store the embedding twice."""
    if "output.weight" not in file.tensor_infos:
        return False
    if file.tensor_infos["output.weight"].shape != file.tensor_infos["token_embd.weight"].shape:
        return True
    output, embedding = (file.read_tensor(f"{name}.weight") for name in ("output", "token_embd"))
    return not np.array_equal(output, embedding)


def _hf_tensors(file: GgufFile, config: dict[str, Any]) -> dict[str, np.ndarray]:
    tensors = {}
    for name in file.tensor_infos:
        if name == "output.weight" and config["tie_word_embeddings"]:
            continue
        hf_name = _hf_name(name, config["model_type"])
        value = file.read_tensor(name)
        check_finite(file.tensor_infos[name].path, name, value)
        if config["model_type"] == "gpt2" and value.ndim == 2 and name.startswith("blk."):
            # GPT-2's matrices are stored input first in its safetensors, output first here.
            value = np.ascontiguousarray(value.T)
        if config["model_type"] == "llama" and (found := re.search(r"\.attn_([qk])\.", name)):
            heads = {"q": "num_attention_heads", "k": "num_key_value_heads"}[found[1]]
            value = _unpermute(name, value, config[heads], config["head_dim"])
        tensors[hf_name] = value
    return tensors


def _hf_name(name: str, architecture: str) -> str:
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


def _unpermute(name: str, value: np.ndarray, heads: int, head: int) -> np.ndarray:
    """Reorders each head's rows from neighboring rotary pairs (0, C/2, 1, ...) to halves."""
    if value.shape[0] != heads * head or head % 2:
        raise UserError(f"tensor {name!r} has {value.shape[0]} rows, not {heads} x {head}")
    pairs = value.reshape(heads, head // 2, 2, *value.shape[1:])
    return pairs.swapaxes(1, 2).reshape(value.shape)


class UnknownTokenizer(UserError):
    """The metadata asks for a kind of tokenizer that is not known."""


def _tokenizer(file: GgufFile) -> tokenizers.Tokenizer:
    """The tokenizer of the metadata or, where its kind is not known, of a tokenizer.json beside."""
    try:
        return build_tokenizer(file.metadata)
    except UnknownTokenizer as error:
        path = file.path.with_name("tokenizer.json")
        if not path.exists():
            raise UserError(
                f"{error}; a tokenizer.json of the same model beside the file is read instead, "
                "but there is none"
            ) from error
        tokenizer = read_tokenizer_json(path)
        _check_same_tokens(path, tokenizer, file.metadata)
        print(f"{file.path}: {error}; {path.name} beside it is read", file=sys.stderr, flush=True)
    if any(f"tokenizer.ggml.add_{name}_token" in file.metadata for name in ("bos", "eos")):
        tokens = _texts(file.metadata, "tokenizer.ggml.tokens")
        _add_bos_eos(tokenizer, tokens, file.metadata, bos=True)
    return tokenizer


def _check_same_tokens(
    path: pathlib.Path, tokenizer: tokenizers.Tokenizer, metadata: Mapping[str, Any]
) -> None:
    """Raises UserError if an ordinary token of the metadata is another one in the tokenizer."""
    tokens = _texts(metadata, "tokenizer.ggml.tokens")
    for number, (token, kind) in enumerate(zip(tokens, _types(tokens, metadata), strict=True)):
        found = tokenizer.id_to_token(number)
        if kind == _NORMAL and found != token:
            raise UserError(
                f"{path} is not of the model beside it: token {number} is {found!r} there, "
                f"{token!r} here"
            )


def build_tokenizer(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Builds the byte-level BPE tokenizer that a GGUF file's metadata describes.

    The file has tokens, their types, merges and the ids of a few special tokens. It lacks the other
    parts of a tokenizer.json: pre-tokenizer and normalizer follow from `tokenizer.ggml.pre`
    (SmolLM2's is `smollm`: each digit alone, then GPT-2's words, no normalization), the decoder is
    the byte-level one, and BOS and EOS are added round a text as `add_bos_token` and
    `add_eos_token` say; without the former, BOS is added for Llama 3's pre-tokenizer, as llama.cpp
    does. Whether a special token strips the spaces beside it is not known either;
    for SmolLM2 it does not matter.

    Raises:
      UnknownTokenizer: the kind of tokenizer is not known.
      UserError: a key is missing or malformed.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model != "gpt2":
        raise UnknownTokenizer(f"tokenizer.ggml.model is {model!r}; known: 'gpt2' (byte-level BPE)")
    tokens = _texts(metadata, "tokenizer.ggml.tokens")
    ids = {token: number for number, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise UserError("tokenizer.ggml.tokens holds a token twice")
    merges: list[tuple[str, str]] = []
    for merge in _texts(metadata, "tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= ids.keys():
            raise UserError(f"tokenizer.ggml.merges has {merge!r}, no pair of tokens")
        merges.append((left, right))
    kind = _pre_tokenizer_kind(metadata)
    # Llama 3's vocabulary has words that its merges do not lead to.
    bpe = models.BPE(vocab=ids, merges=merges, ignore_merges=kind == _LLAMA3)
    tokenizer = tokenizers.Tokenizer(bpe)
    # The stubs of the library type these properties as None.
    tokenizer.pre_tokenizer = _pre_tokenizer(kind)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    if kind == _QWEN2:
        tokenizer.normalizer = normalizers.NFC()  # pyright: ignore
    _add_specials(tokenizer, tokens, metadata)
    _add_bos_eos(tokenizer, tokens, metadata, bos=kind == _LLAMA3)
    return tokenizer


def end_token_ids(metadata: Mapping[str, Any]) -> int | list[int] | None:
    """Returns the token that ends a text, or all of them, the one named as EOS first."""
    ends = [special_token_id(metadata, role) for role in _END_ROLES]
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        kinds = _types(tokens, metadata)
        ends += [
            number
            for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind == _CONTROL and token in _END_TOKENS
        ]
    found = list(dict.fromkeys(number for number in ends if number is not None))
    return found if len(found) > 1 else found[0] if found else None


def special_token_id(metadata: Mapping[str, Any], name: str) -> int | None:
    """Returns the metadata value `tokenizer.ggml.{name}_token_id`; None if absent.

    Raises:
      UserError: it is not the number of a token.
    """
    key = f"tokenizer.ggml.{name}_token_id"
    number = metadata.get(key)
    tokens = len(metadata.get("tokenizer.ggml.tokens", ()))
    if number is not None and (type(number) is not int or not 0 <= number < tokens):
        raise UserError(f"{key} is {number!r}, not one of the {tokens} tokens")
    return number


def _texts(metadata: Mapping[str, Any], key: str) -> list[str]:
    found = metadata.get(key)
    if not isinstance(found, list) or not found:
        raise UserError(f"the metadata has no list of texts {key}")
    return found


def _pre_tokenizer_kind(metadata: Mapping[str, Any]) -> str:
    # GPT-2 files of before April 2024 have no name; those of other models were tokenized wrong.
    old = "gpt-2" if metadata.get("general.architecture") == "gpt2" else None
    name = metadata.get("tokenizer.ggml.pre", old)
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise UnknownTokenizer(f"tokenizer.ggml.pre is {name!r}; known: {known}")
    return PRE_TOKENIZERS[name]


def _pre_tokenizer(kind: str) -> pre_tokenizers.PreTokenizer:
    if kind == _GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == _DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    words = tokenizers.Regex(_SPLIT_REGEX % ("{1,3}" if kind == _LLAMA3 else ""))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), to_bytes])


def _add_specials(
    tokenizer: tokenizers.Tokenizer, tokens: list[str], metadata: Mapping[str, Any]
) -> None:
    """Adds control tokens as special ones, and user-defined tokens, which are ordinary text."""
    # In the order of their ids, which the library keeps for tokens of the vocabulary.
    special = {_CONTROL: True, _USER_DEFINED: False}
    tokenizer.add_tokens(
        [
            tokenizers.AddedToken(token, normalized=False, special=special[kind])
            for token, kind in zip(tokens, _types(tokens, metadata), strict=True)
            if kind in special and token
        ]
    )


def _types(tokens: list[str], metadata: Mapping[str, Any]) -> list[int]:
    """The type of every token."""
    types = metadata.get("tokenizer.ggml.token_type", np.full(len(tokens), _NORMAL))
    types = np.asarray(types)
    if types.shape != (len(tokens),) or types.dtype.kind not in "iu":
        raise UserError(f"tokenizer.ggml.token_type does not give a type to {len(tokens)} tokens")
    return types.tolist()


def _add_bos_eos(
    tokenizer: tokenizers.Tokenizer, tokens: list[str], metadata: Mapping[str, Any], *, bos: bool
) -> None:
    """Puts BOS and EOS round a text as the metadata say; `bos` where they say nothing of BOS."""
    parts, used = ["$A"], []
    for name, place in (("bos", 0), ("eos", 2)):
        number = special_token_id(metadata, name)
        default = bos and name == "bos"
        if metadata.get(f"tokenizer.ggml.add_{name}_token", default) and number is not None:
            parts.insert(place, tokens[number])
            used.append((tokens[number], number))
    if used or tokenizer.post_processor is not None:
        tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore
            single=parts, special_tokens=used
        )
