"""A published model by name, folder or file: weights, tokenizer, and whose it is."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from fm.errors import UserError
from fm.files import expanded
from fm.model.config import ModelConfig
from fm.transfer import pretrained, stored
from fm.transfer.pretrained.named import NAMED, fetch_named
from fm.transfer.pretrained.tokenizer import ImportedTokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Published:
    """A model that others pretrained.

    Attributes:
      name: as asked for.
      config: of the model.
      params: of the model.
      tokenizer: its own.
      causal: whether its pieces see only those before them.
      ends: tokens after which a text goes no further.
      source: where it comes from, as far as known.
      licence: of the weights, as far as known.
    """

    name: str
    config: ModelConfig
    params: dict
    tokenizer: ImportedTokenizer
    causal: bool
    ends: tuple[int, ...]
    source: str
    licence: str

    def digest(self) -> str:
        """Of the architecture and every number."""
        return stored.digest(self.config, self.params)

    def encode(self, texts: Sequence[str], length: int) -> list[np.ndarray]:
        """Tokens of each text with the specials its model expects, at most `length`.

        A longer text keeps its beginning and its end, half and half: reviews and reports say what
        they think there (Sun et al. 2019, sec. 5.3.1). An empty text is one special token or, in a
        model without any, token 0.
        """
        empty = self.tokenizer.encode_with_specials([""])[0]
        room = length - len(empty) - (self.causal and not len(empty))
        if room < 2:
            raise UserError(f"{length} tokens leave no room for a text beside its special ones")
        # Specials lead and end: how many lead is where a text would go.
        body = self.tokenizer.encode(texts)
        front = len(empty) if self.causal else (len(empty) + 1) // 2
        before, after = empty[:front], empty[front:]
        if self.causal and not len(empty) and self.tokenizer.bos is not None:
            before = np.array([self.tokenizer.bos], np.int32)
        made = [np.concatenate([before, ends(ids, room), after]).astype(np.int32) for ids in body]
        return [ids if len(ids) else np.zeros(1, np.int32) for ids in made]


def ends(ids: np.ndarray, most: int) -> np.ndarray:
    """The first and the last tokens of a long text, `most` in all; a short one whole."""
    if len(ids) <= most:
        return ids
    return np.concatenate([ids[: -(-most // 2)], ids[len(ids) - most // 2 :]])


def locate(name: str) -> pathlib.Path | None:
    """Where a published model lies, fetched if it is one of `NAMED`.

    Returns:
      A GGUF file or a folder with a config.json; None if `name` is neither, nor a known name.
    """
    if name in NAMED:
        return fetch_named(name)
    path = expanded(name)
    if (path.suffix == ".gguf" and path.is_file()) or (path / "config.json").is_file():
        return path
    return None


def _unlike(name: str) -> str:
    """Why this is no model."""
    path = expanded(name)
    if path.is_dir():
        return f"{name} has no config.json, so it is no model's folder"
    if path.exists():
        return f"{name} is no GGUF file, whose name ends in .gguf, and no folder of a model"
    return f"{name}: no such folder or file, and the names known are {', '.join(NAMED)}"


def find(name: str) -> Published:
    """A published model.

    Args:
      name: one of `NAMED`, or a folder of Hugging Face's, or a GGUF file.

    Raises:
      UserError: there is no such model, it has no tokenizer or is of pictures, or a file of it is
        broken.
    """
    path = locate(name)
    if path is None:
        raise UserError(_unlike(name))
    found = pretrained.read(path)
    if found.tokenizer is None:
        raise UserError(f"{name} has no tokenizer.json, so it cannot read text")
    ends = found.specials.get("eos_token_id", found.tokenizer.eos)
    known = NAMED.get(name)
    return Published(
        name=name,
        config=found.config,
        params=found.params,
        tokenizer=found.tokenizer,
        causal=found.causal,
        ends=() if ends is None else (ends,) if isinstance(ends, int) else tuple(ends),
        source=known.source if known else "a file of your own",
        licence=known.licence if known else "not known",
    )
