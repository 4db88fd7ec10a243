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
import functools
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fm.adaptation.methods import METHODS, AdaptationMethod, FittedModel, HParams
from fm.adaptation.task_model import TaskModel
from fm.config_io import parse, to_plain
from fm.data import tokenizer as bpe
from fm.data.datasets import Dataset
from fm.data.layouts import PatchLayout
from fm.data.media import MediaSpec
from fm.errors import UserError, error_context
from fm.files import atomic_dir, check_digests, digests_exist, expand_path, read_json, write_digests
from fm.hf.encoders import PublishedEncoder, load_encoder, restore_encoder
from fm.hf.model_zoo import PublishedModel, load_published
from fm.hf.tokenizer import HFTokenizer, read_tokenizer
from fm.model.config import ModelConfig
from fm.model.stems import EncoderConfig
from fm.study.adaptation import CLASSICAL, Predictions
from fm.study.config import PublishedConfig, PublishedEncoderConfig, Recipe
from fm.study.model_card import ModelCard, write_model_card
from fm.study.published_arm import PublishedTaskModel
from fm.study.published_encoder_arm import PublishedEncoderTaskModel
from fm.study.published_model import AnyPublishedTaskModel
from fm.study.task import TaskType
from fm.study.task_types import TASK_TYPES

FORMAT = 1
# Flags of the data that say how files are read, as the saved model does from then on.
READING_FLAGS = (
    *("text_column", "label_column", "target_column", "value_column", "label_separator"),
    *("second_text_column", "file_column", "id_column"),
)
MODEL_FILE, PARAMS_FILE, TOKENIZER_FILE = "model.json", "params.safetensors", "tokenizer.json"


class PublishedRecord(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """How a saved model came from a published one.

    Attributes:
      config: see `fm.study.config.PublishedConfig` and `PublishedEncoderConfig`.
      digest: of the published parameters.
      source: see `PublishedModel`.
      license: see `PublishedModel`.
      causal: see `PublishedModel`.
      trained: whether all of its parameters were trained, so that they are in the folder.
      encoder: of an encoder of images or sounds, `PublishedEncoder.settings`.
    """

    config: dict[str, Any]
    digest: str
    source: str
    license: str
    causal: bool
    trained: bool
    encoder: dict[str, Any] | None = None


class ModelRecord(msgspec.Struct, forbid_unknown_fields=True):
    """Content of model.json.

    Attributes:
      format: version of the format.
      task_type: name of the task type.
      names: what predictions are numbers of: classes or tags.
      task_fields: what else the task type needs, see `TaskType.saved_fields`.
      modality: of the inputs.
      reading: how examples become inputs, see `reading_of`.
      row_length: tokens of a row at adaptation; 0 if examples have no rows.
      tokenizer: digest of the tokenizer; None without one, or for a published model's.
      model_config: see `ModelConfig`.
      layout: see `PatchLayout`; None for text.
      recipe: of the adaptation.
      hparams: hyper-parameters, "method" among them.
      state: see `AdaptationMethod.dump`.
      published: see `PublishedRecord`.
      run: figures of the run and its data, for the reader.
    """

    format: int
    task_type: str
    names: list[str]
    modality: str
    reading: dict[str, Any]
    row_length: int
    model_config: dict[str, Any]
    recipe: dict[str, Any]
    hparams: dict[str, Any]
    state: Any
    task_fields: dict[str, Any] = {}
    tokenizer: str | None = None
    layout: dict[str, Any] | None = None
    published: PublishedRecord | None = None
    run: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True, eq=False)
