"""How the cost of a train step grows with each of its sizes, and the exponent of that growth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.stats import linregress

from fm.benchmark.core import BenchConfig, Case
from fm.benchmark.suites.train_step import next_token_case, step_shape

# One size is varied and the others stay here; the cost of attention shows when seq_len is large.
_BASE = {"seq_len": 128, "d_model": 128, "num_layers": 2, "batch_size": 8, "vocab_size": 1024}
_VALUES = {
    "seq_len": (64, 128, 256, 512, 1024),
    "d_model": (64, 128, 256, 512),
    "num_layers": (1, 2, 4, 8),
    "batch_size": (2, 4, 8, 16, 32),
    "vocab_size": (256, 1024, 4096, 16384),
}
_QUICK_BASE = {"seq_len": 16, "d_model": 32, "num_layers": 1, "batch_size": 2, "vocab_size": 64}
_QUICK_VALUES = {"seq_len": (8, 16, 32), "batch_size": (1, 2, 4)}


def cases(config: BenchConfig) -> Iterator[Case]:
    """Yields train-step cases that vary one size (e.g. `seq_len`, `batch_size`) at a time."""
    base, axes = (_QUICK_BASE, _QUICK_VALUES) if config.quick else (_BASE, _VALUES)
    for axis, values in axes.items():
        for value in values:
            sizes = base | {axis: value}
            shape = step_shape(**sizes, num_heads=sizes["d_model"] // 32)
            case = next_token_case("scaling", shape, "float32", config)
            yield dataclasses.replace(
                case,
                name=f"{axis} {value}",
                candidates={"fm": case.candidates["fm"]},
                peers={},
                axis=axis,
                at=float(value),
            )


def fit_exponents(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns fitted power-law exponents of time, FLOPs and memory against each varied size.

    Returns:
      Dictionaries of `axis`, `values`, `seconds`, `exponent` (of time) with its standard error
      `exponent_error`, `flops_exponent` and `memory_exponent`; an exponent is None where a row
      lacks the figure.
    """
    fits = []
    for axis in dict.fromkeys(row["axis"] for row in rows if row["axis"]):
        points = [
            row for row in rows if row["axis"] == axis and row["at"] and row["median_seconds"]
        ]
        if len(points) < 2:
            continue
        values, seconds = ([row[name] for row in points] for name in ("at", "median_seconds"))
        exponent, error = fit_exponent(values, seconds)
        fit = {
            "axis": axis,
            "values": values,
            "seconds": seconds,
            "exponent": exponent,
            "exponent_error": error,
        }
        for name, field in (("flops_exponent", "flops"), ("memory_exponent", "peak_memory_bytes")):
            costs = [row[field] for row in points]
            fit[name] = fit_exponent(values, costs)[0] if all(costs) else None
        fits.append(fit)
    return fits


def fit_exponent(values: Sequence[float], costs: Sequence[float]) -> tuple[float, float | None]:
    """Fits cost ~ value^e by least squares in logarithms; returns e and its standard error.

    Returns:
      e and its standard error, None from fewer than three points.

    Raises:
      ValueError: fewer than two different values, or one that is not above 0.
    """
    if len(set(values)) < 2 or min(*values, *costs) <= 0:
        raise ValueError(f"an exponent needs two values above 0, not {values} at {costs}")
    fit: Any = linregress(np.log(values), np.log(costs))
    return float(fit.slope), float(fit.stderr) if len(values) > 2 else None
