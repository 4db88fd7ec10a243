"""A tokenizer rebuilt from the metadata of a GGUF file, which has no tokenizer.json."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from fm.errors import UserError

# Token types of the format, `tokenizer.ggml.token_type`.
_CONTROL, _USER_DEFINED = 3, 4

# How a text is cut into words before merging: regular expressions from the tokenizer.json files of
# Llama 3 and Qwen 2, which differ in how many digits stay together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2, _DIGITS, _LLAMA3, _QWEN2 = "gpt-2", "digits", "llama-3", "qwen-2"
# `tokenizer.ggml.pre` to how it cuts: names as llama.cpp's converter writes them.
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


def rebuild(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Returns the byte-level BPE tokenizer that a GGUF file's metadata describes.

    The file carries tokens, their types, merges and the ids of a few specials. It does not carry
    the pre-tokenizer, the normaliser, the decoder or the post-processor, which a tokenizer.json
    has: the first two follow from the name in `tokenizer.ggml.pre` (SmolLM2's is `smollm`: each
    digit alone, then GPT-2's words, no normalisation), the third is that of bytes, and beginning
    and end ids are put round a text if `add_bos_token` and `add_eos_token` say so. Nor does it tell
    whether a special token swallows the spaces beside it, or which of its kinds (mask, separator)
    one is: neither matters to SmolLM2.

    Raises:
        UserError: a key is missing or malformed, or the kind of tokenizer is not a known one.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise UserError(
            f"tokenizer.ggml.model is {kind!r}; known: 'gpt2' (byte-level BPE). "
            "A tokenizer.json of the same model can be given instead"
        )
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
    cut = _cut(metadata)
    # Llama 3's vocabulary has words that its merges do not lead to.
    bpe = models.BPE(vocab=ids, merges=merges, ignore_merges=cut == _LLAMA3)
    tokenizer = tokenizers.Tokenizer(bpe)
    # The stubs of the library type these properties as None.
    tokenizer.pre_tokenizer = _pre_tokenizer(cut)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    if cut == _QWEN2:
        tokenizer.normalizer = normalizers.NFC()  # pyright: ignore
    _add_specials(tokenizer, tokens, metadata)
    _add_ends(tokenizer, tokens, metadata)
    return tokenizer


def special_id(metadata: Mapping[str, Any], name: str) -> int | None:
    """Returns the id in `tokenizer.ggml.{name}_token_id`, None where the file states none.

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


def _cut(metadata: Mapping[str, Any]) -> str:
    # Files of GPT-2 from before April 2024 have no name; of other models they were tokenized wrong.
    old = "gpt-2" if metadata.get("general.architecture") == "gpt2" else None
    name = metadata.get("tokenizer.ggml.pre", old)
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise UserError(f"tokenizer.ggml.pre is {name!r}; known: {known}")
    return PRE_TOKENIZERS[name]


def _pre_tokenizer(cut: str) -> pre_tokenizers.PreTokenizer:
    if cut == _GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if cut == _DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    words = tokenizers.Regex(_WORDS % ("{1,3}" if cut == _LLAMA3 else ""))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(words, "isolated"), to_bytes])


def _add_specials(
    tokenizer: tokenizers.Tokenizer, tokens: list[str], metadata: Mapping[str, Any]
) -> None:
    """Control tokens are special, user-defined ones are found whole in a text but belong to it."""
    types = np.asarray(metadata.get("tokenizer.ggml.token_type", np.ones(len(tokens), np.int32)))
    if types.shape != (len(tokens),) or types.dtype.kind not in "iu":
        raise UserError(f"tokenizer.ggml.token_type does not give a type to {len(tokens)} tokens")
    # In the order of their ids, which the library keeps for tokens that are in the vocabulary.
    special = {_CONTROL: True, _USER_DEFINED: False}
    tokenizer.add_tokens(
        [
            tokenizers.AddedToken(token, normalized=False, special=special[kind])
            for token, kind in zip(tokens, types.tolist(), strict=True)
            if kind in special and token
        ]
    )


def _add_ends(
    tokenizer: tokenizers.Tokenizer, tokens: list[str], metadata: Mapping[str, Any]
) -> None:
    parts, used = ["$A"], []
    for name, place in (("bos", 0), ("eos", 2)):
        number = special_id(metadata, name)
        if metadata.get(f"tokenizer.ggml.add_{name}_token") and number is not None:
            parts.insert(place, tokens[number])
            used.append((tokens[number], number))
    if used:
        tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore
            single=parts, special_tokens=used
        )
