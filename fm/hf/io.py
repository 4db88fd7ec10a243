"""Reading and writing published models: Hugging Face folders, and GGUF files (read only).

Reading runs no code: JSON and safetensors are data, and pickled weights are refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
import sys
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fm.errors import UserError, error_context
from fm.files import read_user_json
from fm.hf import weights
from fm.hf.config import FAMILIES, Family, family_of
from fm.hf.gguf import read_gguf
from fm.hf.tokenizer import HFTokenizer, check_vocab_size, read_tokenizer
from fm.model.config import ModelConfig

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SPECIALS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A linear map without bias from the final output at the last token to class scores.

    Attributes:
      kernel: float32 [D, classes].
      classes: their names, in the order of the scores.
    """

    kernel: np.ndarray
    classes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class PretrainedModel:
    """A model read from, or to be written to, a Hugging Face folder: parameters, config, tokenizer.

    Attributes:
      config: architecture.
      params: parameters.
      tokenizer: its tokenizer; None without one.
      family: name of its family, one of `FAMILIES`; "" for whichever fits.
      special_token_ids: those of `bos_token_id`, `eos_token_id` and `pad_token_id` that
        generation_config.json or else config.json gives, an id or a list of ids each.
      unused_tensors: tensors of the file without a place in `config`, such as BERT's heads.
      classifier: a sequence classification head to write instead of the one of tokens; None for
        none. It is not read back.
      suppress_tokens: tokens that are never generated, as generation_config.json says.
    """

    config: ModelConfig
    params: dict
    tokenizer: HFTokenizer | None = None
    family: str = ""
    special_token_ids: Mapping[str, int | list[int]] = dataclasses.field(default_factory=dict)
    unused_tensors: tuple[str, ...] = ()
    classifier: Classifier | None = None
    suppress_tokens: tuple[int, ...] = ()

    @property
    def causal(self) -> bool:
        """Whether attention is causal, so that the model can generate."""
        return not self.family or FAMILIES[self.family].causal


def load_pretrained(path: str | pathlib.Path, *, dtype: str = "float32") -> PretrainedModel:
    """Loads a model from a Hugging Face folder or a GGUF file.

    Args:
      path: the folder, or the file, whose name ends in .gguf.
      dtype: of the parameters and of the computation: float32, or bfloat16 in half the memory.
        The file may hold float32, float16 or bfloat16.

    Raises:
      UserError: config.json or safetensors are missing or damaged, a weight is not finite, the
        model is not supported (see `weights.from_tensors`), or the tokenizer does not fit it.
    """
    path = pathlib.Path(path)
    with error_context(path):
        if path.suffix == ".gguf":
            config, tensors, inner = read_gguf(path)
            model_config, params = weights.from_tensors(config, tensors, dtype=dtype)
            ids = {role: config[f"{role}_token_id"] for role in ("pad", "bos", "eos")}
            template = config["chat_template"]
            if template is not None and not isinstance(template, str):
                raise UserError("tokenizer.chat_template is no text")
            if isinstance(ids["eos"], list):
                ids["eos"] = ids["eos"][0]
            suppressed: tuple[int, ...] = ()
            unused, tokenizer = (), HFTokenizer(inner, **ids, chat_template=template)
            special_token_ids = {key: config[key] for key in _SPECIALS if config[key] is not None}
        else:
            config = _json_object(path / "config.json")
            with open_tensors(path) as tensors:
                model_config, params = weights.from_tensors(config, tensors, dtype=dtype)
                unused = weights.unused_tensors(family_of(config), tensors)
            tokenizer = read_tokenizer(path) if (path / "tokenizer.json").exists() else None
            special_token_ids = _special_token_ids(path, config, tokenizer, model_config.vocab_size)
            suppressed = _suppressed_tokens(path, model_config.vocab_size)
        if tokenizer is not None:
            check_vocab_size(tokenizer, model_config.vocab_size)
    return PretrainedModel(
        model_config,
        params,
        tokenizer,
        family=family_of(config).name,
        special_token_ids=special_token_ids,
        unused_tensors=unused,
        suppress_tokens=suppressed,
    )


