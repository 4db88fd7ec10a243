"""Reads a published image or sound encoder from a Hugging Face folder; runs no code of it."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fm.errors import UserError, error_context
from fm.files import expand_path, read_user_json
from fm.hf.config import ENCODER_MODALITIES
from fm.hf.config_reader import ConfigReader, refuse_own_code
from fm.hf.encoders.families import ENCODER_FAMILIES, unused_tensors
from fm.hf.encoders.images import ImagePreprocessing
from fm.hf.encoders.spectrograms import SOUND_PREPROCESSINGS, SoundPreprocessing
from fm.hf.encoders.tensors import canonical_names, params_from_tensors
from fm.hf.io import open_tensors
from fm.hf.model_zoo import model_digest
from fm.model.embeddings import pooled_output as pooled_by_layer
from fm.model.stems import CONVOLUTIONS, EncoderConfig, StemConfig

_PREPROCESSOR = "preprocessor_config.json"
# What a token of `EncoderInputs` is, in "segments".
NOT_READ, PATCH, CLASS_TOKEN = 0, 1, 2


@dataclasses.dataclass(frozen=True, eq=False)
class PublishedEncoder:
    """A loaded encoder of images or sounds that others pretrained, and how it reads them.

    Attributes:
      name: folder, as asked for.
      family: one of `ENCODER_FAMILIES`.
      config: architecture, for the one shape of inputs that it was loaded for.
      params: parameters.
      preprocess: maps images uint8 [N, height, width, channels] or sounds int16 [N, samples] to
        what the stem reads.
      reading: what it does, in a few words.
      segments: what each token is, int32 [L]: `CLASS_TOKEN`, `PATCH`, or `NOT_READ` for registers
        and for what comes from the padding of a sound.
      settings: config.json and preprocessor_config.json, as "config" and "preprocessor".
      unused_tensors: tensors of the file that are not read, such as heads and decoders.
      source: where it is from, as far as known.
      license: of the weights, as far as known.
    """

    name: str
    family: str
    config: EncoderConfig
    params: dict
    preprocess: Any
    reading: str
    segments: np.ndarray
    settings: Mapping[str, Mapping[str, Any]]
    unused_tensors: tuple[str, ...] = ()
    source: str = "a file of your own"
    license: str = "not known"

    @property
    def modality(self) -> str:
        """The modality that it reads."""
        return ENCODER_FAMILIES[self.family].modality

    @property
    def has_class_tokens(self) -> bool:
        """Whether there are tokens whose outputs stand for the whole input."""
        return self.config.stem.num_class_tokens > 0

    def digest(self) -> str:
        """Returns a hash of the architecture and all parameters."""
        return model_digest(self.config, self.params)

    def inputs(self, examples: np.ndarray) -> dict[str, np.ndarray]:
        """Returns examples as a batch of `fm.model.transformer.forward`.

        Args:
          examples: images uint8 [N, height, width, channels] or sounds int16 [N, samples], of the
            shape that the encoder was loaded for.

        Returns:
          The stem's input by the name of its modality, "segments" and "positions", int32 [N, L].
        """
        N, L = len(examples), len(self.segments)
        return {
            self.config.stem.modality: self.preprocess(examples),
            "segments": np.broadcast_to(self.segments, (N, L)),
            "positions": np.broadcast_to(np.arange(L, dtype=np.int32), (N, L)),
        }


def encoder_modality(name: str | pathlib.Path) -> str | None:
    """Returns the modality of the encoder in a folder; None if it holds none.

    A damaged config.json is for the reader of the whole model to tell of.
    """
    config = expand_path(str(name)) / "config.json"
    if not config.is_file():
        return None
    try:
        values = read_user_json(config)
    except UserError:
        return None
    found = values.get("model_type") if isinstance(values, dict) else None
    return ENCODER_MODALITIES.get(found) if isinstance(found, str) else None


def load_encoder(
    name: str | pathlib.Path, shape: Sequence[int], rate: float | None = None
) -> PublishedEncoder:
    """Loads an encoder for examples of one shape.

    Positions of an image encoder are resized to the images' grid of patches.

    Args:
      name: a folder with config.json, preprocessor_config.json and safetensors.
      shape: of an example, (height, width, channels) of an image or (samples,) of a sound.
      rate: of sounds, in Hz.

    Raises:
      UserError: a file is missing or damaged, a weight is not finite, the model or its
        preprocessing is not supported, or its tensors do not fit its config.
    """
    path = expand_path(str(name))
    with error_context(path):
        values = _json_object(path / "config.json")
        family = ENCODER_FAMILIES.get(str(values.get("model_type")))
        if family is None:
            raise UserError(
                f"config.json: model_type={values.get('model_type')!r} is no known encoder of "
                f"images or sounds; known are {', '.join(ENCODER_FAMILIES)}"
            )
        refuse_own_code(values)
        if not (path / _PREPROCESSOR).is_file():
            raise UserError(f"has no {_PREPROCESSOR}, which says how {family.title} reads its data")
        settings = {"config": values, "preprocessor": _json_object(path / _PREPROCESSOR)}
        preprocessing = _preprocessing(settings)
        with open_tensors(path) as tensors:
            reader, names = ConfigReader(values), canonical_names(tensors)
            config = family.to_config(reader, names, preprocessing, tuple(shape))
            params = params_from_tensors(family, reader, config, tensors)
        encoder = restore_encoder(str(name), settings, config, params, shape, rate)
    return dataclasses.replace(
        encoder, unused_tensors=unused_tensors(family, names), license=license_of(path)
    )


def license_of(folder: pathlib.Path) -> str:
    """Returns the license that a folder's model card states in its front matter, if it does."""
    card = folder / "README.md"
    if not card.is_file():
        return "not known"
    front = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
    found = re.search(r"^license: *([\w.+-]+) *$", front[1] if len(front) > 2 else "", re.MULTILINE)
    return f"{found[1]}, says its model card" if found else "not known"


