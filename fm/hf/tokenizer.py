"""A published model's tokenizer, with the interface of `fm.data.tokenizer.Tokenizer`."""

import functools
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import processors

from fm.data.tokenizer import BYTE_OF_CHAR, NUM_SPECIALS, Tokenizer
from fm.errors import UserError
from fm.files import read_bytes, read_user_json
from fm.hf.chat_template import CHAT_TEMPLATE_FILE, read_chat_template, render_chat

_CHUNK = 1024
_ROLES = ("pad", "bos", "eos", "mask")
# Keys of special_tokens_map.json and tokenizer_config.json that hold special tokens.
_TOKEN_KEYS = tuple(f"{role}_token" for role in (*_ROLES, "unk", "sep", "cls"))
_TOKEN_LISTS = ("additional_special_tokens", "extra_special_tokens")


class HFTokenizer:
    """Encodes and decodes texts by a tokenizer of the `tokenizers` library.

    The spelling of a special token ("[SEP]", "<|im_end|>") in a text is ordinary text by default.
    Truncation and padding that a tokenizer.json asks for are switched off: all-MiniLM-L6-v2's
    truncates every text at 128 tokens. Bytes that a vocabulary lacks are dropped: SmolLM2's lacks
    six control characters (U+0004, 06, 13, 14, 16, 1D) and the unassigned planes 4 to 11 of
    Unicode.

    Attributes:
      pad, bos, eos, mask: ids of the special tokens, None where the model has none.
      chat_template: Jinja template of a conversation, None where the model has none.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        pad: int | None = None,
        bos: int | None = None,
        eos: int | None = None,
        mask: int | None = None,
        chat_template: str | None = None,
    ):
        """Wraps `inner`, whose truncation and padding it switches off."""
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self.pad, self.bos, self.eos, self.mask = pad, bos, eos, mask
        self.chat_template = chat_template

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

    def encode_with_specials(
        self, texts: Sequence[str], *, parse_specials: bool = False
    ) -> list[np.ndarray]:
        """Returns each text's token ids with special tokens such as [CLS] and [SEP].

        Args:
          texts: the texts.
          parse_specials: as for `encode`; a text that begins with BOS gets no second one.
        """
        if not parse_specials:
            return self._encode(self._literal, texts, True)
        found = self._encode(self._inner, texts, True)
        return [
            ids[1:] if self.bos is not None and ids[:2].tolist() == [self.bos] * 2 else ids
            for ids in found
        ]

    def encode_chat(self, message: str) -> np.ndarray:
        """Returns the token ids of a user's message in the chat template, up to the reply.

        The template alone says where BOS is, as in `transformers`. Special tokens that the message
        spells become their ids.

        Raises:
          UserError: there is no chat template, or it is broken.
        """
        if self.chat_template is None:
            raise UserError("the model has no chat template")
        names = {
            f"{role}_token": name
            for role in _ROLES
            if (number := getattr(self, role)) is not None and (name := self.token_name(number))
        }
        chat = render_chat(self.chat_template, message, names)
        return self.encode([chat], parse_specials=True)[0]

    def token_name(self, number: int) -> str | None:
        """Returns a token as the vocabulary spells it; None for an id that it lacks."""
        return self._inner.id_to_token(number) if 0 <= number < 2**32 else None

    def spelled_specials(self, text: str) -> list[str]:
        """Returns the special tokens whose spelling is in a text, in the order of their ids."""
        names = (self._inner.id_to_token(number) for number in sorted(self._special))
        return [name for name in names if name and name in text]

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

    def save_folder(
        self,
        folder: str | pathlib.Path,
        *,
        max_length: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes tokenizer.json and tokenizer_config.json, which `transformers` reads too.

        Args:
          folder: an existing folder.
          max_length: most tokens the model takes; 0 for no limit.
          settings: further keys of tokenizer_config.json.
        """
        folder = pathlib.Path(folder)
        self.save(folder / "tokenizer.json")
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        if max_length:
            config["model_max_length"] = max_length
        for role in _ROLES:
            if getattr(self, role) is not None:
                config[f"{role}_token"] = self._inner.id_to_token(getattr(self, role))
        config |= settings or {}
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
        if self.chat_template is not None:
            (folder / CHAT_TEMPLATE_FILE).write_text(self.chat_template, encoding="utf-8")

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


