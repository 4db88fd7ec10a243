"""Saved adapted models: a folder that labels new examples as the model did when it was adapted.

    model.json           what the model is, reads and predicts, and the figures of its run
    params.safetensors   its arrays, names joined by "/"
    tokenizer.json       of a text model
    README.md            model card
    digests.json         SHA-256 of every file

Nothing is pickled. Of a published model that was not trained only its name and digest are kept.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import flax.traverse_util
import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fm.adaptation.methods import METHODS
from fm.data import tokenizer as bpe
from fm.errors import UserError, error_context
from fm.files import atomic_dir, check_digests, digests_exist, expand_path, read_json, write_digests
from fm.hf.encoders import PublishedEncoder, load_encoder, restore_encoder
from fm.hf.model_zoo import PublishedModel, load_published
from fm.hf.tokenizer import HFTokenizer, read_tokenizer
from fm.model.config import ModelConfig
from fm.model.stems import EncoderConfig
from fm.study.adaptation import CLASSICAL
from fm.study.adapted_model import FORMAT, AdaptedModel, ModelRecord, sound_rate, tokenizer_of
from fm.study.classical_model import ClassicalModel
from fm.study.model_card import ModelCard, write_model_card
from fm.study.task_types import TASK_TYPES

MODEL_FILE, PARAMS_FILE, TOKENIZER_FILE = "model.json", "params.safetensors", "tokenizer.json"


def save(folder: pathlib.Path, adapted: AdaptedModel, card: ModelCard | None = None) -> None:
    """Writes an adapted model to a folder that appears whole or not at all.

    Args:
      folder: replaced if it holds a saved model.
      adapted: the model.
      card: model card, written as README.md.

    Raises:
      UserError: the folder holds something else.
      OSError: it cannot be written.
    """
    if folder.exists():
        if not is_saved_model(folder):
            raise UserError(f"{folder} exists and holds no saved model; takes a new folder")
        shutil.rmtree(folder)
    with atomic_dir(folder) as scratch:
        content = json.dumps(msgspec.to_builtins(adapted.record), indent=1, allow_nan=False)
        (scratch / MODEL_FILE).write_text(content + "\n", encoding="utf-8")
        save_file(_flattened(adapted.arrays), scratch / PARAMS_FILE)
        if isinstance(adapted.tokenizer, HFTokenizer):
            adapted.tokenizer.save_folder(scratch)
        elif adapted.tokenizer is not None:
            adapted.tokenizer.save(scratch / TOKENIZER_FILE)
        if card is not None:
            write_model_card(scratch, card)
        write_digests(scratch)


def is_saved_model(folder: pathlib.Path) -> bool:
    """Returns whether a folder looks like one written by `save`."""
    return (folder / MODEL_FILE).is_file() and digests_exist(folder)


def load(folder: pathlib.Path) -> AdaptedModel:
    """Loads an adapted model from a folder written by `save`.

    Raises:
      UserError: it is no such folder, it is damaged, or the published model that it needs is
        missing or another one.
    """
    if not is_saved_model(folder):
        inside = folder / "model"
        hint = f"; did you mean {inside}?" if is_saved_model(inside) else ""
        raise UserError(
            f"{folder} is no adapted model; takes the folder `model` that fm adapt "
            f"writes in its --out{hint}"
        )
    try:
        check_digests(folder)
        content = read_json(folder / MODEL_FILE)
        if isinstance(content, dict) and content.get("format") != FORMAT:
            raise UserError(
                f"{folder} has the format {content.get('format')!r}; this version reads {FORMAT}"
            )
        record = msgspec.convert(content, ModelRecord)
        flat = load_file(folder / PARAMS_FILE)
    except (OSError, ValueError, msgspec.ValidationError, SafetensorError) as error:
        raise UserError(f"{folder} is damaged ({error}); adapt the model again") from error
    arrays = flax.traverse_util.unflatten_dict(flat, sep="/")
    method = record.hparams.get("method")
    for name, known, what in (
        (record.task_type, TASK_TYPES, "task type"),
        (method, [*METHODS, CLASSICAL], "adaptation method"),
    ):
        if name not in known:
            raise UserError(
                f"{folder} needs the {what} {name!r}, which is not registered; known are "
                f"{', '.join(known)}; import the file that registers it"
            )
    tokenizer, published = None, None
    if record.published is not None:
        published = _published(folder, record)
        tokenizer = tokenizer_of(published)
    elif record.tokenizer is not None:
        tokenizer = bpe.load(folder / TOKENIZER_FILE)
        if tokenizer.digest() != record.tokenizer:
            raise UserError(f"{folder / TOKENIZER_FILE} is not the tokenizer of the model")
    kind = ClassicalModel if method == CLASSICAL else AdaptedModel
    adapted = kind(record, arrays, tokenizer, published)
    with error_context(folder):
        try:
            adapted.fitted  # noqa: B018  (built now, so that errors name the folder)
        except (KeyError, TypeError) as error:
            raise UserError(f"holds no complete model: {error!r}") from error
    return adapted


def _published(folder: pathlib.Path, record: ModelRecord) -> PublishedModel | PublishedEncoder:
    """Returns the published model that a saved one needs, without parameters if it was trained."""
    own = record.published
    assert own is not None
    name = str(own.config.get("model"))
    shape: tuple[int, ...] = ()
    if own.encoder is not None:
        # Frames of clips are read one by one.
        shape = tuple(record.reading["shape"])[record.modality == "video" :]
    if own.trained and own.encoder is not None:
        config = EncoderConfig.from_dict(record.model_config)
        found = restore_encoder(name, own.encoder, config, {}, shape, sound_rate(record))
        return dataclasses.replace(found, source=own.source, license=own.license)
    if own.trained:
        return PublishedModel(
            name=name,
            config=ModelConfig.from_dict(record.model_config),
            params={},
            tokenizer=read_tokenizer(folder),
            causal=own.causal,
            stop_token_ids=(),
            source=own.source,
            license=own.license,
        )
    try:
        if own.encoder is None:
            published = load_published(name)
        else:
            published = load_encoder(name, shape, sound_rate(record))
    except UserError as error:
        raise UserError(f"{folder} was adapted from a published model: {error}") from error
    if published.digest() != own.digest:
        raise UserError(
            f"{folder} was adapted from {name}, but {expand_path(name)} now holds another model; "
            "adapt it again, or put back the one that was adapted"
        )
    return published


def _flattened(arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    flat = flax.traverse_util.flatten_dict(arrays, sep="/")
    return {str(name): np.ascontiguousarray(array) for name, array in flat.items()}
