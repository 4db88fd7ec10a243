"""Published models read and written: Hugging Face folders, and GGUF files read.

Reading runs nothing: JSON and safetensors are data, and pickled weights are refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  (NumPy learns bfloat16 from it)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fm.errors import UserError, error_context
from fm.files import read_user_json
from fm.hf import config as families
from fm.hf import weights
from fm.hf.gguf import read_gguf
from fm.hf.tokenizer import HFTokenizer, check_vocab_size, read_tokenizer
from fm.model.config import ModelConfig

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SPECIALS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclasses.dataclass(frozen=True, eq=False)
class PretrainedModel:
    """A published model, or one to be published.

    Attributes:
      config: of the model.
      params: of the model.
      tokenizer: its own; None without one.
      family: its name, one of `families.FAMILIES`; "" for whichever will do.
      special_token_ids: `bos_token_id`, `eos_token_id` and `pad_token_id`, those that config.json gives, an
        id or a list of ids each.
      unused_tensors: tensors of the file that `fm` has no place for, such as BERT's heads.
    """

    config: ModelConfig
    params: dict
    tokenizer: HFTokenizer | None = None
    family: str = ""
    special_token_ids: Mapping[str, int | list[int]] = dataclasses.field(default_factory=dict)
    unused_tensors: tuple[str, ...] = ()

    @property
    def causal(self) -> bool:
        """Whether its pieces see only those before them, so that it can generate."""
        return not self.family or families.FAMILIES[self.family].causal


def load_pretrained(path: str | pathlib.Path, *, dtype: str = "float32") -> PretrainedModel:
    """A model from a Hugging Face folder or a GGUF file.

    Args:
      path: the folder, or the file, which ends in .gguf.
      dtype: of the parameters, and what the model computes in: float32, or bfloat16 in half the
        memory. The file's may be float32, float16 or bfloat16.

    Raises:
      UserError: the folder lacks config.json or safetensors, something in it or in the file is
        broken, the model is not one that `fm` can run (see `from_tensors`), or the tokenizer does
        not fit it.
    """
    path = pathlib.Path(path)
    with error_context(path):
        return _read(path, dtype)


def _read(path: pathlib.Path, dtype: str) -> PretrainedModel:
    if path.suffix == ".gguf":
        config, tensors, inner = read_gguf(path)
        model, params = weights.from_tensors(config, tensors, dtype=dtype)
        ids = {role: config[f"{role}_token_id"] for role in ("pad", "bos", "eos")}
        left_out, tokenizer = (), HFTokenizer(inner, **ids)
    else:
        config = _json(path / "config.json")
        with _tensors(path) as tensors:
            model, params = weights.from_tensors(config, tensors, dtype=dtype)
            left_out = weights.unused_tensors(families.family_of(config), tensors)
        tokenizer = read_tokenizer(path) if (path / "tokenizer.json").exists() else None
    if tokenizer is not None:
        check_vocab_size(tokenizer, model.vocab_size)
    return PretrainedModel(
        model,
        params,
        tokenizer,
        family=families.family_of(config).name,
        special_token_ids={
            name: config[name] for name in _SPECIALS if config.get(name) is not None
        },
        unused_tensors=left_out,
    )


def save_pretrained(path: str | pathlib.Path, pretrained: PretrainedModel) -> None:
    """Writes a folder that `transformers` loads; it appears whole or not at all.

    The parameters keep their dtype. The vector of a hidden piece, which no family has, is not
    written.

    Args:
      path: of the folder, which may not exist yet (or be empty).
      pretrained: the model.

    Raises:
      UserError: no family has such a model, or there is something at `path`.
    """
    folder = pathlib.Path(path)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists already; a model is written to a new folder")
    family, config = weights.choose_family(pretrained.config, pretrained.family)
    tensors = weights.to_tensors(family, pretrained.config, pretrained.params)
    if pretrained.tokenizer is not None:
        check_vocab_size(pretrained.tokenizer, pretrained.config.vocab_size)
    config |= {name: pretrained.special_token_ids.get(name) for name in _SPECIALS}
    config["torch_dtype"] = str(next(iter(tensors.values())).dtype)
    with _appearing(folder) as scratch:
        text = json.dumps(config, indent=2, sort_keys=True)
        (scratch / "config.json").write_text(text + "\n", encoding="utf-8")
        save_file(tensors, scratch / "model.safetensors", metadata={"format": "pt"})
        if pretrained.tokenizer is not None:
            pretrained.tokenizer.save_folder(scratch, max_length=pretrained.config.max_seq_len)


def _json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file."""
    value = read_user_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value


class _Files(Mapping[str, np.ndarray]):
    """Tensors of open safetensors files, each read when it is asked for."""

    def __init__(self, place: dict[str, Any]):
        self._place = place

    def __getitem__(self, name: str) -> np.ndarray:
        return self._place[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)


@contextlib.contextmanager
def _tensors(folder: pathlib.Path) -> Iterator[_Files]:
    """The tensors of a folder, from one file or as its index says."""
    with contextlib.ExitStack() as opened:
        place: dict[str, Any] = {}
        for path, expected in _shards(folder).items():
            try:
                file = opened.enter_context(safe_open(path, framework="np"))
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path} is not whole safetensors: {error}") from error
            held = set(file.keys())
            if expected is not None and expected != held:
                name = min(expected ^ held)
                raise UserError(f"{path.name} and the index disagree about {name}")
            place |= dict.fromkeys(sorted(held), file)
        yield _Files(place)


def _shards(folder: pathlib.Path) -> dict[pathlib.Path, set[str] | None]:
    """Safetensors files, each with the names its index gives it (None without an index)."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return {whole: None}
    if not index.exists():
        if pickles := sorted(path.name for at in _PICKLES for path in folder.glob(at)):
            raise UserError(
                f"{folder} has {pickles[0]} and no safetensors: pickled weights can run code and "
                "are not read; save them with `save_pretrained(..., safe_serialization=True)`"
            )
        raise UserError(f"{folder} has no model.safetensors")
    shards: dict[pathlib.Path, set[str] | None] = {}
    names = _json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{index} has no weight_map")
    for tensor, file in names.items():
        if not isinstance(file, str) or pathlib.PurePath(file).name != file:
            raise UserError(f"{index}: {file!r} is not a file name")
        held = shards.setdefault(folder / file, set())
        assert held is not None
        held.add(tensor)
    return shards


@contextlib.contextmanager
def _appearing(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A scratch folder that becomes `folder` at the end, unless something fails."""
    scratch = folder.parent / f".{folder.name}-{uuid.uuid4().hex[:8]}"
    scratch.mkdir(parents=True)
    try:
        yield scratch
        scratch.replace(folder)
    except BaseException:
        shutil.rmtree(scratch)
        raise
