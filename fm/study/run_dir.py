"""A run's output folder: lock, config.json, results.json, predictions.csv and summary.json."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Iterator
from typing import Any

import jax

from fm import lock
from fm.errors import UserError
from fm.files import atomic_write, read_json
from fm.parallel.mesh import default_device
from fm.training import runtime
from fm.training.config import TrainResult, config_differences
from fm.training.train_state import params_digest

SCHEMA = 2
CONFIG_FILE, RESULTS_FILE, SUMMARY_FILE = "config.json", "results.json", "summary.json"
PREDICTIONS_FILE = "predictions.csv"
_PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint grain tensorflow-datasets tokenizers scikit-learn numpy"
)
# Keys of results that depend on the clock, the machine, its earlier studies or the installation.
_NOT_REPRODUCIBLE = (
    *("seconds", "versions", "device", "xla_flags", "headline"),
    *("scored_before", "sealed"),
)
# Config fields of earlier versions, by dotted suffix, and what they are called now.
_RENAMED_FIELDS = {
    "adapt": "methods",
    "budgets": "label_budgets",
    "upstream": "out_of_domain_dataset",
    "imported": "published",
    "following": "instruction_tuning",
    "following_rates": "instruction_learning_rates",
    "studies": "ablations",
    "diets": "training_sets",
    "penalties": "l2_penalties",
    "adapter_rates": "lora_learning_rates",
    "rule": "optimizer_config",
    "vocab": "vocab_size",
    "hide": "mask_ratio",
}


def package_versions() -> dict[str, str]:
    """Returns the versions of Python, fm and the packages that results depend on."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES.split()}
    return {"python": platform.python_version(), "fm": importlib.metadata.version("fm")} | versions


def machine_info() -> dict[str, Any]:
    """Returns the JAX device kind and count, CPU cores and architecture, and malloc setting."""
    first = default_device()
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "freed_memory_kept": runtime.keep_freed_memory_succeeded(),
    }


def xla_flags() -> str:
    """Returns the environment variable XLA_FLAGS, "" if unset."""
    return os.environ.get("XLA_FLAGS", "")


def provenance() -> dict[str, Any]:
    """Returns versions, device and XLA flags, for results.json."""
    return {"versions": package_versions(), "device": machine_info(), "xla_flags": xla_flags()}


def check_existing_run(config: dict[str, Any], out_dir: pathlib.Path) -> bool:
    """Returns True if `out_dir` holds a run of `config`, False if no run; raises if another run.

    Nothing is written: `init` claims the folder, once the data are accepted.

    Raises:
      UserError: the folder cannot be written, or it holds a run with another config or with one
        of an earlier version.
    """
    path = out_dir / CONFIG_FILE
    try:
        _check_writable(out_dir)
        if not path.exists():
            return False
        saved = read_json(path)
        changed = config_differences(saved, config)
    except (OSError, ValueError) as error:
        raise _unusable(out_dir, error) from error
    if not changed:
        return True
    current = set(_field_names(config))
    for old in _field_names(saved):
        new = _RENAMED_FIELDS.get(old)
        if new in current and old not in current:
            raise UserError(
                f"--out={out_dir} holds a run of an earlier version: its config says {old!r}, "
                f"which is now {new!r}; choose another folder"
            )
    # If the experiment differs, every other field does too.
    changed = {"experiment": changed["experiment"]} if "experiment" in changed else changed
    shown = [f"{name}: {was} -> {now}" for name, (was, now) in changed.items()]
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    raise UserError(
        f"--out={out_dir} holds a run with another config ({'; '.join(shown[:4])}{more}); "
        "choose another folder, or repeat the saved flags to resume"
    )


def _check_writable(out_dir: pathlib.Path) -> None:
    """Raises OSError unless `out_dir` is a writable folder, or can be made one."""
    if out_dir.exists() and not out_dir.is_dir():
        raise FileExistsError
    existing = next(each for each in (out_dir, *out_dir.absolute().parents) if each.exists())
    if not existing.is_dir():
        raise NotADirectoryError(None, "Not a directory")
    if not os.access(existing, os.W_OK):
        raise PermissionError(None, "not writable")


def _field_names(config: dict[str, Any]) -> Iterator[str]:
    for name, value in config.items():
        yield name
        if isinstance(value, dict):
            yield from _field_names(value)


