"""Measures memory and open files over an hour of pretraining with validation and checkpoints.

    python -m tests.fault_injection.soak --minutes=60 --out=runs/soak

Trains one model of four modalities and writes soak.json and memory.png. Exits with 1 if the run
fails, or if its memory grows by more than two megabytes per minute.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import matplotlib
import numpy as np
from tqdm import tqdm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from fm.files import atomic_path, atomic_write

_SAMPLE_SECONDS = 5.0
_WARMUP_SHARE = 1 / 6  # of the time; programs are compiled and caches filled
# TensorStore 0.1.86 and Orbax 0.12.8 keep about 0.1 MB of each of 600 checkpoints per hour.
_MAX_MB_PER_HOUR = 120.0
_SOURCES = "film_reviews,digits,spoken_words,moving_digits"
_FLAGS = [
    f"--dataset={_SOURCES}",
    "--mixture=" + ",".join(f"{each}:1" for each in _SOURCES.split(",")),
    *("--batch_size=16", "--steps=10000000", "--checkpoint_every=100", "--eval_every=50"),
]


def sample(pid: int) -> tuple[float, int]:
    """Returns the resident memory of a process in MB, and its number of open files."""
    status = Path(f"/proc/{pid}/status").read_text().split()
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return int(status[status.index("VmRSS:") + 1]) / 1024, files


def slope(seconds: np.ndarray, values: np.ndarray) -> float:
    """Returns the least-squares slope of values over time, per hour."""
    return float(3600 * np.polyfit(seconds, values, 1)[0])


def soak(minutes: float, out: Path) -> dict:
    """Runs pretraining for some minutes, sends SIGTERM and returns the measurements."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "experiments.pretrain", *_FLAGS, f"--out={out / 'run'}"]
    began, samples = time.monotonic(), []
    with (out / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            with tqdm(total=round(minutes), unit="min", desc="soaking", disable=None) as bar:
                while process.poll() is None and (now := time.monotonic() - began) < 60 * minutes:
                    samples.append((now, *sample(process.pid)))
                    bar.update(int(now / 60) - bar.n)
                    time.sleep(_SAMPLE_SECONDS)
            signalled = time.monotonic()
            process.send_signal(signal.SIGTERM)
            code = process.wait(120)
        finally:
            process.kill()
    ended = time.monotonic() - signalled
    seconds, memory, files = np.array(samples).T
    late = seconds > _WARMUP_SHARE * 60 * minutes
    records = [json.loads(line) for line in (out / "run/metrics.jsonl").read_text().splitlines()]
    found = {
        "minutes": minutes,
        "exit_code": code,
        "seconds_to_end": round(ended, 1),
        "steps": max(record["step"] for record in records),
        "validations": sum(record["kind"] != "train" for record in records),
        "memory_mb": {"warm": memory[late][0], "last": memory[-1], "most": memory.max()},
        "memory_mb_per_hour": slope(seconds[late], memory[late]),
        "open_files": {"warm": int(files[late][0]), "last": int(files[-1])},
        "versions": {name: version(name) for name in ("jax", "flax", "orbax-checkpoint", "grain")},
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    atomic_write(out / "soak.json", json.dumps(found, indent=1) + "\n")
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.plot(seconds / 60, memory)
    axes.set(xlabel="minutes", ylabel="resident memory, MB", ylim=(0, None))
    axes.axvspan(0, _WARMUP_SHARE * minutes, alpha=0.1, label="left out of the slope")
    axes.legend(loc="lower right")
    with atomic_path(out / "memory.png") as partial:
        figure.savefig(partial, format="png", dpi=120)
    return found


def main() -> int:
    """Runs the measurement; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    given = parser.parse_args()
    found = soak(given.minutes, given.out.resolve())
    print(json.dumps(found, indent=1))
    return int(found["exit_code"] != 130 or found["memory_mb_per_hour"] > _MAX_MB_PER_HOUR)


if __name__ == "__main__":
    sys.exit(main())