class AdaptedModel:
    """An adapted model that predicts labels of new examples.

    Attributes:
      record: what the model is.
      arrays: nested; "initial", the parameters it started from where predictions need them, and
        "fitted", see `AdaptationMethod.dump`.
      tokenizer: of a text model.
      published: the published model it came from, if any; without parameters if those were trained.
    """

    record: ModelRecord
    arrays: dict[str, Any]
    tokenizer: bpe.Tokenizer | HFTokenizer | None = None
    published: PublishedModel | PublishedEncoder | None = None

    @property
    def task_type(self) -> TaskType:
        """Returns what the model predicts."""
        return TASK_TYPES[self.record.task_type]

    @property
    def method(self) -> AdaptationMethod:
        """Returns the adaptation method."""
        return METHODS[self.record.hparams["method"]]

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of the classes, or of the tags."""
        return tuple(self.record.names)

    @functools.cached_property
    def model(self) -> TaskModel:
        """The model without examples; its initial parameters are empty if predictions need none."""
        record = self.record
        layout = None if record.layout is None else PatchLayout.from_dict(record.layout)
        initial = self.arrays.get("initial")
        if initial is None:
            initial = {} if self.published is None else self.published.params
        target = self.task_type.target(len(record.names))
        fields: dict[str, Any] = {
            "checkpoints": [jax.tree.map(jnp.asarray, initial)],
            "model_config": _model_config(record),
            "recipe": parse(Recipe, record.recipe, "recipe"),
            "examples": {},
            "test_from": 0,
            "num_classes": len(record.names) if target is None else target.num_outputs,
            "target": target,
            "pad_to": 1,
            "layout": layout,
        }
        if record.published is None:
            return self.task_type.restore_model(self.names, record.task_fields, **fields)
        assert self.published is not None
        kinds = PublishedConfig | PublishedEncoderConfig
        config = parse(kinds, record.published.config, "published")
        own = {"published": self.published, "config": config, "are_new": True}
        if isinstance(self.published, PublishedEncoder):
            own |= {"inputs": np.zeros((0, *record.reading["shape"])), "rate": _sound_rate(record)}
            return PublishedEncoderTaskModel(**fields, **own)
        return PublishedTaskModel(**fields, **own, inputs=[])

    @functools.cached_property
    def fitted(self) -> FittedModel:
        """What the method fitted."""
        record = self.record
        arrays = self.arrays.get("fitted", {})
        return self.method.restore(self.model, arrays, record.state, record.hparams)

    def predict(self, inputs: Any) -> Predictions:
        """Returns predictions for new examples; the same numbers whatever other examples there are.

        Args:
          inputs: N texts, lists of words (named entities), or arrays [N, ...] as `reading` says.

        Returns:
          Classes, int [N], with probabilities where the method has them; for named entities lists
          of tags, object [N]; see `TaskType` for others.

        Raises:
          UserError: the examples have another shape than the model reads.
        """
        if not len(inputs):
            return Predictions(np.zeros(0, int))
        values: np.ndarray | None = None
        probabilities: np.ndarray | None = None
        row_length = self.record.row_length
        for places, model in self.model.on_new_examples(inputs, self.tokenizer, row_length):
            idx = model.test_idx
            own = self.method.predict_proba(model, self.fitted, idx)
            if own is None:
                found = self.method.predict(model, self.fitted, idx)
            else:
                found = model.head_target.outputs_of_probabilities(own)
                if probabilities is None:
                    probabilities = np.zeros((len(inputs), own.shape[1]), own.dtype)
                probabilities[places] = own[: len(places)]
            if values is None:
                values = np.zeros((len(inputs), *found.shape[1:]), found.dtype)
            values[places] = found[: len(places)]
        assert values is not None
        return Predictions(self.model.decide(values, self.record.hparams), probabilities)

    @property
    def spec(self) -> MediaSpec | None:
        """Returns the arrays that the model reads; None for text."""
        reading = self.record.reading
        if reading.get("shape") is None:
            return None
        value_range = reading.get("value_range")
        return MediaSpec(
            tuple(reading["shape"]),
            reading.get("rate"),
            reading.get("background"),
            None if value_range is None else tuple(value_range),
        )

    def prediction_texts(self, predictions: Predictions) -> list[str]:
        """Returns the predictions as words: class names, tags joined by spaces, numbers."""
        return self.task_type.prediction_texts(predictions.values, self.names)


def adapted_model(
    model: TaskModel,
    fitted: FittedModel,
    hparams: HParams,
    seed: int,
    *,
    dataset: Dataset,
    task_type: TaskType,
    tokenizer: bpe.Tokenizer | None,
    columns: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
) -> AdaptedModel:
    """Returns the adapted model of a fit, ready to be saved.

    Args:
      model: that was fitted.
      fitted: result of the fit.
      hparams: of the fit.
      seed: of the fit.
      dataset: of the task.
      task_type: of the task.
      tokenizer: of the model; None for patches and for published models, which have their own.
      columns: columns and the like by which files are read, some of `READING_FLAGS`.
      run: figures of the run, JSON-able.

    Raises:
      UserError: the method does not say how its state is saved.
    """
    method = METHODS[hparams["method"]]
    fitted_arrays, state = method.dump(fitted)
    arrays: dict[str, Any] = {"fitted": to_host(fitted_arrays)}
    published, record = None, None
    if isinstance(model, AnyPublishedTaskModel):
        published, trained = model.published, not method.reads_initial_params
        record = PublishedRecord(
            config=to_plain(model.config),
            digest=published.digest(),
            source=published.source,
            license=published.license,
            causal=isinstance(published, PublishedModel) and published.causal,
            trained=trained,
            encoder=as_json(published.settings)
            if isinstance(published, PublishedEncoder)
            else None,
        )
        published = dataclasses.replace(published, params={}) if trained else published
    elif method.reads_initial_params:
        arrays["initial"] = to_host(model.initial_params(seed))
    about = new_record(
        dataset,
        task_type,
        hparams,
        state,
        model=model,
        tokenizer=tokenizer,
        columns=columns,
        run=run,
        published=record,
    )
    return AdaptedModel(about, arrays, tokenizer or _tokenizer_of(published), published)


def new_record(
    dataset: Dataset,
    task_type: TaskType,
    hparams: Mapping[str, Any],
    state: Any,
    *,
    model: TaskModel | None = None,
    tokenizer: bpe.Tokenizer | None = None,
    columns: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    published: PublishedRecord | None = None,
) -> ModelRecord:
    """Returns model.json of a model.

    Args:
      dataset: of the task.
      task_type: of the task.
      hparams: of the fit, "method" among them.
      state: JSON-able, as the method needs it.
      model: the network, if there is one.
      tokenizer: see `adapted_model`, as the others.
      columns: as above.
      run: as above.
      published: as above.
    """
    rows = model is not None and bool(model.examples)
    return ModelRecord(
        format=FORMAT,
        task_type=task_type.name,
        names=list(task_type.names(dataset)),
        task_fields={} if model is None else task_type.saved_fields(model),
        modality=dataset.modality,
        reading=reading_of(dataset, columns or {}),
        row_length=model.examples["segments"].shape[1] if model is not None and rows else 0,
        tokenizer=None if tokenizer is None else tokenizer.digest(),
        model_config={} if model is None else to_plain(model.model_config),
        layout=None if model is None or model.layout is None else as_json(model.layout.to_dict()),
        recipe={} if model is None else to_plain(model.recipe),
        hparams=as_json(dict(hparams)),
        state=as_json(state),
        published=published,
        run=as_json(dict(run or {})),
    )


def reading_of(dataset: Dataset, columns: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how an example of a data set becomes an input of a model, JSON-able.

    "shape", "rate", "background" and "value_range" are those of `fm.data.media.MediaSpec`, None for
    text; "columns" say how files were read.
    """
    names = ("shape", "rate", "background", "value_range")
    return as_json({name: dataset.info.get(name) for name in names} | {"columns": dict(columns)})


