"""Checked reading of Hugging Face's config.json, and the keys that several families share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fm.errors import UserError
from fm.model.config import ModelConfig, RopeScaling

# Of several names for one activation the first is written.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu2": "relu2",
}
# Kinds of layers by config.json's names of them.
_LAYER_TYPES = {"full": "full_attention", "sliding": "sliding_attention"}


class ConfigReader:
    """Reads typed, checked values from a Hugging Face config.json; a bad value is a `UserError`.

    A key that is absent or null takes the default; without a default it is an error.
    """

    def __init__(self, values: Mapping[str, Any]):
        self.values = values

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise UserError(f"config.json lacks {key}")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """Returns a key's value, an integer of at least 1."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"config.json: {key}={value!r} must be a whole number of at least 1")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a key's value, a finite number above 0."""
        value = self._value(key, default)
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not numeric or not math.isfinite(value) or value <= 0:
            raise UserError(f"config.json: {key}={value!r} must be a number over 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Returns a key's value, a boolean."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise UserError(f"config.json: {key}={value!r} must be true or false")
        return value

    def choice(self, key: str, accepted: Mapping[str, str], default: str) -> str:
        """Returns what `accepted` maps a key's value to."""
        value = self._value(key, default)
        if not isinstance(value, str) or value not in accepted:
            raise UserError(
                f"config.json: {key}={value!r} is not known; accepted are {', '.join(accepted)}"
            )
        return accepted[value]

    def require(self, key: str, value: Any) -> None:
        """Raises UserError if a key is present with a value other than the supported one."""
        given = self.values.get(key)
        if given is not None and given != value:
            raise UserError(f"config.json: {key}={given!r} is not supported, only {value!r} is")

    def optional_size(self, key: str, default: int) -> int:
        """Returns a key's value, an integer of at least 1; `default` if absent and 0 if null."""
        null = key in self.values and self.values[key] is None
        return 0 if null else self.size(key, default)

    def optional_number(self, key: str, default: float) -> float:
        """Returns a key's value, a number above 0; `default` if absent and 0 if null."""
        if self.values.get(key, default or None) is None:
            return 0.0
        return self.number(key, default)

    def layer_kinds(self, num_layers: int, default: Sequence[str]) -> tuple[str, ...]:
        """Returns the kind of each layer, "full" or "sliding", by `layer_types`.

        Args:
          num_layers: of the model.
          default: the kinds where the key is absent.
        """
        given = self.values.get("layer_types")
        if given is None:
            return tuple(default)
        if not isinstance(given, list) or len(given) != num_layers:
            raise UserError(f"config.json: layer_types must be a list of {num_layers}, one a layer")
        unknown = [name for name in given if name not in _LAYER_TYPES.values()]
        if unknown:
            raise UserError(
                f"config.json: a layer of {unknown[0]!r} is not supported; accepted are "
                f"{', '.join(_LAYER_TYPES.values())}"
            )
        return tuple(kind for name in given for kind in _LAYER_TYPES if _LAYER_TYPES[kind] == name)

    def rope(
        self, layer_type: str = "", default_theta: float = 10_000.0
    ) -> tuple[float, RopeScaling | None]:
        """Returns RoPE theta and scaling, from `rope_parameters` or the older keys.

        The older spelling is `rope_theta` and `rope_scaling`.

        Args:
          layer_type: whose parameters are read where `rope_parameters` has them by type of layer.
          default_theta: base where none is given.
        """
        self.require("partial_rotary_factor", 1.0)
        given = self.values.get("rope_parameters") or self.values.get("rope_scaling") or {}
        if isinstance(given, Mapping) and layer_type in given:
            given = given[layer_type] or {}
        if not isinstance(given, Mapping):
            raise UserError(f"config.json: rope_parameters={given!r} must be an object")
        rope = ConfigReader(given)
        rope.require("partial_rotary_factor", 1.0)
        theta = (rope if "rope_theta" in given else self).number("rope_theta", default_theta)
        rope_type = given.get("rope_type", given.get("type", "default"))
        # Dynamic NTK scaling changes nothing up to max_position_embeddings, the longest input here.
        if rope_type in ("default", "dynamic"):
            return theta, None
        if rope_type == "linear":
            return theta, RopeScaling(rope.number("factor"), rope_type="linear")
        if rope_type == "llama3":
            return theta, RopeScaling(
                factor=rope.number("factor"),
                low_freq_factor=rope.number("low_freq_factor"),
                high_freq_factor=rope.number("high_freq_factor"),
                original_max_seq_len=rope.size("original_max_position_embeddings"),
            )
        if rope_type == "yarn":
            return theta, self._yarn(rope)
        raise UserError(
            f"config.json: rope scaling {rope_type!r} is not supported; accepted are default, "
            "linear, dynamic, llama3, yarn"
        )

    def _yarn(self, rope: ConfigReader) -> RopeScaling:
        length = self.size("max_position_embeddings")
        original = rope.size("original_max_position_embeddings", length)
        factor = rope.number("factor", length / original)
        mscales = [rope.optional_number(key, 0.0) for key in ("mscale", "mscale_all_dim")]
        own, all_dims = (_yarn_mscale(factor, each) for each in mscales)
        scale = own / all_dims if all(mscales) else _yarn_mscale(factor, 1.0)
        return RopeScaling(
            factor=factor,
            original_max_seq_len=original,
            rope_type="yarn",
            beta_fast=rope.number("beta_fast", 32.0),
            beta_slow=rope.number("beta_slow", 1.0),
            attention_factor=rope.number("attention_factor", scale),
            truncate=rope.flag("truncate", True),
        )


def _yarn_mscale(factor: float, mscale: float) -> float:
    """Returns the factor of cosines and sines (Peng et al. 2023, eq. 22)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def layer_pattern(kinds: Sequence[str]) -> tuple[str, ...]:
    """Returns the shortest pattern that gives these kinds of layers if repeated."""
    return next(
        tuple(kinds[:size])
        for size in range(1, len(kinds) + 1)
        if all(kind == kinds[n % size] for n, kind in enumerate(kinds))
    )


def layer_types(model: ModelConfig) -> list[str]:
    """Returns config.json's `layer_types` of a model."""
    return [_LAYER_TYPES[kind] for kind in model.layer_kinds]


def rope_config(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """Returns the config.json keys `rope_theta` and `rope_scaling` of a RoPE base and scaling."""
    return {"rope_theta": theta} | ({"rope_scaling": scaling_config(scaling)} if scaling else {})


def scaling_config(scaling: RopeScaling) -> dict[str, Any]:
    """Returns the config.json object of a RoPE scaling."""
    values: dict[str, Any] = {"rope_type": scaling.rope_type, "factor": scaling.factor}
    if scaling.rope_type == "linear":
        return values
    values["original_max_position_embeddings"] = scaling.original_max_seq_len
    names = {
        "llama3": ("low_freq_factor", "high_freq_factor"),
        "yarn": ("beta_fast", "beta_slow", "attention_factor", "truncate"),
    }
    return values | {name: getattr(scaling, name) for name in names[scaling.rope_type]}


def activation_name(activation: str) -> str:
    """Returns the name that config.json gives one of our activations."""
    return next(name for name, ours in ACTIVATIONS.items() if ours == activation)


def refuse_own_code(config: Mapping[str, Any]) -> None:
    """Raises UserError if a config.json asks for code of its own or for quantized tensors."""
    for key in ("auto_map", "quantization_config"):
        if config.get(key):
            raise UserError(f"config.json: {key} is not supported (fm runs no model's own code)")
