"""Published encoders of images and sounds on a task: frozen features, and fine-tuning.

Features of an example are computed once and cached by content. What a probe reads of them (class
tokens, patches, one or several layers) is chosen on validation data. Of clips every frame is read,
and features are averaged.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fm.adaptation import feature_cache, finetune
from fm.adaptation.augment import AUGMENTATIONS
from fm.adaptation.batching import BATCH_SIZE
from fm.adaptation.encoder_features import (
    ProbeReading,
    encoder_features,
    feature_parts,
    map_examples,
    probe_readings,
    select_reading,
)
from fm.adaptation.features import CLASS_AND_PATCHES, FeatureConfig
from fm.adaptation.targets import ClassTarget, Target
from fm.adaptation.task_model import Fold, TaskModel
from fm.data.patches import IMAGE_SIZE_STEP, MAX_IMAGE_SIZE
from fm.errors import UserError
from fm.hf.encoders import PublishedEncoder, load_encoder
from fm.model import flops
from fm.progress_lines import phase
from fm.study.adaptation import ModelArm
from fm.study.config import PublishedEncoderConfig, Recipe
from fm.study.published_model import AnyPublishedTaskModel, published_recipe

# Modalities of data, and what an encoder of each model reads of them.
READABLE = {"image": ("image", "video"), "audio": ("audio",)}


@dataclasses.dataclass(frozen=True)
class ReadingProbe:
    """A linear probe, and which of an encoder's features it reads.

    Attributes:
      probe: of `Target.fit_probe`.
      reading: what it reads.
    """

    probe: Any
    reading: ProbeReading

    @property
    def params(self) -> dict[str, np.ndarray]:
        """Returns the weights."""
        return self.probe.params

    @property
    def steps(self) -> int:
        """Returns the number of solver iterations."""
        return self.probe.steps

    def dump(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Returns arrays and JSON that `PublishedEncoderTaskModel.restore_probe` takes."""
        arrays, state = self.probe.dump()
        return arrays, state | {"reading": self.reading.name}