def names_line(names: Sequence[str], most: int = 8) -> str:
    """Returns names in one line, the last ones left out of a long list."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


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
    # A saved classical model is a saved model itself.
    from fm.study.classical_model import ClassicalModel

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
        tokenizer = _tokenizer_of(published)
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


def _model_config(record: ModelRecord) -> ModelConfig:
    is_encoder = record.published is not None and record.published.encoder is not None
    return (EncoderConfig if is_encoder else ModelConfig).from_dict(record.model_config)


def _sound_rate(record: ModelRecord) -> float | None:
    """Returns the rate of sounds in Hz; None of other examples."""
    return record.reading.get("rate") if record.modality == "audio" else None


def _tokenizer_of(published: PublishedModel | PublishedEncoder | None) -> HFTokenizer | None:
    return published.tokenizer if isinstance(published, PublishedModel) else None


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
        found = restore_encoder(name, own.encoder, config, {}, shape, _sound_rate(record))
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
            published = load_encoder(name, shape, _sound_rate(record))
    except UserError as error:
        raise UserError(f"{folder} was adapted from a published model: {error}") from error
    if published.digest() != own.digest:
        raise UserError(
            f"{folder} was adapted from {name}, but {expand_path(name)} now holds another model; "
            "adapt it again, or put back the one that was adapted"
        )
    return published


def to_host(tree: Any) -> Any:
    """Returns a tree of arrays as NumPy arrays."""
    return jax.tree.map(np.asarray, jax.device_get(tree))


def _flattened(arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    flat = flax.traverse_util.flatten_dict(arrays, sep="/")
    return {str(name): np.ascontiguousarray(array) for name, array in flat.items()}


def as_json(value: Any) -> Any:
    """Returns a value as `json.loads` gives it; numbers of NumPy become those of Python."""
    return json.loads(json.dumps(value, default=lambda each: each.tolist()))
