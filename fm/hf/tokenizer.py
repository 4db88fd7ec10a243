"""A published model's tokenizer, with the interface of `fm.data.tokenizer.Tokenizer`."""

import functools
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from fm.data.tokenizer import BYTE_OF_CHAR
from fm.errors import UserError
from fm.files import read_bytes, read_user_json

_CHUNK = 1024
_ROLES = ("pad", "bos", "eos", "mask")


class HFTokenizer:
    """Encodes and decodes texts by a tokenizer of the `tokenizers` library.

    The spelling of a special token ("[SEP]", "<|im_end|>") in a text is ordinary text by default.
    Truncation and padding that a tokenizer.json asks for are switched off: all-MiniLM-L6-v2's
    truncates every text at 128 tokens. Bytes that a vocabulary lacks are dropped: SmolLM2's lacks
    six control characters (U+0004, 06, 13, 14, 16, 1D) and the unassigned planes 4 to 11 of
    Unicode.

    Attributes:
      pad, bos, eos, mask: ids of the special tokens, None where the model has none.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        pad: int | None = None,
        bos: int | None = None,
        eos: int | None = None,
        mask: int | None = None,
    ):
        """Wraps `inner`, whose truncation and padding it switches off."""
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self.pad, self.bos, self.eos, self.mask = pad, bos, eos, mask

    @functools.cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        """A copy that treats spelled special tokens as text, which is a state of the library."""
        literal = tokenizers.Tokenizer.from_str(self._inner.to_str())
        literal.encode_special_tokens = True  # pyright: ignore
        return literal

    @functools.cached_property
    def _special(self) -> frozenset[int]:
        added = self._inner.get_added_tokens_decoder()
        return frozenset(number for number, token in added.items() if token.special)

    @functools.cached_property
    def vocab_size(self) -> int:
        """Returns the largest token id plus one, special tokens included."""
        return 1 + max(self._inner.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, texts: Sequence[str], *, parse_specials: bool = False) -> list[np.ndarray]:
        """Returns the token ids of each text, int32 [tokens], without BOS and EOS.

        Args:
          texts: the texts.
          parse_specials: whether the spelling of a special token becomes its id, as a chat template
            needs; not for untrusted text.
        """
        return self._encode(self._inner if parse_specials else self._literal, texts, False)

    def encode_with_specials(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns each text's token ids with special tokens such as [CLS] and [SEP]."""
        return self._encode(self._literal, texts, True)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of token ids, without special tokens; broken UTF-8 becomes U+FFFD."""
        return self._inner.decode([int(token) for token in ids], skip_special_tokens=True)

    def token_bytes(self, ids: Sequence[int] | np.ndarray) -> list[bytes]:
        """Returns the UTF-8 bytes of each token id, b"" for special tokens.

        Joined, byte-level tokens give the text. WordPiece (BERT) loses spaces, case and accents:
        every word but the first begins with one space.
        """
        spell = self._token_speller
        spelled: list[bytes] = []
        started = False
        for token in ids:
            name = self._inner.id_to_token(int(token))
            if name is None or int(token) in self._special:
                spelled.append(b"")
            else:
                spelled.append(spell(name, started))
            started = started or bool(spelled[-1])
        return spelled

    @functools.cached_property
    def _token_speller(self) -> Callable[[str, bool], bytes]:
        """(token name, whether other tokens came before) -> bytes."""
        decoder = json.loads(self._inner.to_str())["decoder"] or {}
        kinds = [part["type"] for part in decoder.get("decoders", [decoder]) if part]
        if "ByteLevel" in kinds:
            return _byte_level
        if "WordPiece" in kinds:
            prefix = decoder["prefix"]
            return lambda name, started: _word_piece(name, started, prefix)
        return _sentence_piece

    def bytes_per_token(self, texts: Sequence[str]) -> float:
        """Returns the mean UTF-8 bytes per token of all texts together."""
        tokens = sum(len(ids) for ids in self.encode(texts))
        return sum(len(text.encode()) for text in texts) / max(tokens, 1)

    def save(self, path: str | pathlib.Path) -> None:
        """Writes tokenizer.json, without the ids of `pad`, `bos`, `eos` and `mask`."""
        pathlib.Path(path).write_text(self._inner.to_str(), encoding="utf-8")

    def save_folder(self, folder: str | pathlib.Path, *, max_length: int = 0) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which `transformers` reads too.

        Args:
          folder: an existing folder.
          max_length: most tokens the model takes; 0 for no limit.
        """
        folder = pathlib.Path(folder)
        self.save(folder / "tokenizer.json")
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        if max_length:
            config["model_max_length"] = max_length
        for role in _ROLES:
            if getattr(self, role) is not None:
                config[f"{role}_token"] = self._inner.id_to_token(getattr(self, role))
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")

    @staticmethod
    def _encode(inner: tokenizers.Tokenizer, texts: Sequence[str], ends: bool) -> list[np.ndarray]:
        ids: list[np.ndarray] = []
        # In chunks: encodings take far more memory than the ids taken from them.
        for start in range(0, len(texts), _CHUNK):
            chunk = list(texts[start : start + _CHUNK])
            encodings = inner.encode_batch_fast(chunk, add_special_tokens=ends)
            ids += [np.array(encoding.ids, np.int32) for encoding in encodings]
        return ids


