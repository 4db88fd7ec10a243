"""Where a study ran: versions, device, flags."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
from typing import Any

import jax

from fm import lock
from fm.errors import UserError
from fm.files import atomic_write, read_json
from fm.training import runtime
from fm.training.config import TrainResult, config_differences
from fm.training.train_state import params_digest

_PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint grain tensorflow-datasets tokenizers scikit-learn numpy"
)


def package_versions() -> dict[str, str]:
    """Python and the packages a result depends on."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES.split()}
    return {"python": platform.python_version(), "fm": importlib.metadata.version("fm")} | found


def device_info() -> dict[str, Any]:
    """The accelerator, the host's cores, and whether freed memory is kept (see `allocator`)."""
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "freed_memory_kept": runtime.keeps_freed_memory(),
    }


def xla_flags() -> str:
    """The XLA flags in force."""
    return os.environ.get("XLA_FLAGS", "")


SUMMARY_FILE = "summary.json"
# What a clock, a machine or an installation puts into results.
_CHANCE = ("seconds", "versions", "device", "xla_flags", "headline")


def write_summary(
    out_dir: pathlib.Path,
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
      out_dir: the run's folder.
      metrics: its last figures, by name.
      digests: SHA-256 of what it made, by name; `params` is of `fm.training.train_state.params_digest`,
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
        "versions": package_versions(),
        "device": device_info(),
    }
    atomic_write(out_dir / SUMMARY_FILE, json.dumps(summary, indent=1))
    return out_dir / SUMMARY_FILE


def read_summary(out_dir: pathlib.Path) -> dict[str, Any] | None:
    """The summary of a run, None where it has not ended.

    Raises:
      UserError: it is damaged.
    """
    path = out_dir / SUMMARY_FILE
    if not path.exists():
        return None
    try:
        return read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged; delete it, and it is made again") from error


def pretrained_model_row(name: str, run: TrainResult) -> dict[str, Any]:
    """A model of a study, as its results tell of it."""
    return {"name": name, "steps": run.steps, "params_digest": params_digest(run.params)}


def write_study_summary(results: dict[str, Any], out_dir: pathlib.Path) -> pathlib.Path:
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
    before = read_summary(out_dir)
    if before and before.get("results_digest") == digests["results"]:
        return out_dir / SUMMARY_FILE
    predictions = out_dir / "predictions.csv"
    if predictions.exists():
        digests["predictions"] = hashlib.sha256(predictions.read_bytes()).hexdigest()
    return write_summary(
        out_dir,
        steps=sum(row["steps"] for row in models),
        metrics=_metrics(results),
        digests=digests,
        seconds=results["seconds"],
        config=results["config"],
        **{name: len(rows) for name, rows in results.items() if name in ("cells", "samples")},
    )


def results_digest(results: dict[str, Any]) -> str:
    """SHA-256 of results without what depends on the clock or the machine alone."""
    plain = json.dumps(without_timings(results), sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def without_timings(results: Any) -> Any:
    """Results less what differs between two runs of the same."""
    if isinstance(results, dict):
        return {
            name: without_timings(each)
            for name, each in results.items()
            if name not in _CHANCE and "seconds" not in name.split("_")
        }
    return [without_timings(each) for each in results] if isinstance(results, list) else results


def _metrics(results: dict[str, Any]) -> dict[str, float]:
    if "cells" not in results:
        place = ("arm", "stage", "domain")
        return {"/".join(row[key] for key in place): row["value"] for row in results["models"]}
    scores: dict[str, list[float]] = {}
    for row in results["cells"]:
        name = f"{row['task']}/{row['arm']}/{row['labels']}"
        scores.setdefault(name, []).append(row["value"])
    return {name: sum(values) / len(values) for name, values in scores.items()}


def matches_config(config: dict[str, Any], out_dir: pathlib.Path) -> bool:
    """Whether `out_dir` is this run's own already.

    Args:
      config: the run's config, JSON-able.
      out_dir: folder, made if it is not there.

    Raises:
      UserError: the folder cannot be written, or holds a run with another config.
    """
    path = out_dir / "config.json"
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(out_dir, os.W_OK):
            raise PermissionError(None, "not writable")
        if not path.exists():
            return False
        found = config_differences(read_json(path), config)
    except (OSError, ValueError) as error:
        raise _unusable(out_dir, error) from error
    if found:
        # Of another experiment everything else differs too.
        found = {"experiment": found["experiment"]} if "experiment" in found else found
        shown = [f"{name}: {was} -> {now}" for name, (was, now) in found.items()]
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        raise UserError(
            f"--out={out_dir} holds a run with another config ({'; '.join(shown[:4])}{more}); "
            "take another folder, or the same flags to go on"
        )
    return True


def acquire_lock(out_dir: pathlib.Path) -> None:
    """Makes the folder, and keeps other processes from it until this one ends.

    Raises:
      UserError: the folder cannot be written; or another process is at work there.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire(out_dir)
        # Of runs that were killed in the middle of a file.
        for left in out_dir.rglob(".*.partial"):
            left.unlink(missing_ok=True)
    except OSError as error:
        raise _unusable(out_dir, error) from error


def init(config: dict[str, Any], out_dir: pathlib.Path) -> None:
    """Makes `out_dir` this run's own, and keeps other processes from it until this one ends.

    Raises:
      UserError: as `holds` does; or another process is at work there.
    """
    # Of several processes of one run the first speaks for all.
    if jax.process_index() == 0:
        acquire_lock(out_dir)
    if not matches_config(config, out_dir):
        atomic_write(out_dir / "config.json", json.dumps(config, indent=1))


def _unusable(out: pathlib.Path, error: OSError | ValueError) -> UserError:
    reason = getattr(error, "strerror", None) or error
    if isinstance(error, FileExistsError):
        reason = "a file is there"
    return UserError(
        f"--out={out} cannot be used ({reason}); it takes a folder that can be written"
    )