def from_bpe(tokenizer: Tokenizer, *, add_eos: bool = False) -> HFTokenizer:
    """Returns a tokenizer of fm's own models in the form that `transformers` reads, same ids.

    Its special tokens are spelled as no token of the vocabulary is. BOS comes before a text where
    special tokens are asked for.

    Args:
      tokenizer: of `fm.data.tokenizer`.
      add_eos: whether EOS follows the text then.
    """
    content = json.loads(tokenizer.to_json())
    vocab = content["model"]["vocab"]
    names = [_unused_name(role, vocab) for role in _ROLES]
    numbers = [getattr(tokenizer, role) for role in _ROLES]
    assert sorted(numbers) == list(range(NUM_SPECIALS))
    shifted = {token: number + NUM_SPECIALS for token, number in vocab.items()}
    content["model"]["vocab"] = dict(zip(names, numbers, strict=True)) | shifted
    inner = tokenizers.Tokenizer.from_str(json.dumps(content))
    inner.add_special_tokens([tokenizers.AddedToken(name, normalized=False) for name in names])
    ids = dict(zip(_ROLES, zip(names, numbers, strict=True), strict=True))
    bos, eos = ids["bos"], ids["eos"]
    inner.post_processor = processors.TemplateProcessing(  # pyright: ignore
        single=f"{bos[0]} $A {eos[0]}" if add_eos else f"{bos[0]} $A", special_tokens=[bos, eos]
    )
    return HFTokenizer(inner, **{role: number for role, (_, number) in ids.items()})


def _unused_name(role: str, vocab: Mapping[str, int]) -> str:
    """A special token's spelling, such as <|bos|>, that is no token of the vocabulary."""
    bars = "|"
    while (name := f"<{bars}{role}{bars}>") in vocab:
        bars += "|"
    return name


def read_tokenizer(path: str | pathlib.Path) -> HFTokenizer:
    """Reads a tokenizer from a tokenizer.json, or from the folder that contains one.

    The special token ids come from the tokenizer_config.json, special_tokens_map.json, config.json
    or generation_config.json beside it; None for those that none of them names. Tokens that these
    files, or an added_tokens.json, call special or add are so in the tokenizer too. Whether BOS and
    EOS are added is for tokenizer.json alone to say, as in `transformers` 5; where
    tokenizer_config.json says otherwise, a line on stderr tells.

    Raises:
      UserError: it is missing, malformed, of an unknown kind, or contradicts the files beside it.
    """
    path = pathlib.Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    inner = read_tokenizer_json(file)
    folder = file.parent
    _add_tokens_beside(folder, inner)
    ids = _ids_beside(folder, inner)
    _tell_ignored_ends(folder, inner, ids)
    return HFTokenizer(inner, **ids, chat_template=read_chat_template(folder))


def read_tokenizer_json(file: pathlib.Path) -> tokenizers.Tokenizer:
    """Reads a tokenizer from tokenizer.json alone, ignoring what other files of its folder say.

    Raises:
      UserError: it is missing, malformed, or of an unknown kind.
    """
    try:
        inner = tokenizers.Tokenizer.from_str(read_bytes(file).decode("utf-8"))
    except OSError as error:
        raise UserError(f"cannot read tokenizer {file}: {error.strerror}") from error
    except Exception as error:  # The library raises bare `Exception` for anything malformed.
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"{file} is not a tokenizer: {reason}") from error
    inner.no_truncation()
    inner.no_padding()
    return inner


def check_vocab_size(tokenizer: HFTokenizer, vocab_size: int) -> None:
    """Raises UserError if a token id of the tokenizer is not below `vocab_size`.

    A larger embedding is fine: published ones are often padded to a round number.
    """
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"the tokenizer does not fit the weights: it has {tokenizer.vocab_size} ids, "
            f"the model's vocabulary {vocab_size}"
        )