@dataclasses.dataclass(eq=False, kw_only=True)
class PublishedEncoderTaskModel(AnyPublishedTaskModel):
    """A published encoder with a task's images, sounds or clips, ready for an adaptation method.

    `inputs` are arrays, [N, ...].

    Attributes:
      rate: of sounds, in Hz.
    """

    published: PublishedEncoder
    config: PublishedEncoderConfig
    inputs: np.ndarray
    rate: float | None = None

    @property
    def frames_per_example(self) -> int:
        """Returns the images of an example: frames of a clip, else 1."""
        own = len(self.published.config.stem.input_shape) if self.rate is None else 1
        return self.inputs.shape[1] if self.inputs.ndim - 1 > own else 1

    @functools.cached_property
    def readings(self) -> dict[str, ProbeReading]:
        """What probes may read, by name; the first is that of methods that do not choose."""
        return {each.name: each for each in probe_readings(self.published.config)}

    def num_features(self) -> int:
        """Returns the number of features of an example (E)."""
        first = next(iter(self.readings.values()))
        return len(first.parts) * first.num_layers * self.model_config.d_model

    def feature_flops(self) -> float:
        """Returns the FLOPs of computing the features of an example."""
        return self.frames_per_example * _forward_flops(self.published)

    def train_flops(self, length: int = 0) -> float:
        """FLOPs of a training step per example; encoders see all of it."""
        return 3.0 * _forward_flops(self.published)

    def features(self, seed: int, idx: np.ndarray) -> np.ndarray:
        """Returns features of the examples `idx`, [n, E]; the same for every seed."""
        return self._read(next(iter(self.readings.values())), idx)

    def fit_probe(self, seed, train_idx, labels, hparams):
        """Fits a linear probe to what the hyper-parameter "reading" names; see `TaskModel`."""
        reading = self.readings[hparams.get("reading", next(iter(self.readings)))]
        truths = self.truths_of(train_idx, labels)
        features = self._read(reading, train_idx)
        return ReadingProbe(self.head_target.fit_probe(features, truths, hparams), reading)

    def predict_probe(self, probe: Any, seed: int, idx: np.ndarray) -> np.ndarray:
        """Returns a probe's outputs for the examples `idx`."""
        if not isinstance(probe, ReadingProbe):
            return probe.predict(self.features(seed, idx))
        return probe.probe.predict(self._read(probe.reading, idx))

    def predict_probe_proba(self, probe: Any, seed: int, idx: np.ndarray) -> Any:
        """Returns class probabilities, float32 [n, classes]; None if the target has none."""
        return self.head_target.probe_probabilities(probe.probe, self._read(probe.reading, idx))

    def search_probe(
        self, seed: int, train_idx: np.ndarray, labels: np.ndarray, folds: Sequence[Fold]
    ) -> list[tuple[dict[str, Any], float]]:
        """Returns (hyper-parameters, validation metric) of the probes tried, of every reading."""
        truths, penalties = self.truths_of(train_idx, labels), self.recipe.l2_penalties
        return [
            ({"reading": name} | hparams, score)
            for name, reading in self.readings.items()
            for hparams, score in self.head_target.search_probe(
                self._read(reading, train_idx), truths, penalties, folds
            )
        ]

    def restore_probe(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> Any:
        """Returns the probe of `fit_probe` of whose `dump` these are."""
        probe = self.head_target.restore_probe(arrays, state)
        return ReadingProbe(probe, self.readings[state["reading"]])

    def on_new_examples(
        self, inputs: Any, tokenizer: Any, row_length: int
    ) -> Iterator[tuple[np.ndarray, TaskModel]]:
        """Yields models with new examples, `BATCH_SIZE` at a time; see `TaskModel`."""
        inputs = np.asarray(inputs)
        for start in range(0, len(inputs), BATCH_SIZE):
            places = np.arange(start, min(start + BATCH_SIZE, len(inputs)))
            filled = np.concatenate([places, np.repeat(places[:1], BATCH_SIZE - len(places))])
            yield places, self._with_examples({}, inputs=inputs[filled], are_new=True)

    def description(self) -> dict[str, Any]:
        """Returns source, license and use of the encoder, for results.json."""
        stem = self.published.config.stem
        size = "x".join(map(str, self.inputs.shape[-3:-1])) if self.rate is None else ""
        read = f"{f'images of {size}, ' if size else ''}{self.published.reading}"
        frames = " of every frame, averaged" if self.frames_per_example > 1 else ""
        return self._source() | {
            "reading": f"{read}, as {stem.num_tokens:,} tokens{frames}; a probe reads "
            f"{' or '.join(self.readings)}",
            "tokens": None,
            "finetuned": self.trainable,
        }

    def _finetuned_logits(self, params: dict, idx: np.ndarray) -> np.ndarray:
        config = self.recipe.finetune.feature_config
        fn = functools.partial(_logits, model_config=self.model_config, feature_config=config)
        used = {name: params[name] for name in ("model", "head")}
        return map_examples(fn, used, self.published.inputs, self.inputs[idx])

    def _read(self, reading: ProbeReading, idx: np.ndarray) -> np.ndarray:
        """Returns what a probe reads of the examples `idx`, [n, E]."""
        with self._lock:
            features = self._all_features[idx]
        return select_reading(features, feature_parts(self.published.config), reading)

    @functools.cached_property
    def _all_features(self) -> np.ndarray:
        """Features of all examples, float32 [N, layers, parts, D]."""
        if self.are_new:
            return self._computed_features()
        key = {
            "model": self._digest,
            "preprocess": repr(self.published.preprocess),
            "shape": list(self.inputs.shape[1:]),
            "segments": self.published.segments.tolist(),
        }
        with phase(f"{self.published.name}: reading {len(self.inputs):,} examples"):
            flat = self.inputs.reshape(len(self.inputs), -1)
            return feature_cache.cached(key, list(flat), self._computed_features).values

    def _computed_features(self) -> np.ndarray:
        published, frames = self.published, self.frames_per_example
        examples = self.inputs
        if frames > 1:
            examples = examples.reshape(-1, *examples.shape[2:])
        found = encoder_features(published.params, published.config, published.inputs, examples)
        return found.reshape(-1, frames, *found.shape[1:]).mean(axis=1)


class PreprocessedExamples:
    """The stem's inputs of examples, computed when some are asked for: all would not fit memory."""

    def __init__(self, inputs: Callable[[np.ndarray], np.ndarray], examples: np.ndarray):
        self._inputs, self._examples = inputs, examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, idx: np.ndarray) -> np.ndarray:
        return self._inputs(self._examples[idx])


@functools.partial(jax.jit, static_argnames=("model_config", "feature_config"))
def _logits(finetuned, batch, model_config, feature_config):
    return finetune.logits(finetuned, batch, model_config, feature_config)


def _forward_flops(published: PublishedEncoder) -> float:
    config = published.config
    layers = flops.forward_flops(config, config.stem.num_tokens, num_predictions=0, modalities=())
    return layers + flops.stem_flops(config)