def _byte_level(name: str, started: bool) -> bytes:
    del started
    # Added tokens are stored as read: one may have a character that stands for no byte.
    if set(name) <= BYTE_OF_CHAR.keys():
        return bytes(BYTE_OF_CHAR[character] for character in name)
    return name.encode()


def _word_piece(name: str, started: bool, prefix: str) -> bytes:
    if name.startswith(prefix):
        return name.removeprefix(prefix).encode()
    return (" " * started + name).encode()


def _sentence_piece(name: str, started: bool) -> bytes:
    del started
    if byte := re.fullmatch("<0x([0-9A-F]{2})>", name):
        return bytes.fromhex(byte[1])
    return name.replace("\u2581", " ").encode()


def read_tokenizer(path: str | pathlib.Path) -> HFTokenizer:
    """Reads a tokenizer from a tokenizer.json, or from the folder that contains one.

    The special token ids come from the tokenizer_config.json, special_tokens_map.json or
    config.json beside it; None for those that none of them names.

    Raises:
      UserError: it is missing, malformed, or of an unknown kind.
    """
    path = pathlib.Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        inner = tokenizers.Tokenizer.from_str(read_bytes(file).decode("utf-8"))
    except OSError as error:
        raise UserError(f"cannot read tokenizer {file}: {error.strerror}") from error
    except Exception as error:  # The library raises bare `Exception` for anything malformed.
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"{file} is not a tokenizer: {reason}") from error
    return HFTokenizer(inner, **_ids_beside(file.parent, inner))


def check_vocab_size(tokenizer: HFTokenizer, vocab_size: int) -> None:
    """Raises UserError if a token id of the tokenizer is not below `vocab_size`.

    A larger embedding is fine: published ones are often padded to a round number.
    """
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer does not fit the weights: it has {tokenizer.vocab_size} ids, "
            f"the model's vocabulary {vocab_size}"
        )


def _ids_beside(folder: pathlib.Path, inner: tokenizers.Tokenizer) -> dict[str, int | None]:
    """Ids of the special tokens that the files beside a tokenizer.json name."""
    named = _json_object(folder / "special_tokens_map.json")
    named |= _json_object(folder / "tokenizer_config.json")
    numbered = _json_object(folder / "config.json")
    ids: dict[str, int | None] = {}
    for role in _ROLES:
        token = named.get(f"{role}_token")
        spelled = token.get("content") if isinstance(token, Mapping) else token
        number = numbered.get(f"{role}_token_id")
        if isinstance(spelled, str):
            number = inner.token_to_id(spelled)
        ids[role] = number if type(number) is int else None
    return ids


def _json_object(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object; empty if there is no such file."""
    if not path.exists():
        return {}
    found = read_user_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return found