def acquire_lock(out_dir: pathlib.Path) -> None:
    """Locks `out_dir` until the process ends, creating it, and removes stale partial files.

    Folders below that hold a run of their own (a lock or a config) are left alone: it may be going.

    Raises:
      UserError: the folder cannot be written, or another process holds the lock.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire(out_dir)
        for folder, names, files in os.walk(out_dir):
            below = pathlib.Path(folder)
            names[:] = [name for name in names if not _holds_run(below / name)]
            for name in files:
                if name.startswith(".") and name.endswith(".partial"):
                    (below / name).unlink(missing_ok=True)
    except OSError as error:
        raise _unusable(out_dir, error) from error


def _holds_run(folder: pathlib.Path) -> bool:
    return any((folder / name).exists() for name in (CONFIG_FILE, lock.NAME))


def init(config: dict[str, Any], out_dir: pathlib.Path) -> None:
    """Locks `out_dir` and writes config.json if it is missing; raises if it differs.

    Raises:
      UserError: see `check_existing_run` and `acquire_lock`.
    """
    if jax.process_index() == 0:
        acquire_lock(out_dir)
    if not check_existing_run(config, out_dir):
        atomic_write(out_dir / CONFIG_FILE, json.dumps(config, indent=1))


def _unusable(out_dir: pathlib.Path, error: OSError | ValueError) -> UserError:
    reason = getattr(error, "strerror", None) or error
    if isinstance(error, FileExistsError):
        reason = "a file is there"
    return UserError(f"--out={out_dir} cannot be used ({reason}); it takes a writable folder")


def write_results(results: dict[str, Any], out_dir: pathlib.Path) -> None:
    """Writes results.json atomically."""
    atomic_write(out_dir / RESULTS_FILE, json.dumps(results, indent=1, allow_nan=False))


def read_results(out_dir: pathlib.Path) -> dict[str, Any]:
    """Reads the results.json of a finished study as a dict.

    Raises:
      UserError: the file is missing, is not JSON, or has an unknown schema.
    """
    path = out_dir / RESULTS_FILE
    try:
        results = read_json(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give --out the folder of a study") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(results, dict) or results.get("schema") not in (1, SCHEMA):
        raise UserError(f"{path} is not a results file of schema 1 or {SCHEMA}")
    return results


def write_summary_json(
    out_dir: pathlib.Path,
    *,
    steps: int,
    metrics: dict[str, Any],
    digests: dict[str, str],
    seconds: float,
    config: dict[str, Any],
    **more: Any,
) -> pathlib.Path:
    """Writes summary.json with a run's steps, metrics, digests, time and config; returns its path.

    Args:
      out_dir: folder of the run.
      steps: optimizer steps done.
      metrics: final metrics by name.
      digests: SHA-256 of outputs by name; `params` is a `params_digest`, or a hash over several.
      seconds: wall time.
      config: of the run, JSON-able.
      **more: further entries.
    """
    summary = {
        "steps": steps,
        **more,
        "metrics": metrics,
        "seconds": seconds,
        **{f"{name}_digest": digest for name, digest in digests.items()},
        "config": config,
        "versions": package_versions(),
        "device": machine_info(),
    }
    atomic_write(out_dir / SUMMARY_FILE, json.dumps(summary, indent=1))
    return out_dir / SUMMARY_FILE


def read_summary(out_dir: pathlib.Path) -> dict[str, Any] | None:
    """Reads summary.json as a dict; returns None if the run has not finished.

    Raises:
      UserError: the file is damaged.
    """
    path = out_dir / SUMMARY_FILE
    if not path.exists():
        return None
    try:
        return read_json(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged; delete it and run the command again") from error


def pretrained_model_row(name: str, run: TrainResult) -> dict[str, Any]:
    """Returns a pretraining run's row of results.json: name, length, size and parameter hash.

    `parameters` are those of the layers, without embeddings and output heads (Kaplan et al. 2020).
    """
    layers = jax.tree.leaves(run.params["layers"])
    return {
        "name": name,
        "steps": run.steps,
        "stopped_because": run.stopped_because,
        "tokens": run.tokens,
        "parameters": sum(int(leaf.size) for leaf in layers),
        "params_digest": params_digest(run.params),
    }


def write_study_summary_json(results: dict[str, Any], out_dir: pathlib.Path) -> pathlib.Path:
    """Writes a study's machine-readable summary.json from its results; returns its path.

    An existing summary of the same results is left alone, so that `seconds` stays that of the
    session that finished the study. `steps` is the sum over all pretrained models and
    `params_digest` hashes theirs by name. Metrics are mean scores "TASK/ARM/LABELS", or in a text
    quality study bits per byte "ARM/STAGE/DOMAIN".
    """
    models = sorted(results.get("pretrained", []), key=lambda row: row["name"])
    params_digests = json.dumps([[row["name"], row["params_digest"]] for row in models])
    digests = {
        "params": hashlib.sha256(params_digests.encode()).hexdigest(),
        "results": results_digest(results),
    }
    before = read_summary(out_dir)
    if before and before.get("results_digest") == digests["results"]:
        return out_dir / SUMMARY_FILE
    predictions = out_dir / PREDICTIONS_FILE
    if predictions.exists():
        digests["predictions"] = hashlib.sha256(predictions.read_bytes()).hexdigest()
    return write_summary_json(
        out_dir,
        steps=sum(row["steps"] for row in models),
        metrics=_mean_metrics(results),
        digests=digests,
        seconds=results["seconds"],
        config=results["config"],
        **{name: len(rows) for name, rows in results.items() if name in ("cells", "samples")},
    )


def results_digest(results: dict[str, Any]) -> str:
    """Returns the SHA-256 of the reproducible part of results."""
    return hashlib.sha256(json.dumps(without_timings(results), sort_keys=True).encode()).hexdigest()


def without_timings(results: Any) -> Any:
    """Returns results without the fields that differ between repeated runs of a config."""
    if isinstance(results, dict):
        return {
            name: without_timings(value)
            for name, value in results.items()
            if name not in _NOT_REPRODUCIBLE and "seconds" not in name.split("_")
        }
    return [without_timings(each) for each in results] if isinstance(results, list) else results


def _mean_metrics(results: dict[str, Any]) -> dict[str, float]:
    if "cells" not in results:
        place = ("arm", "stage", "domain")
        return {"/".join(row[key] for key in place): row["value"] for row in results["models"]}
    values: dict[str, list[float]] = {}
    for row in results["cells"]:
        # Results of schema 1 call the number of labels `labels`.
        num_labels = row.get("num_labels", row.get("labels"))
        values.setdefault(f"{row['task']}/{row['arm']}/{num_labels}", []).append(row["value"])
    return {name: sum(each) / len(each) for name, each in values.items()}