def check_modality(model: str, reads: str | None, modality: str) -> None:
    """Raises UserError if a published model does not read data of this modality.

    Args:
      model: as asked for.
      reads: what the encoder reads; None for a model of text.
      modality: of the data.
    """
    if modality in readable_modalities(reads):
        return
    raise UserError(
        f"--model={model} is a published model that reads {reads or 'text'}, and the data is "
        f"{modality}; takes a model that reads {modality}"
    )


def readable_modalities(reads: str | None) -> tuple[str, ...]:
    """Returns the modalities of data that a published model reads; None is a model of text."""
    return ("text",) if reads is None else READABLE[reads]


def shrunk_inputs_line(
    published: PublishedEncoder, shape: Sequence[int], shrunk: Mapping[str, Any] | None
) -> str | None:
    """Returns a line if images were made smaller than what an encoder reads; else None.

    Args:
      published: the encoder.
      shape: of an image, (height, width, channels), or of a clip.
      shrunk: see `fm.data.media.ModalityCodec.shrunk`.
    """
    wanted = published.config.stem.input_shape[:2]
    own = tuple(shape)[-3:-1]
    if not shrunk or min(own) >= min(wanted):
        return None
    size = -(-min(*wanted, MAX_IMAGE_SIZE) // IMAGE_SIZE_STEP) * IMAGE_SIZE_STEP
    read, given, before = ("x".join(map(str, each)) for each in (wanted, own, shrunk["from"]))
    return (
        f"{published.name} reads images of {read}, and {shrunk['count']:,} of these were shrunk to "
        f"{given}, typically from {before}; --image_size={size} lets it see more of them"
    )


def build_published_encoder_arm(
    config: PublishedEncoderConfig,
    recipe: Recipe,
    inputs: np.ndarray,
    *,
    rate: float | None,
    methods: Sequence[str],
    test_from: int,
    num_classes: int,
    pad_to: int,
    trainable: bool,
    target: Target | None = None,
    truths: np.ndarray | None = None,
) -> ModelArm:
    """Loads a published encoder; returns its arm, with hyper-parameter grids for its adaptation.

    Args:
      config: the encoder, and how it is used.
      recipe: the task's recipe.
      inputs: labeled examples, then test items: images, sounds or clips [N, ...].
      rate: of sounds in Hz; None for others.
      methods: adaptation methods asked for.
      test_from: index of the first test item.
      num_classes: number of classes, or of a head's outputs.
      pad_to: the largest number of labels.
      trainable: whether methods may train the encoder itself; that of clips they may not.
      target: what an example's label is; a class by default.
      truths: see `TaskModel`.

    Raises:
      UserError: there is no such encoder, it cannot be read, or it supports none of the methods.
    """
    is_clips = inputs.ndim == 5
    published = load_encoder(config.model, inputs.shape[2:] if is_clips else inputs.shape[1:], rate)
    pooling = CLASS_AND_PATCHES if published.has_class_tokens else "patches"
    recipe = published_recipe(
        recipe,
        finetune={"augment": None, "feature_config": FeatureConfig(pooling)},
        # Augmentations work on the patches of the study's own models.
        regularizers=tuple(each for each in recipe.regularizers if each not in AUGMENTATIONS)
        or ("weight_decay",),
    )
    model = PublishedEncoderTaskModel(
        checkpoints=[published.params],
        model_config=published.config,
        recipe=recipe,
        examples={},
        test_from=test_from,
        num_classes=num_classes,
        target=target or ClassTarget(num_classes),
        truths=truths,
        pad_to=pad_to,
        trainable=trainable and not is_clips,
        published=published,
        config=config,
        inputs=inputs,
        rate=rate,
    )
    arm = ModelArm(model, tuple(methods))
    supported = arm.supported_methods()
    if not supported:
        clips = " of clips" if is_clips else ""
        raise UserError(
            f"--adapt={','.join(methods)}: the published encoder {config.model} supports none of "
            f"these{clips} here; add probe, or leave published out of --arms"
        )
    if any(method.updates_model for method in supported):
        model.examples = training_examples(published, inputs)
    return arm


def training_examples(published: PublishedEncoder, inputs: np.ndarray) -> Any:
    """Returns examples for fine-tuning, preprocessed when some of them are taken."""
    N, L = len(inputs), len(published.segments)
    modality = published.config.stem.modality
    return {
        modality: PreprocessedExamples(published.preprocess, inputs),
        "segments": np.broadcast_to(published.segments, (N, L)),
        "positions": np.broadcast_to(np.arange(L, dtype=np.int32), (N, L)),
    }
