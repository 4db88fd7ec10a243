"""Byte-level BPE (Sennrich et al. 2016, on bytes as in GPT-2): any text to ids and back."""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from fm.errors import UserError
from fm.files import read_bytes

NUM_SPECIALS = 4
MIN_VOCAB_SIZE = NUM_SPECIALS + 256
# Merges from 10 MB of film reviews encode held-out ones within 0.3% of those from all 34 MB.
TRAINING_BYTES = 10_000_000

_CHUNK = 1024


def _byte_of() -> dict[str, int]:
    """The byte behind each character that byte-level BPE writes (Radford et al. 2019, GPT-2).

    Printable characters of Latin-1 stand for themselves, those from 256 for the other bytes.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return {chr(byte if byte in printable else next(others)): byte for byte in range(256)}


BYTE_OF_CHAR = _byte_of()


class Tokenizer:
    """Texts to int32 token ids and back; ids 0 to 3 are special and never come from a text.

    The specials are kept out of the BPE vocabulary, whose ids follow them, so that a text which
    spells one ("<mask>") is ordinary text.
    """

    pad = 0
    bos = 1
    eos = 2
    mask = 3

    def __init__(self, bpe: tokenizers.Tokenizer):
        self._bpe = bpe

    @property
    def vocab_size(self) -> int:
        """The number of ids, specials included."""
        return self._bpe.get_vocab_size() + NUM_SPECIALS

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns int32 [tokens] for each text, without special ids."""
        ids: list[np.ndarray] = []
        # In chunks: a batch's encodings weigh far more than the ids taken from them.
        for start in range(0, len(texts), _CHUNK):
            chunk = list(texts[start : start + _CHUNK])
            encodings = self._bpe.encode_batch_fast(chunk, add_special_tokens=False)
            ids += [np.array(encoding.ids, np.int32) + NUM_SPECIALS for encoding in encodings]
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of token ids, specials skipped; broken UTF-8 becomes U+FFFD."""
        return self._bpe.decode(
            [int(token) - NUM_SPECIALS for token in ids if token >= NUM_SPECIALS]
        )

    def token_bytes(self, ids: Sequence[int] | np.ndarray) -> list[bytes]:
        """Returns the UTF-8 bytes each token stands for, b"" for specials.

        A token may hold a part of a character only; those of a text joined are the text.
        """
        inner = [int(token) - NUM_SPECIALS for token in ids]
        # The library writes a byte as one printable character; a token is a string of them.
        names = [self._bpe.id_to_token(token) if token >= 0 else "" for token in inner]
        return [bytes(BYTE_OF_CHAR[character] for character in name or "") for name in names]

    def bytes_per_token(self, texts: Sequence[str]) -> float:
        """Returns UTF-8 bytes per token over all texts: nats per token / it = nats per byte."""
        tokens = sum(len(ids) for ids in self.encode(texts))
        return sum(len(text.encode()) for text in texts) / max(tokens, 1)

    def digest(self) -> str:
        """Returns a SHA-256 of the vocabulary and its merges, in order."""
        inner = json.loads(self._bpe.to_str())["model"]
        # Versions of the library write a pair of merged tokens as a list or as one string.
        merges = [each if isinstance(each, str) else " ".join(each) for each in inner["merges"]]
        text = json.dumps([sorted(inner["vocab"].items()), merges])
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the vocabulary as JSON, in the format of the `tokenizers` library."""
        pathlib.Path(path).write_text(self._bpe.to_str(), encoding="utf-8")


def load(path: str | pathlib.Path) -> Tokenizer:
    """Reads what `Tokenizer.save` wrote.

    Raises:
        UserError: the file is missing or not a tokenizer.
    """
    try:
        return Tokenizer(
            tokenizers.Tokenizer.from_str(read_bytes(pathlib.Path(path)).decode("utf-8"))
        )
    except OSError as error:
        raise UserError(f"cannot read tokenizer {path}: {error.strerror}") from error
    except Exception as error:  # The library raises bare `Exception` for anything malformed.
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"{path} is not a saved tokenizer: {reason}") from error


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learns a tokenizer; the same texts in the same order give the same one.

    Of more than `TRAINING_BYTES` (10 MB) an even share of the texts is used: every k-th one.

    Args:
        texts: the texts to learn merges from.
        vocab_size: the number of ids, the 4 specials and 256 bytes included. Little text may give
            fewer: nothing is left to merge.

    Raises:
        UserError: `vocab_size` is under 260.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(f"vocab_size is {vocab_size}; at least {MIN_VOCAB_SIZE} is needed")
    bpe = tokenizers.Tokenizer(models.BPE())
    # The stubs of the library type these properties as None.
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    bpe.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - NUM_SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_even_share(list(texts)), trainer)
    return Tokenizer(bpe)


def _even_share(texts: list[str]) -> Iterator[str]:
    total = sum(len(text.encode()) for text in texts)
    step = max(1, -(-total // TRAINING_BYTES))
    return iter(texts[::step])
