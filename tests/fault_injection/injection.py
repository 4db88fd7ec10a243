"""Faults at random; then the run ends in peace and is held to an unbroken one."""

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tests.fault_injection.faults import FAULTS, FaultRun, run_undisturbed
from tests.fault_injection.targets import Target, outcome, prepare

_MOST = 10  # faults to a run


@dataclasses.dataclass
class Row:
    """Of the table: what was done how often to whom, and how often nothing was lost by it."""

    target: str
    fault: str
    injected: int = 0
    survived: int = 0

    @property
    def lost(self) -> int:
        """How often something was."""
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
      folder: for data and output; what shows a loss stays there.
      count: of faults.
      faults: kinds to draw from.
      seed: of all chance; a new one unless given.

    Returns:
      A row for every kind drawn. A fault is survived if its process ended as it should and the
      run, once it had ended in peace, was the unbroken one to the bit.
    """
    rng = np.random.default_rng(seed)
    reference = folder / f"{target.name}-unbroken"
    began = time.monotonic()
    # The second run finds everything compiled, as do all that follow.
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
        prepare(reference, out)
        fault_run = FaultRun(target, folder, out, seconds, rng)
        done: list[tuple[str, bool]] = []
        while len(done) < min(_MOST, count - spent):
            name = str(rng.choice(kinds))
            ok = FAULTS[name](fault_run)
            if ok is None:
                break
            done.append((name, ok))
            bar.update()
            if not ok:
                shutil.copy(fault_run.said, folder / f"{out.name}-{len(done)}-said.txt")
        same = run_undisturbed(fault_run) and outcome(out) == want
        assert same or done, f"{out}: left alone it does not end as the unbroken one"
        for name, ok in done:
            rows[name].injected += 1
            rows[name].survived += same and ok
        spent += len(done)
        if same and all(ok for _, ok in done):
            shutil.rmtree(out)
    bar.close()
    return [row for row in rows.values() if row.injected]


def _timed(fault_run: FaultRun) -> float:
    """Runs to the end; seconds until the folder was claimed."""
    began, claimed = time.monotonic(), []

    def watch(process):
        fault_run.wait_for_lock(process)
        claimed.append(time.monotonic() - began)

    code, said = fault_run.run(watch)
    assert code == 0, said
    return claimed[0]


def table(rows: Sequence[Row]) -> str:
    """Rows as text, with their sum."""
    total = Row("all", "", sum(r.injected for r in rows), sum(r.survived for r in rows))
    head = f"{'command':<14}{'fault':<26}{'injected':>9}{'survived':>9}{'lost':>6}"
    lines = [
        f"{row.target:<14}{row.fault:<26}{row.injected:>9}{row.survived:>9}{row.lost:>6}"
        for row in (*rows, total)
    ]
    return "\n".join([head, *lines])


def write(rows: Sequence[Row], out: Path) -> None:
    """The table as `fault_injection.json` and `fault_injection.txt`."""
    out.mkdir(parents=True, exist_ok=True)
    plain = [dataclasses.asdict(row) | {"lost": row.lost} for row in rows]
    (out / "fault_injection.json").write_text(json.dumps(plain, indent=1) + "\n")
    (out / "fault_injection.txt").write_text(table(rows) + "\n")
