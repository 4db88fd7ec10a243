"""Finds the model that a --model flag means: a run, a published model or a saved adapted model."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

from fm.errors import UserError
from fm.files import expand_path, read_json
from fm.hf.model_zoo import MODEL_ZOO

RUN, PUBLISHED, ADAPTED = "run", "published", "adapted"
# How deep below a folder its model is looked for: runs/x/pretrained/TASK-ARM/seed-0.
_MAX_DEPTH = 4
_MAX_LISTED = 8
# Folders that are looked into; more are no run, but a disk.
_MAX_FOLDERS = 2000
_CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class ModelLocation:
    """Where a model is, and of which kind it is.

    Attributes:
      kind: `RUN` (a folder of `pretrain` or of a study's pretraining), `PUBLISHED` (a known name, a
        Hugging Face folder or a GGUF file) or `ADAPTED` (a folder of `fm.study.saved_model`).
      name: the folder or file, or the known name.
    """

    kind: str
    name: str

    @property
    def path(self) -> pathlib.Path:
        """Returns the folder or file; a known name has none."""
        return expand_path(self.name)


def find_model(
    name: str, kinds: Sequence[str] = (RUN, PUBLISHED), flag: str = "--model"
) -> ModelLocation:
    """Returns the model that `name` means; nothing is downloaded.

    A folder that is one level too deep, such as a run's `checkpoints`, or too high, such as the
    --out of a study or of `adapt`, stands for the one model that is in it; a line on stderr says
    which.

    Args:
      name: a known name, a folder or a file.
      kinds: the kinds accepted.
      flag: that names it, for messages.

    Raises:
      UserError: there is no such model, or there are several.
    """
    if not name.strip():
        raise UserError(f"{flag}={name}: takes {_accepted(kinds)}")
    if name in MODEL_ZOO and PUBLISHED in kinds:
        return ModelLocation(PUBLISHED, name)
    path = expand_path(name)
    if (kind := _kind(path)) is not None and kind in kinds:
        return ModelLocation(kind, name)
    if not path.exists():
        raise UserError(f"{flag}={name}: no such folder or file; takes {_accepted(kinds)}")
    if kind is not None:
        raise UserError(f"{flag}={name} is {_KINDS[kind].noun}; takes {_accepted(kinds)}")
    found = _above(path, kinds) or list(_below(path, kinds))
    if not found:
        verb = "is" if path.is_file() else "holds"
        raise UserError(f"{flag}={name} {verb} no model; takes {_accepted(kinds)}")
    if len(found) > 1:
        listed = ", ".join(map(str, found[:_MAX_LISTED]))
        more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
        raise UserError(f"{flag}={name} holds several models; takes one of {listed}{more}")
    kind = _kind(found[0])
    assert kind is not None
    print(f"{flag}={name}: the model is in {found[0]}", file=sys.stderr, flush=True)
    return ModelLocation(kind, str(found[0]))


def _above(path: pathlib.Path, kinds: Sequence[str]) -> list[pathlib.Path]:
    """The model that a file, a folder of checkpoints or one of its steps is a part of."""
    if path.is_file() or path.name == _CHECKPOINTS:
        whole = path.parent
    elif path.parent.name == _CHECKPOINTS:
        whole = path.parent.parent
    else:
        return []
    return [whole] if _kind(whole) in kinds else []


def _below(folder: pathlib.Path, kinds: Sequence[str]) -> Iterator[pathlib.Path]:
    """The models below a folder, by the order of names, of the first `_MAX_FOLDERS` folders."""
    for count, (place, folders, _) in enumerate(os.walk(folder)):
        if count == _MAX_FOLDERS:
            return
        here = pathlib.Path(place)
        if here != folder and (kind := _kind(here)) is not None:
            folders.clear()
            if kind in kinds:
                yield here
            continue
        depth = len(here.relative_to(folder).parts)
        shown = [name for name in sorted(folders) if not name.startswith(".")]
        folders[:] = shown if depth < _MAX_DEPTH else []


def _kind(path: pathlib.Path) -> str | None:
    """The kind of model that a folder or file is, None if it is none."""
    return next((name for name, kind in _KINDS.items() if kind.matches(path)), None)


@dataclasses.dataclass(frozen=True)
class _Kind:
    noun: str
    accepted: str
    matches: Callable[[pathlib.Path], bool]


def _is_published(path: pathlib.Path) -> bool:
    if path.suffix == ".gguf":
        return path.is_file()
    config = path / "config.json"
    return config.is_file() and not _is_config_of_run(config)


def _is_config_of_run(path: pathlib.Path) -> bool:
    try:
        found = read_json(path)
    except (OSError, ValueError):  # Who reads the model says what is wrong.
        return False
    return isinstance(found, dict) and "experiment" in found


_KINDS = {
    RUN: _Kind(
        "a model of fm pretrain",
        "the --out of fm pretrain, or a folder like "
        "OUT/pretrained/TASK-in_domain/seed-0 of a study",
        lambda path: (path / _CHECKPOINTS).is_dir(),
    ),
    ADAPTED: _Kind(
        "an adapted model",
        "a model that fm adapt saved (OUT/model)",
        lambda path: (path / "model.json").is_file() and (path / "params.safetensors").is_file(),
    ),
    PUBLISHED: _Kind(
        "a published model",
        f"a Hugging Face folder, a GGUF file, or one of {', '.join(MODEL_ZOO)}",
        _is_published,
    ),
}


def _accepted(kinds: Sequence[str]) -> str:
    texts = [_KINDS[kind].accepted for kind in kinds]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])}, or {texts[-1]}"
