"""Injects random faults into a command, lets it finish, and compares it with an undisturbed run."""

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tests.fault_injection.faults import FAULTS, FaultRun, run_undisturbed
from tests.fault_injection.targets import Target, outcome

_MAX_FAULTS_PER_RUN = 10


@dataclasses.dataclass
class Row:
    """How often a fault was injected into a command, and how often the command survived it."""

    target: str
    fault: str
    injected: int = 0
    survived: int = 0

    @property
    def lost(self) -> int:
        """Faults that were not survived."""
        return self.injected - self.survived


def inject_faults(
    target: Target,
    folder: Path,
    count: int,
    *,
    faults: Sequence[str] = tuple(FAULTS),
    seed: int | None = None,
) -> list[Row]:
    """Injects `count` faults into runs of a command.

    Args:
      target: the command.
      folder: for data and output; runs that lost something are left there.
      count: number of faults.
      faults: names to draw from.
      seed: of faults and times; a new one unless given.

    Returns:
      A row per fault drawn. A fault is survived if its process ended as it should and the run,
      once finished undisturbed, equals the reference to the bit.
    """
    rng = np.random.default_rng(seed)
    reference = folder / f"{target.name}-reference"
    began = time.monotonic()
    # The second run finds everything compiled, like all later ones.
    for _ in range(2):
        shutil.rmtree(reference, ignore_errors=True)
        began = time.monotonic()
        started = _timed(FaultRun(target, folder, reference, (0.0, 0.0), rng))
    seconds = time.monotonic() - began, started
    want = outcome(reference)
    assert want, f"{target.name} left nothing to compare"
    saves = any(reference.glob("**/checkpoints"))
    kinds = [name for name in faults if saves or "checkpoint" not in name]
    rows = {name: Row(target.name, name) for name in kinds}
    spent = 0
    bar = tqdm(total=count, desc=target.name, unit="fault", disable=None)
    while spent < count:
        out = folder / f"{target.name}-{spent}"
        fault_run = FaultRun(target, folder, out, seconds, rng)
        done: list[tuple[str, bool]] = []
        while len(done) < min(_MAX_FAULTS_PER_RUN, count - spent):
            name = str(rng.choice(kinds))
            ok = FAULTS[name](fault_run)
            if ok is None:
                break
            done.append((name, ok))
            bar.update()
            if not ok:
                shutil.copy(fault_run.log, folder / f"{out.name}-{len(done)}-log.txt")
        same = run_undisturbed(fault_run) and outcome(out) == want
        assert same or done, f"{out}: an undisturbed run differs from the reference"
        for name, ok in done:
            rows[name].injected += 1
            rows[name].survived += same and ok
        spent += len(done)
        if same and all(ok for _, ok in done):
            shutil.rmtree(out)
    bar.close()
    return [row for row in rows.values() if row.injected]


def _timed(fault_run: FaultRun) -> float:
    """Runs to the end and returns the seconds until the folder was locked."""
    began, locked = time.monotonic(), []

    def watch(process):
        fault_run.wait_for_lock(process)
        locked.append(time.monotonic() - began)

    code, log = fault_run.run(watch)
    assert code == 0, log
    return locked[0]


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as text, with their sum."""
    total = Row("all", "", sum(r.injected for r in rows), sum(r.survived for r in rows))
    head = f"{'command':<14}{'fault':<26}{'injected':>9}{'survived':>9}{'lost':>6}"
    lines = [
        f"{row.target:<14}{row.fault:<26}{row.injected:>9}{row.survived:>9}{row.lost:>6}"
        for row in (*rows, total)
    ]
    return "\n".join([head, *lines])


def write(rows: Sequence[Row], out: Path) -> None:
    """Writes the table as fault_injection.json and fault_injection.txt."""
    out.mkdir(parents=True, exist_ok=True)
    plain = [dataclasses.asdict(row) | {"lost": row.lost} for row in rows]
    (out / "fault_injection.json").write_text(json.dumps(plain, indent=1) + "\n")
    (out / "fault_injection.txt").write_text(table(rows) + "\n")
