"""Commands in processes of their own, each with a number of simulated devices."""

import os
import pathlib
import subprocess
import sys
import time

from fm.files import cache_dir

ROOT = pathlib.Path(__file__).parents[2]


def start(devices, name, *flags):
    """Starts an experiment on so many simulated CPU devices."""
    xla = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{name}", *flags],
        cwd=ROOT,
        env=os.environ | {
            "FM_CACHE": str(cache_dir()), "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "XLA_FLAGS": f"{xla} --xla_cpu_collective_call_terminate_timeout_seconds=900",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def kill_at_checkpoint(process, out, step):
    """Kills a pretraining run, which may not end before, when a checkpoint lies in its folder."""
    while process.poll() is None and not (out / "checkpoints" / str(step)).is_dir():
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert not (out / "summary.json").exists()
