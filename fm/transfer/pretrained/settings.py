"""Reading a Hugging Face config.json: sizes checked, and nothing that matters passed over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fm.errors import UserError
from fm.model.positions import RopeScaling


class Settings:
    """The keys of a config.json, each read by what it must be; none is trusted.

    A key that is absent or null has the default given, and without one is an error.
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
        """A whole number, at least 1."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"config.json: {key}={value!r} must be a whole number of at least 1")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number over 0."""
        value = self._value(key, default)
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not numeric or not math.isfinite(value) or value <= 0:
            raise UserError(f"config.json: {key}={value!r} must be a number over 0")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise UserError(f"config.json: {key}={value!r} must be true or false")
        return value

    def choice(self, key: str, accepted: Mapping[str, str], default: str) -> str:
        """What `accepted` makes of a name."""
        value = self._value(key, default)
        if not isinstance(value, str) or value not in accepted:
            raise UserError(
                f"config.json: {key}={value!r} is not known; accepted are {', '.join(accepted)}"
            )
        return accepted[value]

    def only(self, key: str, value: Any) -> None:
        """That a key, if there, has the one value `fm` can honour."""
        given = self.values.get(key)
        if given is not None and given != value:
            raise UserError(f"config.json: {key}={given!r} is not supported, only {value!r} is")

    def full_attention(self, depth: int) -> None:
        """That no layer uses a sliding window (Qwen's rule where `layer_types` does not say)."""
        kinds = self.values.get("layer_types")
        if kinds is None:
            used = self.flag("use_sliding_window", False) and self.values.get("sliding_window")
            kinds = ["sliding_attention"] if used and self._window_start() < depth else []
        for kind in kinds:
            if kind != "full_attention":
                raise UserError(
                    f"config.json: a layer of {kind!r} is not supported, only full_attention is"
                )

    def _window_start(self) -> int:
        """The first layer that may slide."""
        start = self._value("max_window_layers", 28)
        if not isinstance(start, int):
            raise UserError(f"config.json: max_window_layers={start!r} must be a whole number")
        return start

    def rope(self) -> tuple[float, RopeScaling | None]:
        """Base and scaling of the rotary frequencies, in the older and the newer spelling.

        Older are `rope_theta` and `rope_scaling`, newer is `rope_parameters` with both.
        """
        self.only("partial_rotary_factor", 1.0)
        given = self.values.get("rope_parameters") or self.values.get("rope_scaling") or {}
        if not isinstance(given, Mapping):
            raise UserError(f"config.json: rope_parameters={given!r} must be an object")
        rope = Settings(given)
        rope.only("partial_rotary_factor", 1.0)
        base = (rope if "rope_theta" in given else self).number("rope_theta", 10_000.0)
        kind = given.get("rope_type", given.get("type", "default"))
        if kind == "default":
            return base, None
        if kind != "llama3":
            raise UserError(
                f"config.json: rope scaling {kind!r} is not supported; accepted are default, llama3"
            )
        return base, RopeScaling(
            factor=rope.number("factor"),
            low=rope.number("low_freq_factor"),
            high=rope.number("high_freq_factor"),
            context=rope.size("original_max_position_embeddings"),
        )


def rope_settings(base: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The keys `Settings.rope` reads, in the older spelling, which every version knows."""
    if scaling is None:
        return {"rope_theta": base}
    return {
        "rope_theta": base,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low,
            "high_freq_factor": scaling.high,
            "original_max_position_embeddings": scaling.context,
        },
    }
