"""The faults. Each starts a process of a run, disturbs it and waits for its end.

It returns whether the process ended as it should, or None if it finished before the fault.
"""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from fm.training.checkpoint import UNHASHED_FILES
from tests.fault_injection.targets import Target

_MAX_FILE_BYTES = 8192  # in place of a full disk
_TIMEOUT = 900.0  # seconds


@dataclasses.dataclass
class FaultRun:
    """A run that is started again after every fault.

    Attributes:
      target: the command.
      folder: of its data.
      out: of its output.
      seconds: of an undisturbed run, and of these until it has locked its folder.
      rng: draws faults and times.
    """

    target: Target
    folder: Path
    out: Path
    seconds: tuple[float, float]
    rng: np.random.Generator

    @property
    def log(self) -> Path:
        """The output of the last process."""
        return self.folder / "log.txt"

    def run(
        self, act: Callable[[BaseProcess], None], max_bytes: int | None = None
    ) -> tuple[int | None, str]:
        """Starts a process, acts on it and waits; returns exit code (None: it hung) and output."""
        process = self.target.start(self.folder, self.out, self.log, max_bytes)
        try:
            act(process)
            process.join(_TIMEOUT)
            code = process.exitcode
        finally:
            process.kill()
            process.join()
        return code, self.log.read_text() if self.log.exists() else ""

    def wait(self, process: BaseProcess, seconds: float) -> None:
        """Waits some seconds, or until the process ends."""
        end = time.monotonic() + seconds
        while process.is_alive() and time.monotonic() < end:
            time.sleep(0.005)

    def wait_for_lock(self, process: BaseProcess) -> None:
        """Waits until the process works in its folder, or ends."""
        before = time.monotonic()
        while process.is_alive() and not (self.out / ".lock").exists():
            time.sleep(0.005)
        # The lock may be that of a killed process, so the time counts as well.
        self.wait(process, max(0.0, before + self.seconds[1] - time.monotonic()))


def run_undisturbed(fault_run: FaultRun) -> bool:
    """Runs to the end; returns whether it succeeded."""
    code, log = fault_run.run(lambda _: None)
    return code == 0 and "Traceback" not in log


def kill(fault_run: FaultRun) -> bool | None:
    """Kills at any time, startup included."""

    def act(process):
        fault_run.wait(process, fault_run.rng.uniform(0, fault_run.seconds[0]))
        process.kill()

    return _killed(fault_run.run(act)[0])


def kill_at_work(fault_run: FaultRun) -> bool | None:
    """Kills at any time after the run has locked its folder."""

    def act(process):
        fault_run.wait_for_lock(process)
        fault_run.wait(
            process, fault_run.rng.uniform(0, fault_run.seconds[0] - fault_run.seconds[1])
        )
        process.kill()

    return _killed(fault_run.run(act)[0])


def kill_in_checkpoint(fault_run: FaultRun) -> bool | None:
    """Kills while one of the first checkpoints is being written."""

    def act(process):
        began, seen, after = time.time(), set(), fault_run.rng.integers(1, 4)
        while process.is_alive() and len(seen) < after:
            # A folder may be renamed while it is examined.
            with contextlib.suppress(FileNotFoundError):
                for path in fault_run.out.glob("**/checkpoints/*.orbax-checkpoint-tmp*"):
                    if path.stat().st_ctime > began:
                        seen.add(path)
            time.sleep(0.001)
        fault_run.wait(process, fault_run.rng.uniform(0, 0.03))
        process.kill()

    return _killed(fault_run.run(act)[0])


def terminate(fault_run: FaultRun) -> bool | None:
    """Sends SIGTERM after the lock: the process must exit with code 130 and one error line."""

    def act(process):
        fault_run.wait_for_lock(process)
        fault_run.wait(
            process, fault_run.rng.uniform(0, fault_run.seconds[0] - fault_run.seconds[1])
        )
        process.terminate()

    code, log = fault_run.run(act)
    return None if code == 0 else code == 130 and _one_line(log)


def fill_disk(fault_run: FaultRun) -> bool | None:
    """Limits the size of files: the process must exit with code 2 and one error line."""
    code, log = fault_run.run(lambda _: None, _MAX_FILE_BYTES)
    return None if code == 0 else code == 2 and _one_line(log)


def damage(fault_run: FaultRun) -> bool | None:
    """Flips a bit or cuts a file in the newest of several checkpoints; kills the resumed run."""

    def act(process):
        found = []
        while process.is_alive() and not found:
            # A folder may be renamed while it is examined.
            with contextlib.suppress(FileNotFoundError):
                found = _damageable(fault_run.out)
            time.sleep(0.01)
        process.kill()

    if not _damageable(fault_run.out):
        ok = _killed(fault_run.run(act)[0])
        if not ok:
            return ok
    for newest in _damageable(fault_run.out):
        files = [path for path in newest.rglob("*") if path.is_file() and path.stat().st_size]
        files = [path for path in files if path.name not in UNHASHED_FILES]
        path = files[fault_run.rng.integers(len(files))]
        content = bytearray(path.read_bytes())
        if fault_run.rng.random() < 0.5:
            content[fault_run.rng.integers(len(content))] ^= 1 << int(fault_run.rng.integers(8))
        else:
            del content[len(content) // 2 :]
        path.write_bytes(content)
    return kill_at_work(fault_run)


def _damageable(out: Path) -> list[Path]:
    """Returns the newest of two or more checkpoints of each unfinished run.

    A study with results never reads a checkpoint again.
    """
    found = []
    for folder in out.glob("**/checkpoints"):
        inside = [out, *(out / part for part in folder.relative_to(out).parents)]
        steps = [step for step in folder.iterdir() if step.name.isdigit()]
        if len(steps) > 1 and not any((each / "results.json").exists() for each in inside):
            found.append(max(steps, key=lambda step: int(step.name)))
    return found


def _killed(code: int | None) -> bool | None:
    return None if code == 0 else code == -signal.SIGKILL


def _one_line(log: str) -> bool:
    lines = log.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    return "Traceback" not in log and errors == lines[-1:]


FAULTS = {
    "kill -9": kill,
    "kill -9 at work": kill_at_work,
    "kill -9 in a checkpoint": kill_in_checkpoint,
    "SIGTERM": terminate,
    "full disk": fill_disk,
    "damaged checkpoint": damage,
}