def save_pretrained(
    path: str | pathlib.Path,
    pretrained: PretrainedModel,
    *,
    texts: Mapping[str, str] | None = None,
    tokenizer_settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model as a folder that `transformers` can load; atomic, refuses to overwrite.

    The parameters keep their dtype. The mask embedding, which no family has, is not written.

    Args:
      path: the folder, which may not exist yet (or be empty).
      pretrained: the model.
      texts: further text files by name, such as README.md.
      tokenizer_settings: further keys of tokenizer_config.json.

    Raises:
      UserError: no family has such a model, or a classifier like its own, or `path` exists.
    """
    folder = pathlib.Path(path)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists already; a model is written to a new folder")
    family, config = weights.choose_family(pretrained.config, pretrained.family)
    tensors = weights.to_tensors(family, pretrained.config, pretrained.params)
    if pretrained.tokenizer is not None:
        check_vocab_size(pretrained.tokenizer, pretrained.config.vocab_size)
    config |= {name: pretrained.special_token_ids.get(name) for name in _SPECIALS}
    if pretrained.classifier is not None:
        config |= _classifier_config(family, pretrained.classifier)
        tensors.pop("lm_head.weight", None)
        tensors["score.weight"] = np.ascontiguousarray(pretrained.classifier.kernel.T)
    config["torch_dtype"] = str(next(iter(tensors.values())).dtype)
    with _appearing(folder) as scratch:
        text = json.dumps(config, indent=2, sort_keys=True)
        (scratch / "config.json").write_text(text + "\n", encoding="utf-8")
        save_file(tensors, scratch / "model.safetensors", metadata={"format": "pt"})
        if pretrained.tokenizer is not None:
            pretrained.tokenizer.save_folder(
                scratch, max_length=pretrained.config.max_seq_len, settings=tokenizer_settings
            )
        for name, text in (texts or {}).items():
            (scratch / name).write_text(text, encoding="utf-8")


def _classifier_config(family: Family, classifier: Classifier) -> dict[str, Any]:
    """The keys of config.json of a sequence classification model."""
    if not family.causal:
        raise UserError(f"{family.name} reads no class from the last token, only decoders do")
    suffixes = "(ForCausalLM|LMHeadModel)$"
    return {
        "architectures": [re.sub(suffixes, "ForSequenceClassification", family.architecture)],
        "id2label": {str(n): name for n, name in enumerate(classifier.classes)},
        "label2id": {name: n for n, name in enumerate(classifier.classes)},
        "problem_type": "single_label_classification",
    }


def _special_token_ids(
    folder: pathlib.Path,
    config: Mapping[str, Any],
    tokenizer: HFTokenizer | None,
    vocab_size: int,
) -> dict[str, int | list[int]]:
    """Special token ids by the first file that has them; tells on stderr of ends left out.

    As in `transformers` generation_config.json decides what ends a text, then config.json. Here the
    tokenizer's EOS does where neither says.
    """
    path = folder / "generation_config.json"
    generation = _json_object(path) if path.exists() else {}
    files = {path.name: generation, "config.json": config}
    ends = {name: _token_ids(folder / name, given) for name, given in files.items()}
    own = [] if tokenizer is None or tokenizer.eos is None else [tokenizer.eos]
    # Without a name for EOS the tokenizer has it from these files.
    known = [number for found in ends.values() for number in found]
    ends["tokenizer_config.json"] = [number for number in own if number not in known]
    decisive = next((name for name, found in ends.items() if found), None)
    for name, found in ends.items():
        outside = [number for number in found if not 0 <= number < vocab_size]
        ignored = [number for number in found if number not in ends[decisive or name]]
        if name == decisive and outside:
            reason = f"beyond the vocabulary of {vocab_size}"
            _tell(f"{folder}: {name} ends a text at {_listed_ids(outside, tokenizer)}, {reason}")
        elif ignored:
            _tell(
                f"{folder}: {name} ends a text at {_listed_ids(ignored, tokenizer)}; {decisive} "
                f"does not, and decides"
            )
    ids = {
        key: next((given[key] for given in files.values() if given.get(key) is not None), None)
        for key in _SPECIALS
    }
    ids["eos_token_id"] = files[decisive]["eos_token_id"] if decisive in files else None
    return {key: value for key, value in ids.items() if value is not None}


def _suppressed_tokens(folder: pathlib.Path, vocab_size: int) -> tuple[int, ...]:
    """The tokens that generation_config.json says are never generated."""
    path = folder / "generation_config.json"
    found = (_json_object(path) if path.exists() else {}).get("suppress_tokens") or []
    known = isinstance(found, list) and all(type(number) is int for number in found)
    if not known or not all(0 <= number < vocab_size for number in found):
        raise UserError(
            f"{path}: suppress_tokens={found!r} must be a list of token ids from 0 to "
            f"{vocab_size - 1}"
        )
    return tuple(found)


def _token_ids(path: pathlib.Path, config: Mapping[str, Any]) -> list[int]:
    """The ids that `eos_token_id` of a JSON file gives, as one number or as a list."""
    given = config.get("eos_token_id")
    found = [] if given is None else given if isinstance(given, list) else [given]
    if not all(type(number) is int for number in found):
        raise UserError(f"{path}: eos_token_id={given!r} must be a token's id or a list of them")
    return found


def _listed_ids(ids: list[int], tokenizer: HFTokenizer | None) -> str:
    names = [tokenizer.token_name(number) if tokenizer else None for number in ids]
    return ", ".join(
        f"{n} ({name})" if name else str(n) for n, name in zip(ids, names, strict=True)
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _json_object(path: pathlib.Path) -> dict[str, Any]:
    value = read_user_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value


class _LazyTensors(Mapping[str, np.ndarray]):
    """Tensors of open safetensors files, each read, and checked to be finite, when asked for."""

    def __init__(self, file_of: dict[str, tuple[pathlib.Path, Any]]):
        self._file_of = file_of

    def __getitem__(self, name: str) -> np.ndarray:
        path, file = self._file_of[name]
        values = file.get_tensor(name)
        weights.check_finite(path, name, values)
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


@contextlib.contextmanager
def open_tensors(folder: pathlib.Path) -> Iterator[_LazyTensors]:
    """Opens the tensors of a folder, from one file or from the shards its index lists."""
    with contextlib.ExitStack() as stack:
        file_of: dict[str, tuple[pathlib.Path, Any]] = {}
        for path, expected in _shards(folder).items():
            try:
                file = stack.enter_context(safe_open(path, framework="np"))
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path} is not whole safetensors: {error}") from error
            names = set(file.keys())
            if expected is not None and expected != names:
                name = min(expected ^ names)
                raise UserError(f"{path.name} and the index disagree about {name}")
            file_of |= dict.fromkeys(sorted(names), (path, file))
        yield _LazyTensors(file_of)


def _shards(folder: pathlib.Path) -> dict[pathlib.Path, set[str] | None]:
    """Safetensors files, each with the names its index gives it (None without an index)."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return {single: None}
    if not index.exists():
        if pickles := sorted(path.name for glob in _PICKLES for path in folder.glob(glob)):
            raise UserError(
                f"{folder} has {pickles[0]} and no safetensors: pickled weights can run code and "
                "are not read; save them with `save_pretrained(..., safe_serialization=True)`"
            )
        raise UserError(f"{folder} has no model.safetensors")
    shards: dict[pathlib.Path, set[str]] = {}
    file_of = _json_object(index).get("weight_map")
    if not isinstance(file_of, dict) or not file_of:
        raise UserError(f"{index} has no weight_map")
    for tensor, file in file_of.items():
        if not isinstance(file, str) or pathlib.PurePath(file).name != file:
            raise UserError(f"{index}: {file!r} is not a file name")
        shards.setdefault(folder / file, set()).add(tensor)
    return dict(shards)


@contextlib.contextmanager
def _appearing(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a scratch folder that becomes `folder` at the end, unless something fails."""
    scratch = folder.parent / f".{folder.name}-{uuid.uuid4().hex[:8]}"
    scratch.mkdir(parents=True)
    try:
        yield scratch
        scratch.replace(folder)
    except BaseException:
        shutil.rmtree(scratch)
        raise
