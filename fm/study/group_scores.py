"""Scores by group of test items, such as their source or speaker: how arms do on each alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from fm.data.datasets import subset
from fm.evaluation.statistics import mean_over_seeds_and_items
from fm.study.cells import Cell
from fm.study.task import Task

# A group with fewer test items is scored together with all such groups.
MIN_ITEMS = 10


def group_score_rows(cells: Sequence[Cell], task: Task) -> list[dict[str, Any]]:
    """Returns rows of each cell's mean score on each group of test items, with its 95% interval.

    The interval is for new seeds and new items of that group; with one seed there is none. There
    are no rows if the items are of no groups, or of one.
    """
    if task.item_groups is None:
        return []
    groups = pooled_groups(task.item_groups)
    names = sorted(set(groups.tolist()))
    if len(names) < 2:
        return []
    rows = []
    for cell in cells:
        for name in names:
            idx = np.flatnonzero(groups == name)
            own = cell.predictions[:, idx]
            # Of the group's items alone: a ratio such as F1 is not a mean of items' scores.
            own_SN = task.task_type.scores(own, subset(task.test, idx))
            low = high = None
            if min(own_SN.shape) > 1:
                interval = mean_over_seeds_and_items(own_SN)
                low, high = interval.low, interval.high
            rows.append(
                {
                    "task": cell.task,
                    "arm": cell.arm,
                    "num_labels": cell.num_labels,
                    "group": name,
                    "items": own_SN.shape[1],
                    "value": float(own_SN.mean()),
                    "low": low,
                    "high": high,
                }
            )
    return rows


def pooled_groups(groups_N: np.ndarray) -> np.ndarray:
    """Returns the groups, those with fewer than `MIN_ITEMS` items as one named after their number.

    Args:
      groups_N: the group of each item, str [N].
    """
    counts = Counter(groups_N.tolist())
    small = {name for name, count in counts.items() if count < MIN_ITEMS}
    pooled = f"{len(small)} smaller groups"
    return np.array([pooled if name in small else name for name in groups_N.tolist()])
