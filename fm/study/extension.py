"""Extends a finished pretraining run: more steps from its last checkpoint on."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from fm.errors import UserError
from fm.files import atomic_write, read_json
from fm.study import run_dir
from fm.training.config import config_differences


def extended_config(config: dict[str, Any], out_dir: pathlib.Path) -> dict[str, Any]:
    """Returns the config of a run that may continue a finished one of fewer steps in `out_dir`.

    The optimizer's state, the position in the data and the counters go on from the last
    checkpoint. The learning rate, which had fallen to 0, follows the schedule of the new length
    from there on, so an extended run is not the run that so many steps in one go make; its config
    says "extended_from": the lengths before.

    Args:
      config: of the run asked for; `config["recipe"]["steps"]` is its length.
      out_dir: its folder. If the run is extended, its config.json is replaced.

    Raises:
      UserError: the folder holds the same run with more steps, or an unfinished one with fewer.
    """
    path = out_dir / run_dir.CONFIG_FILE
    try:
        saved = read_json(path)
        differing = config_differences(saved, config).keys() - {"recipe.steps", "extended_from"}
        earlier, old = saved.get("extended_from", []), saved["recipe"]["steps"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # No run, or none that `run_dir.init` accepts: it says why.
        return config
    new = config["recipe"]["steps"]
    if differing or not isinstance(old, int):
        return config
    if new < old:
        raise UserError(
            f"--steps={new}: {out_dir} holds a run of {old} steps, which cannot be shortened; "
            f"give {old} or more, or choose another --out"
        )
    if new == old:
        return config | ({"extended_from": earlier} if earlier else {})
    if _ends_early(config):
        raise UserError(
            f"--steps={new}: {out_dir} holds a run that ends by its validation loss or by time, "
            "which cannot be extended; choose another --out"
        )
    summary = run_dir.read_summary(out_dir)
    if summary is None or summary.get("steps") != old:
        raise UserError(
            f"--steps={new}: the run of {old} steps in {out_dir} is not finished; finish it with "
            f"--steps={old} before it is extended, or choose another --out"
        )
    config |= {"extended_from": [*earlier, old]}
    run_dir.acquire_lock(out_dir)
    atomic_write(path, json.dumps(config, indent=1))
    print(
        f"{out_dir}: extending the finished run of {old} steps to {new}; the learning rate, which "
        f"had fallen to 0, follows the schedule of {new} steps from step {old} on, so the result "
        f"is not that of {new} steps in one go",
        file=sys.stderr,
    )
    return config


def _ends_early(config: dict[str, Any]) -> bool:
    limits = (
        config["recipe"].get("early_stopping_patience"),
        config["recipe"].get("max_pretrain_minutes"),
    )
    return any(each is not None for each in (*limits, config.get("early_stopping_patience")))
