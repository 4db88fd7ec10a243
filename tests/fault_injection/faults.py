"""What is done to a run: each fault starts a process and sees to its end.

It says whether that end was as it should be, or None where the process was done before its time.
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

_ROOM = 8192  # bytes to a file, of a disk that is full
_LIMIT = 900.0  # seconds until a process counts as hung


@dataclasses.dataclass
class FaultRun:
    """A process, from its start to its end.

    Attributes:
      target: what runs.
      folder: of its data.
      out: of its output.
      seconds: that an unbroken run takes, and of these until it has claimed its folder.
      rng: of all chance.
    """

    target: Target
    folder: Path
    out: Path
    seconds: tuple[float, float]
    rng: np.random.Generator

    @property
    def said(self) -> Path:
        """What the last process said."""
        return self.folder / "said.txt"

    def run(
        self, act: Callable[[BaseProcess], None], room: int | None = None
    ) -> tuple[int | None, str]:
        """Starts it, acts, waits; its exit code, None if it hung, and what it said."""
        process = self.target.start(self.folder, self.out, self.said, room)
        try:
            act(process)
            process.join(_LIMIT)
            code = process.exitcode
        finally:
            process.kill()
            process.join()
        return code, self.said.read_text() if self.said.exists() else ""

    def wait(self, process: BaseProcess, seconds: float) -> None:
        """Until so much later, or its end."""
        end = time.monotonic() + seconds
        while process.is_alive() and time.monotonic() < end:
            time.sleep(0.005)

    def wait_for_lock(self, process: BaseProcess) -> None:
        """Until it works in its folder, or its end."""
        before = time.monotonic()
        while process.is_alive() and not (self.out / ".lock").exists():
            # What a killed process left is no sign; then it is by the clock.
            time.sleep(0.005)
        self.wait(process, max(0.0, before + self.seconds[1] - time.monotonic()))


def run_undisturbed(fault_run: FaultRun) -> bool:
    """Runs to its end; whether that was a good one."""
    code, said = fault_run.run(lambda _: None)
    return code == 0 and "Traceback" not in said


def kill(fault_run: FaultRun) -> bool | None:
    """kill -9 at any moment at all, starting up included."""

    def act(process):
        fault_run.wait(process, fault_run.rng.uniform(0, fault_run.seconds[0]))
        process.kill()

    return _killed(fault_run.run(act)[0])


def kill_at_work(fault_run: FaultRun) -> bool | None:
    """kill -9 at any moment after it has begun to work."""

    def act(process):
        fault_run.wait_for_lock(process)
        fault_run.wait(
            process, fault_run.rng.uniform(0, fault_run.seconds[0] - fault_run.seconds[1])
        )
        process.kill()

    return _killed(fault_run.run(act)[0])


def kill_in_checkpoint(fault_run: FaultRun) -> bool | None:
    """kill -9 while a checkpoint is being written, one of the first few."""

    def act(process):
        began, seen, after = time.time(), set(), fault_run.rng.integers(1, 4)
        while process.is_alive() and len(seen) < after:
            # A folder may get its name, and so be gone, while it is looked at.
            with contextlib.suppress(FileNotFoundError):
                for path in fault_run.out.glob("**/checkpoints/*.orbax-checkpoint-tmp*"):
                    if path.stat().st_ctime > began:
                        seen.add(path)
            time.sleep(0.001)
        fault_run.wait(process, fault_run.rng.uniform(0, 0.03))
        process.kill()

    return _killed(fault_run.run(act)[0])


def terminate(fault_run: FaultRun) -> bool | None:
    """SIGTERM once it works: it ends by itself within seconds, and says so in a line."""

    def act(process):
        fault_run.wait_for_lock(process)
        fault_run.wait(
            process, fault_run.rng.uniform(0, fault_run.seconds[0] - fault_run.seconds[1])
        )
        process.terminate()

    code, said = fault_run.run(act)
    return None if code == 0 else code == 130 and _one_line(said)


def fill_disk(fault_run: FaultRun) -> bool | None:
    """No file takes more than a few kilobytes: an end with code 2 and a line."""

    code, said = fault_run.run(lambda _: None, _ROOM)
    return None if code == 0 else code == 2 and _one_line(said)


def damage(fault_run: FaultRun) -> bool | None:
    """A bit flipped in the newest checkpoint of two or more, or half a file gone; and a kill."""

    def act(process):
        found = []
        while process.is_alive() and not found:
            # A folder may get its name, and so be gone, while it is looked at.
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
    """The newest of two checkpoints or more, of each run that is not done.

    A study that has its results reads no checkpoint again, and misses none.
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


def _one_line(said: str) -> bool:
    lines = said.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    return "Traceback" not in said and errors == lines[-1:]


FAULTS = {
    "kill -9": kill,
    "kill -9 at work": kill_at_work,
    "kill -9 in a checkpoint": kill_in_checkpoint,
    "SIGTERM": terminate,
    "full disk": fill_disk,
    "damaged checkpoint": damage,
}
