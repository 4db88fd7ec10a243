"""Several studies of one design as one: every value of a setting becomes an arm of its own."""

from __future__ import annotations

import csv
import dataclasses
import pathlib
from typing import Any

import numpy as np

from fm.evaluation.statistics import paired_difference
from fm.study.evidence import with_holm

Scores = dict[tuple[str, str, int], np.ndarray]


def read_scores(path: pathlib.Path) -> Scores:
    """From a `predictions.csv`: 1.0 where right, [seeds, items], by task, arm and labels."""
    right: dict[tuple[str, str, int], dict[int, list[float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            cell = right.setdefault((row["task"], row["arm"], int(row["labels"])), {})
            cell.setdefault(int(row["seed"]), []).append(float(row["truth"] == row["prediction"]))
    return {key: np.array([seeds[seed] for seed in sorted(seeds)]) for key, seeds in right.items()}


def side_by_side(
    field: str, studies: dict[str, dict[str, Any]], folders: dict[str, pathlib.Path]
) -> dict[str, Any]:
    """One results dict in which arm `self` under value 0.5 is called `self, hide=0.5`.

    Compared are the values of an arm, each against the first value, paired by seed and item.
    Arms the setting does not touch (equal in every prediction) appear once, by their own name.

    Args:
      field: dotted path that was varied.
      studies: results by value.
      folders: where each value's study lies, by value.
    """
    short = field.rsplit(".", 1)[-1]
    scores = {value: read_scores(folders[value] / "predictions.csv") for value in studies}
    first, *others = studies
    merged = dict(studies[first])
    listed = ("cells", "ledger", "curves", "samples", "mistakes", "equivalents")
    models = [
        row | {"name": f"{short}={value}/{row['name']}"}
        for value, results in studies.items()
        for row in results.get("pretrained", [])
    ]
    merged |= {key: [] for key in listed} | {"pretrained": models}
    arms = {row["arm"] for row in studies[first]["cells"]}
    touched = {
        arm
        for arm in arms
        for value in others
        for key in scores[first]
        if key[1] == arm and not np.array_equal(scores[first][key], scores[value][key])
    }
    for value, results in studies.items():
        for key in listed:
            for row in results[key]:
                if row["arm"] in touched:
                    merged[key].append(row | {"arm": f"{row['arm']}, {short}={value}"})
                elif value == first:
                    merged[key].append(row)
    rows = []
    for task, arm, labels in scores[first]:
        for value in others if arm in touched else ():
            pair = scores[value][task, arm, labels], scores[first][task, arm, labels]
            if len(pair[0]) < 2:
                continue
            place = {
                "task": task,
                "labels": labels,
                "arm": f"{arm}, {short}={value}",
                "baseline": f"{arm}, {short}={first}",
            }
            rows.append(place | dataclasses.asdict(paired_difference(*pair)))
    merged["comparisons"] = with_holm(rows)
    merged["seconds"] = sum(results["seconds"] for results in studies.values())
    merged["experiment"] = f"ablate {field}"
    merged["config"] = {value: results["config"] for value, results in studies.items()}
    return merged