def restore_encoder(
    name: str,
    settings: Mapping[str, Mapping[str, Any]],
    config: EncoderConfig,
    params: dict,
    shape: Sequence[int],
    rate: float | None = None,
) -> PublishedEncoder:
    """Returns an encoder of known architecture and parameters.

    Args:
      name: of its folder, which is not read.
      settings: see `PublishedEncoder`.
      config: its architecture.
      params: its parameters.
      shape: see `load_encoder`.
      rate: see `load_encoder`.

    Raises:
      UserError: its preprocessing is not supported.
    """
    preprocessing = _preprocessing(settings)
    segments = np.full(config.stem.num_tokens, PATCH, np.int32)
    segments[: config.stem.num_prefix_tokens] = NOT_READ
    segments[: config.stem.num_class_tokens] = CLASS_TOKEN
    preprocess: Any = preprocessing
    if isinstance(preprocessing, SoundPreprocessing):
        assert rate is not None, "sounds have a rate"
        preprocess = functools.partial(preprocessing, rate=rate)
        samples = preprocessing.resampled_length(shape[0], rate)
        padding = ~_sounding(config.stem, preprocessing.num_sounding_frames(samples))
        segments[config.stem.num_prefix_tokens :][padding] = NOT_READ
        reading = preprocessing.describe(shape[0], rate)
    else:
        reading = preprocessing.describe()
    return PublishedEncoder(
        name=name,
        family=settings["config"]["model_type"],
        config=config,
        params=params,
        preprocess=preprocess,
        reading=reading,
        segments=segments,
        settings=settings,
    )


def _preprocessing(
    settings: Mapping[str, Mapping[str, Any]],
) -> ImagePreprocessing | SoundPreprocessing:
    """Returns the preprocessing that config.json and preprocessor_config.json ask for."""
    reader, preprocessor = ConfigReader(settings["config"]), settings["preprocessor"]
    family = ENCODER_FAMILIES[settings["config"]["model_type"]]
    if family.modality == "audio":
        return SOUND_PREPROCESSINGS[family.name].from_config(preprocessor)
    channels = reader.size("num_channels", 3)
    if channels not in (1, 3):
        raise UserError(f"config.json: num_channels={channels} must be 1 or 3")
    return ImagePreprocessing.from_config(preprocessor, channels, family.processor)


def pooled_output(
    params: dict, inputs: dict, final_BLD: jnp.ndarray, config: EncoderConfig
) -> jnp.ndarray:
    """Returns what `transformers` calls the pooler's output, [B, D].

    It is the mean of the class tokens' outputs, through the pooler's layer if there is one.

    Args:
      params: of the encoder.
      inputs: batch with "segments".
      final_BLD: final output.
      config: of the encoder, which has class tokens.
    """
    if config.arch.pooler:
        return pooled_by_layer(params["streams"], final_BLD)
    is_class_BL1 = (inputs["segments"] == CLASS_TOKEN)[..., None]
    return jnp.sum(final_BLD * is_class_BL1, axis=1) / config.stem.num_class_tokens


def _sounding(stem: StemConfig, frames: int) -> np.ndarray:
    """Returns which patches begin within the first `frames` frames, bool [patches]."""
    rows, columns = stem.grid
    step = 2 if stem.kind == CONVOLUTIONS else stem.stride[1]
    sounding = np.arange(columns) * step < frames
    return np.tile(sounding, rows)


def _json_object(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"has no {path.name}")
    value = read_user_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path.name} is not a JSON object")
    return value