def _add_tokens_beside(folder: pathlib.Path, inner: tokenizers.Tokenizer) -> None:
    """Adds the tokens that the files beside a tokenizer.json add, and marks their special ones."""
    added = inner.get_added_tokens_decoder()
    special = {number for number, token in added.items() if token.special}
    # Those without an id first: they must be in the vocabulary already.
    for file, name, number, is_special in sorted(
        _tokens_beside(folder), key=lambda token: -1 if token[2] is None else token[2]
    ):
        if number is not None:
            if inner.token_to_id(name) is None:
                inner.add_tokens([tokenizers.AddedToken(name, normalized=False)])
            if (known := inner.token_to_id(name)) != number:
                raise UserError(
                    f"{folder / file}: {name!r} has the id {number}, {known} in the tokenizer"
                )
        if is_special and (known := inner.token_to_id(name)) is not None and known not in special:
            inner.add_special_tokens([name])
            special.add(known)


def _tokens_beside(folder: pathlib.Path) -> Iterator[tuple[str, str, int | None, bool]]:
    """Yields (file, token, id if given, whether it is special) of all tokens named in a folder."""
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        found = _json_object(folder / file)
        named = [found.get(key) for key in _TOKEN_KEYS]
        for key in _TOKEN_LISTS:
            more = found.get(key)
            named += more.values() if isinstance(more, Mapping) else more or []
        for name in filter(None, map(_spelling, named)):
            yield file, name, None, True
        added = found.get("added_tokens_decoder")
        for number, token in added.items() if isinstance(added, Mapping) else ():
            name = _spelling(token)
            if not name or not (number.isascii() and number.isdigit()):
                raise UserError(f"{folder / file}: added_tokens_decoder has {number!r}: {token!r}")
            yield file, name, int(number), bool(isinstance(token, Mapping) and token.get("special"))
    for name, number in _json_object(folder / "added_tokens.json").items():
        if type(number) is not int:
            raise UserError(f"{folder / 'added_tokens.json'}: {name!r} has the id {number!r}")
        yield "added_tokens.json", name, number, False


def _spelling(token: Any) -> str | None:
    """The text of a token, which JSON has as a text or as an object with its `content`."""
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else None


def _ids_beside(folder: pathlib.Path, inner: tokenizers.Tokenizer) -> dict[str, int | None]:
    """Ids of the special tokens that the files beside a tokenizer.json name."""
    named = _json_object(folder / "special_tokens_map.json")
    named |= _json_object(folder / "tokenizer_config.json")
    numbered = _json_object(folder / "generation_config.json")
    numbered |= _json_object(folder / "config.json")
    ids: dict[str, int | None] = {}
    for role in _ROLES:
        number = numbered.get(f"{role}_token_id")
        if (spelled := _spelling(named.get(f"{role}_token"))) is not None:
            number = inner.token_to_id(spelled)
        ids[role] = number if type(number) is int else None
    return ids


def _tell_ignored_ends(
    folder: pathlib.Path, inner: tokenizers.Tokenizer, ids: Mapping[str, int | None]
) -> None:
    """Prints to stderr where tokenizer_config.json contradicts what tokenizer.json adds."""
    config = _json_object(folder / "tokenizer_config.json")
    ends = inner.encode("", add_special_tokens=True).ids
    for role, at in (("bos", slice(0, 1)), ("eos", slice(-1, None))):
        says, number = config.get(f"add_{role}_token"), ids[role]
        if isinstance(says, bool) and number is not None and says != (ends[at] == [number]):
            does = "does not add it" if says else "adds it"
            print(
                f"{folder}: tokenizer_config.json has add_{role}_token={json.dumps(says)}, but "
                f"tokenizer.json {does} and decides",
                file=sys.stderr,
                flush=True,
            )


def _json_object(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object; empty if there is no such file."""
    if not path.exists():
        return {}
    found = read_user_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} does not hold a JSON object")
    return found
