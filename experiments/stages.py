"""--dry_run: prints what a command would do; no --out folder is touched."""

from __future__ import annotations

import os
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

from fm.files import read_json
from fm.parallel.mesh import default_device
from fm.study import run_dir
from fm.study.config import config_hash
from fm.study.dry_run import StageEstimate, total_seconds
from fm.training.config import config_differences


def show(
    name: str,
    config: dict[str, Any],
    out_dir: pathlib.Path,
    stages: Sequence[StageEstimate],
    notes: Sequence[str] = (),
) -> None:
    """Prints a command's stages in order and their sums.

    Args:
      name: of the experiment.
      config: as in config.json.
      out_dir: folder of --out, which is only read.
      stages: in order.
      notes: further sentences at the end.
    """
    print(f"dry run of {name}: nothing is trained or written")
    print(f"config hash {config_hash(config)}; output {out_dir}: {folder_state(config, out_dir)}")
    for n, stage in enumerate(stages, start=1):
        how_long = "" if stage.seconds is None else f", {about(stage.seconds)}"
        print(f"\nstage {n} of {len(stages)}: {stage.name}{how_long}")
        details = [*stage.details, *_sizes(stage.memory_bytes, stage.disk_bytes)]
        print(textwrap.fill("; ".join(details), 96, initial_indent="  ", subsequent_indent="  "))
    total = about(total_seconds(stages))
    needed = max((stage.memory_bytes for stage in stages), default=0)
    written = sum(stage.disk_bytes for stage in stages)
    print(f"\nin all: {'; '.join([total, *_sizes(needed, written)])}")
    device = default_device()
    where = f"{os.cpu_count()} cores" if device.platform == "cpu" else device.device_kind
    sentences = (
        f"Times are estimates: a few pretraining steps were timed now, on this machine ({where}) "
        "under its present load; fine-tuning is counted in FLOPs at the same rate, with half of "
        "those of a search that stops the worse trials early.",
        "Not in them: reading data, training tokenizers, compiling, probes, classical models and "
        "the report.",
        "Memory is that of the largest training step, beside the data and the libraries.",
        *notes,
    )
    print("\n".join(textwrap.wrap(" ".join(sentences), 98)))


def folder_state(config: dict[str, Any], out_dir: pathlib.Path) -> str:
    """Returns what running a config in a folder would do about what is there."""
    path = out_dir / run_dir.CONFIG_FILE
    if not path.exists():
        return "a folder without a run" if out_dir.exists() else "a new folder"
    try:
        changed = config_differences(read_json(path), config)
    except (OSError, ValueError, AttributeError):
        return "cannot be read, the run would be refused"
    if changed:
        return f"holds another config ({', '.join(list(changed)[:3])}), the run would be refused"
    done = (out_dir / run_dir.RESULTS_FILE, out_dir / run_dir.SUMMARY_FILE)
    if any(each.exists() for each in done):
        return "holds this run, finished"
    return "holds this run, which would be resumed"


def about(seconds: float) -> str:
    """Returns a time in words that say how rough it is, such as "about 3 min"."""
    if seconds < 1:
        return "under a second"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 90 * 60:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:,.{1 if seconds < 36_000 else 0}f} h"


def _sizes(memory_bytes: int, disk_bytes: int) -> list[str]:
    sizes = (memory_bytes, "of memory"), (disk_bytes, "on disk")
    return [f"{_size(count)} {what}" for count, what in sizes if count]


def _size(count: int) -> str:
    """Returns a number of bytes with two digits or more."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB")):
        if count >= limit:
            return f"{count / limit:,.{1 if count < 10 * limit else 0}f} {unit}"
    return f"{max(1, round(count / 1e3))} kB"
