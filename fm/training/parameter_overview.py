"""An overview of a model's parameters: name, shape, dtype, count and sharding of each array."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from fm.model.sizes import format_count

PARAMETERS_FILE = "parameters.txt"
_HEADINGS = ("name", "shape", "dtype", "count", "sharding")


def parameter_overview(params: Any) -> str:
    """Returns a table with one line for each array, and their sum; under a mesh with shardings.

    Args:
      params: nested dict of arrays, or of their shapes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    rows = [_row(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in leaves]
    rows.append(("sum", "", "", f"{_count(params):,}", ""))
    columns = 5 if any(row[4] for row in rows) else 4
    table = [row[:columns] for row in (_HEADINGS, *rows)]
    widths = [max(len(row[n]) for row in table) for n in range(columns)]
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if name == "count" else cell.ljust(width)
            for name, cell, width in zip(_HEADINGS, row, widths, strict=False)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def parameter_summary(params: Any) -> str:
    """Returns one line: the number of arrays, of parameters, and their bytes by dtype."""
    leaves = jax.tree.leaves(params)
    dtypes = " and ".join(sorted({str(np.dtype(x.dtype)) for x in leaves}))
    size = sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in leaves)
    scale, unit = next(
        (each for each in ((1e9, "GB"), (1e6, "MB")) if size >= each[0]), (1e3, "kB")
    )
    shown = f"{size / scale:.1f} {unit}"
    return f"{len(leaves)} arrays, {format_count(_count(params))} parameters, {shown} of {dtypes}"


def _row(name: str, x: Any) -> tuple[str, str, str, str, str]:
    sharding = getattr(x, "sharding", None)
    spec = str(tuple(sharding.spec)) if isinstance(sharding, NamedSharding) else ""
    shape = "x".join(map(str, x.shape)) or "scalar"
    return name, shape, str(np.dtype(x.dtype)), f"{math.prod(x.shape):,}", spec


def _count(params: Any) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(params))
