"""Which family can say what a model is: the one whose config.json reads back as that model."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from fm.errors import UserError
from fm.model.config import ModelConfig
from fm.model.transformer import init
from fm.transfer.pretrained import weights
from fm.transfer.pretrained.families import FAMILIES, Family
from fm.transfer.pretrained.settings import Settings

# How a model is run, or sizes of parts that no family has.
_ELSEWHERE = ("scan", "dtype", "attention", "mixtures", "head_dim")


def choose(model: ModelConfig, name: str = "") -> tuple[Family, dict[str, Any]]:
    """A family that expresses a model, and the config.json it is expressed by.

    Args:
      model: the model's config.
      name: the family it must be; "" for the first that will do.

    Raises:
      UserError: none does; one line says what the nearest would have instead.
    """
    if name and name not in FAMILIES:
        raise UserError(f"family {name!r} is not known; known are {', '.join(FAMILIES)}")
    refusals, differences = {}, {}
    for family in [FAMILIES[name]] if name else FAMILIES.values():
        config = _config(family, model)
        try:
            found = _differences(family, config, model)
        except UserError as error:
            refusals[family.name] = [str(error)]
            continue
        if not found:
            return family, config
        differences[family.name] = found
    reasons = differences or refusals
    nearest = min(reasons, key=lambda family: len(reasons[family]))
    raise UserError(
        f"no {name or 'known'} model is like this one: nearest is {nearest}, which takes "
        f"{', '.join(reasons[nearest])}"
    )


def _config(family: Family, model: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": [family.architecture],
        "model_type": family.name,
        "torch_dtype": model.dtype,
        "vocab_size": model.vocab,
        "tie_word_embeddings": model.style.tied,
        **family.settings(model),
    }


def _differences(family: Family, config: dict[str, Any], model: ModelConfig) -> list[str]:
    """What the family's model would have otherwise, each as `field=theirs (not ours)`.

    Raises:
      UserError: the family has no model of such a config.json at all.
    """
    pooler = ["pooler.dense.weight"] if model.style.pooler else []
    theirs = _described(family.model(Settings(config), pooler))
    ours = _described(model)
    found = [
        f"{name}={theirs[name]} (not {ours[name]})" for name in ours if theirs[name] != ours[name]
    ]
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), model))
    return found or [f"no {leaf}" for leaf in weights.uncovered(family, shapes)]


def _described(model: ModelConfig) -> dict[str, Any]:
    """Everything that makes a difference to a model's output."""
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    style = fields.pop("style")
    fields |= {field.name: getattr(style, field.name) for field in dataclasses.fields(style)}
    fields["head_width"] = model.head_width
    if style.positions == "learned":
        fields["rope_base"] = None
    return {name: value for name, value in fields.items() if name not in _ELSEWHERE}
