"""What a run ends with: `summary.json`, written last and whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
from typing import Any

from fm.files import read_json, replace
from fm.study import environment

NAME = "summary.json"
# What a clock, a machine or an installation puts into results.
_CHANCE = ("seconds", "versions", "device", "xla_flags", "headline")


def write(
    out: pathlib.Path,
    *,
    metrics: dict[str, Any],
    digests: dict[str, str],
    seconds: float,
    config: dict[str, Any],
    **more: Any,
) -> pathlib.Path:
    """Writes the summary of a run.

    Args:
      out: the run's folder.
      metrics: its last figures, by name.
      digests: SHA-256 of what it made, by name; `params` is of `fm.training.state.params_digest`.
      seconds: wall time.
      config: of the run.
      more: figures of its kind, such as `steps`.

    Returns:
      Where it is.
    """
    summary = {
        **more,
        "metrics": metrics,
        "seconds": seconds,
        **{f"{name}_digest": digest for name, digest in digests.items()},
        "config": config,
        "versions": environment.versions(),
        "device": environment.device(),
    }
    replace(out / NAME, json.dumps(summary, indent=1))
    return out / NAME


def write_study(results: dict[str, Any], out: pathlib.Path) -> pathlib.Path:
    """Writes the summary of a study from its results, unless it is there already.

    Metrics are the mean scores, `TASK/ARM/LABELS`, or of a study of text the bits per byte,
    `ARM/STAGE/DOMAIN`. The digest of results leaves out what a clock put in; seconds are of the
    sitting that finished the study.
    """
    digests = {"results": results_digest(results)}
    if (out / NAME).exists():
        with contextlib.suppress(ValueError):  # one that is damaged is written again
            before = read_json(out / NAME)
            if isinstance(before, dict) and before.get("results_digest") == digests["results"]:
                return out / NAME
    predictions = out / "predictions.csv"
    if predictions.exists():
        digests["predictions"] = hashlib.sha256(predictions.read_bytes()).hexdigest()
    return write(
        out,
        metrics=_metrics(results),
        digests=digests,
        seconds=results["seconds"],
        config=results["config"],
        **{name: len(rows) for name, rows in results.items() if name in ("cells", "samples")},
    )


def results_digest(results: dict[str, Any]) -> str:
    """SHA-256 of results without what depends on the clock or the machine alone."""
    plain = json.dumps(timeless(results), sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def timeless(results: Any) -> Any:
    """Results less what differs between two runs of the same."""
    if isinstance(results, dict):
        return {
            name: timeless(each)
            for name, each in results.items()
            if name not in _CHANCE and not name.endswith("_seconds")
        }
    return [timeless(each) for each in results] if isinstance(results, list) else results


def _metrics(results: dict[str, Any]) -> dict[str, float]:
    if "cells" not in results:
        place = ("arm", "stage", "domain")
        return {"/".join(row[key] for key in place): row["value"] for row in results["models"]}
    scores: dict[str, list[float]] = {}
    for row in results["cells"]:
        name = f"{row['task']}/{row['arm']}/{row['labels']}"
        scores.setdefault(name, []).append(row["value"])
    return {name: sum(values) / len(values) for name, values in scores.items()}
