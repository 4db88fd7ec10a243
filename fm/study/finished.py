"""What a run ends with: `summary.json`, written last and whole."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

from fm.errors import UserError
from fm.files import read_json, replace
from fm.study import environment
from fm.training.run import Trained
from fm.training.state import params_digest

NAME = "summary.json"
# What a clock, a machine or an installation puts into results.
_CHANCE = ("seconds", "versions", "device", "xla_flags", "headline")


def write(
    out: pathlib.Path,
    *,
    steps: int,
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
      digests: SHA-256 of what it made, by name; `params` is of `fm.training.state.params_digest`,
        of a study of several models over theirs.
      seconds: wall time.
      config: of the run.
      steps: updates that were done.
      more: figures of its kind.

    Returns:
      Where it is.
    """
    summary = {
        "steps": steps,
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


def read(out: pathlib.Path) -> dict[str, Any] | None:
    """The summary of a run, None where it has not ended.

    Raises:
      UserError: it is damaged.
    """
    path = out / NAME
    if not path.exists():
        return None
    try:
        return read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged; delete it, and it is made again") from error


def pretrained(name: str, run: Trained) -> dict[str, Any]:
    """A model of a study, as its results tell of it."""
    return {"name": name, "steps": run.steps, "params_digest": params_digest(run.params)}


def write_study(results: dict[str, Any], out: pathlib.Path) -> pathlib.Path:
    """Writes the summary of a study from its results, unless it is there already.

    Steps are of all that was pretrained, and the digest of parameters is over those of each of
    these models, by name. Metrics are the mean scores, `TASK/ARM/LABELS`, or of a study of text
    the bits per byte, `ARM/STAGE/DOMAIN`. The digest of results leaves out what a clock put in;
    seconds are of the sitting that finished the study.
    """
    # Results of before these were told have none.
    models = sorted(results.get("pretrained", []), key=lambda row: row["name"])
    named = json.dumps([[row["name"], row["params_digest"]] for row in models])
    digests = {
        "params": hashlib.sha256(named.encode()).hexdigest(),
        "results": results_digest(results),
    }
    before = read(out)
    if before and before.get("results_digest") == digests["results"]:
        return out / NAME
    predictions = out / "predictions.csv"
    if predictions.exists():
        digests["predictions"] = hashlib.sha256(predictions.read_bytes()).hexdigest()
    return write(
        out,
        steps=sum(row["steps"] for row in models),
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
            if name not in _CHANCE and "seconds" not in name.split("_")
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
