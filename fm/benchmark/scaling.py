"""How the cost of a train step grows with each of its sizes, and the exponent of that growth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from fm.benchmark.core import BenchConfig, Case, ResultRow
from fm.benchmark.step import next_token_case, step_shape

# What is varied starts here, the others staying where they are; lengths count most when long.
_BASE = {"length": 128, "width": 128, "depth": 2, "batch": 8, "vocab": 1024}
_GROWTH = {
    "length": (64, 128, 256, 512, 1024),
    "width": (64, 128, 256, 512),
    "depth": (1, 2, 4, 8),
    "batch": (2, 4, 8, 16, 32),
    "vocab": (256, 1024, 4096, 16384),
}
_QUICK = {"length": (8, 16, 32), "batch": (1, 2, 4)}
_QUICK_BASE = {"length": 16, "width": 32, "depth": 1, "batch": 2, "vocab": 64}


def cases(setting: BenchConfig) -> Iterator[Case]:
    """One size at a time, the others at their base."""
    base, growth = (_QUICK_BASE, _QUICK) if setting.quick else (_BASE, _GROWTH)
    for axis, values in growth.items():
        for value in values:
            sizes = base | {axis: value}
            each = step_shape(**sizes, heads=sizes["width"] // 32)
            case = next_token_case("scaling", each, "float32", setting)
            ours = {"fm": case.candidates["fm"]}
            yield dataclasses.replace(
                case, name=f"{axis} {value}", candidates=ours, peers={}, axis=axis, at=float(value)
            )


def fit_exponents(rows: Sequence[ResultRow]) -> list[dict[str, Any]]:
    """Growth along each axis of two points or more, as results hold it.

    Each is `axis`, `values`, `seconds`, `exponent` (of the time), `exponent_error` (standard
    error), `flops_exponent` and `memory_exponent` (of the same powers of what is counted).
    """
    found = []
    for axis in dict.fromkeys(row.axis for row in rows if row.axis):
        points = [row for row in rows if row.axis == axis and row.at and row.median_seconds]
        if len(points) < 2:
            continue
        values = [row.at or 0.0 for row in points]
        exponent, error = fit_exponent(values, [row.median_seconds or 0.0 for row in points])
        found.append(
            {
                "axis": axis,
                "values": values,
                "seconds": [row.median_seconds for row in points],
                "exponent": exponent,
                "exponent_error": error,
                "flops_exponent": _exponent(values, [row.flops for row in points]),
                "memory_exponent": _exponent(values, [row.peak_memory_bytes for row in points]),
            }
        )
    return found


def fit_exponent(values: Sequence[float], costs: Sequence[float]) -> tuple[float, float | None]:
    """Slope of log cost over log value by least squares, and its standard error.

    Returns:
      The exponent e of cost ~ value^e; no error from fewer than three points.

    Raises:
      ValueError: fewer than two different values, or one that is not above 0.
    """
    if len(set(values)) < 2 or min(*values, *costs) <= 0:
        raise ValueError(f"an exponent needs two values above 0, not {values} at {costs}")
    x = [math.log(value) for value in values]
    y = [math.log(cost) for cost in costs]
    n = len(x)
    mean_x, mean_y = sum(x) / n, sum(y) / n
    spread = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    if n < 3:
        return slope, None
    left = [b - mean_y - slope * (a - mean_x) for a, b in zip(x, y, strict=True)]
    return slope, math.sqrt(sum(each**2 for each in left) / (n - 2) / spread)


def _exponent(values: Sequence[float], costs: Sequence[float | None]) -> float | None:
    known = [cost for cost in costs if cost]
    return fit_exponent(values, known)[0] if len(known) == len(values) else None
