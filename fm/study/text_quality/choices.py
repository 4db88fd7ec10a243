"""What each metric would choose, and how the others fare when it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fm.evaluation.text_quality.metrics import BY_NAME, METRICS

Row = dict[str, Any]


def choose(rows: Sequence[Row], metric: str) -> Row:
    """The row that is best by a metric; of equals the first.

    Args:
      rows: each with `values`, metric to [value, low, high].
      metric: its name.

    Raises:
      ValueError: no rows.
    """
    return max(rows, key=lambda row: BY_NAME[metric].better(row["values"][metric][0]))


def ranges(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Worst and best value of every metric over the rows."""
    found = {}
    for metric in METRICS:
        values = sorted((row["values"][metric.name][0] for row in rows), key=metric.better)
        found[metric.name] = values[0], values[-1]
    return found


def regrets(chosen: dict[str, Row], spans: dict[str, tuple[float, float]]) -> list[Row]:
    """How much of its range a metric loses when another one chooses.

    Args:
      chosen: for each choosing metric the row it chose, measured again on a fresh sample.
      spans: from `ranges`, of the samples the choice was made on.

    Returns:
      For each pair `by`, `metric`, `regret`: 0 is as good as the metric's own choice, 1 is its
      whole range worse; below 0 the fresh sample reversed the order. `clear` says whether the two
      intervals lie apart.
    """
    rows = []
    for by, row in chosen.items():
        for metric in METRICS:
            own = chosen[metric.name]["values"][metric.name]
            now = row["values"][metric.name]
            worst, best = spans[metric.name]
            lost = metric.better(own[0]) - metric.better(now[0])
            rows.append(
                {
                    "by": by,
                    "metric": metric.name,
                    "regret": lost / (abs(best - worst) or 1.0),
                    "clear": own[1] > now[2] or own[2] < now[1],
                }
            )
    return rows
