"""Adapted models: what one is, reads and predicts, and how it labels new examples."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np

from fm.adaptation.methods import METHODS, AdaptationMethod, FittedModel, HParams
from fm.adaptation.task_model import TaskModel
from fm.config_io import parse, to_plain
from fm.data import tokenizer as bpe
from fm.data.datasets import Dataset
from fm.data.media import MediaSpec, PatchLayout
from fm.hf.encoders import PublishedEncoder
from fm.hf.model_zoo import PublishedModel
from fm.hf.tokenizer import HFTokenizer
from fm.model.config import ModelConfig
from fm.model.stems import EncoderConfig
from fm.study.adaptation import Predictions
from fm.study.config import PublishedConfig, PublishedEncoderConfig, Recipe
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
            own |= {"inputs": np.zeros((0, *record.reading["shape"])), "rate": sound_rate(record)}
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
    return AdaptedModel(about, arrays, tokenizer or tokenizer_of(published), published)


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


def _model_config(record: ModelRecord) -> ModelConfig:
    is_encoder = record.published is not None and record.published.encoder is not None
    return (EncoderConfig if is_encoder else ModelConfig).from_dict(record.model_config)


def sound_rate(record: ModelRecord) -> float | None:
    """Returns the rate of sounds in Hz; None of other examples."""
    return record.reading.get("rate") if record.modality == "audio" else None


def tokenizer_of(published: PublishedModel | PublishedEncoder | None) -> HFTokenizer | None:
    """Returns the tokenizer of a published model of text; None of other models."""
    return published.tokenizer if isinstance(published, PublishedModel) else None


def to_host(tree: Any) -> Any:
    """Returns a tree of arrays as NumPy arrays."""
    return jax.tree.map(np.asarray, jax.device_get(tree))


def as_json(value: Any) -> Any:
    """Returns a value as `json.loads` gives it; numbers of NumPy become those of Python."""
    return json.loads(json.dumps(value, default=lambda each: each.tolist()))
