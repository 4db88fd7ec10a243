"""Pretrains on text larger than memory, killed twice and resumed, beside an unbroken run.

    python -m tests.data.streaming.made_text --megabytes=3000 --out=/tmp/made_text
    python -m tests.data.streaming.larger_than_memory --text=/tmp/made_text --work=/tmp/larger

The first run is killed (SIGKILL) in the middle of tokenizing, and again in the middle of training.
Prints the peak of the resident memory of all processes together, the times, and whether both runs
end with the same parameters. Each run has a cache of its own, so the text is tokenized twice.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import psutil

FLAGS = ("--size=nano", "--objective=causal_lm:1", "--batch_size=16", "--checkpoint_every=40")


class Run:
    """A pretraining process, watched while it runs."""

    def __init__(self, text, out, cache, steps):
        command = [sys.executable, "-m", "experiments.pretrain", f"--dataset={text}"]
        command += [*FLAGS, f"--steps={steps}", f"--out={out}"]
        self.peak, self._began = 0, time.monotonic()
        self._log = (out.parent / f"{out.name}.log").open("a")
        self._process = subprocess.Popen(
            command, env=os.environ | {"FM_CACHE": str(cache)}, stdout=self._log, stderr=self._log
        )

    def watch(self, until=lambda: False):
        """Waits until the run is done (returns True) or `until` holds (False)."""
        watched = psutil.Process(self._process.pid)
        while self._process.poll() is None:
            total = 0
            for each in (watched, *watched.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += each.memory_info().rss
            self.peak = max(self.peak, total)
            if until():
                return False
            time.sleep(0.5)
        assert self._process.returncode == 0, "the run failed, see its log"
        return True

    def kill(self):
        """Kills the main process; the others end by themselves."""
        others = psutil.Process(self._process.pid).children(recursive=True)
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        _, alive = psutil.wait_procs(others, timeout=30)
        assert not alive, "processes that tokenize are left over"

    def told(self, what, **more):
        """Prints what the run took."""
        record = {"run": what, "peak_rss_gb": round(self.peak / 1e9, 2)}
        record |= {"seconds": round(time.monotonic() - self._began), **more}
        print(json.dumps(record), flush=True)


def digest(out):
    """Returns the digest of the final parameters."""
    return json.loads((out / "summary.json").read_text())["params_digest"]


def main():
    """Runs both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args()
    work = given.work
    work.mkdir(parents=True, exist_ok=True)
    broken, cache = work / "broken", work / "cache"
    size = sum(path.stat().st_size for path in given.text.iterdir())
    parts = max(2, size // 2**25)

    def shards():
        return len(list(cache.glob("text_rows/*/shard-*.json")))

    def checkpoints():
        found = [each.name for each in (broken / "checkpoints").glob("*") if each.name.isdigit()]
        return max(map(int, found), default=0)

    run = Run(given.text, broken, cache, given.steps)
    if not run.watch(lambda: shards() >= parts // 3):
        run.kill()
    run.told("killed while tokenizing", shards=shards())
    run = Run(given.text, broken, cache, given.steps)
    if not run.watch(lambda: checkpoints() >= given.steps // 3):
        run.kill()
    run.told("killed while training", shards=shards(), checkpoint=checkpoints())
    run = Run(given.text, broken, cache, given.steps)
    run.watch()
    run.told("resumed to the end", params=digest(broken))
    whole = work / "whole"
    run = Run(given.text, whole, work / "cache-whole", given.steps)
    run.watch()
    run.told("unbroken", params=digest(whole), equal=digest(whole) == digest(broken))


if __name__ == "__main__":
    main()
