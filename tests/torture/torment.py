"""Faults at random; then the run ends in peace and is held to an unbroken one."""

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tests.torture.faults import FAULTS, Sitting, left_alone
from tests.torture.victims import Victim, outcome, prepare

_MOST = 10  # faults to a run


@dataclasses.dataclass
class Row:
    """Of the table: what was done how often to whom, and how often nothing was lost by it."""

    victim: str
    fault: str
    injected: int = 0
    survived: int = 0

    @property
    def lost(self) -> int:
        """How often something was."""
        return self.injected - self.survived


def torment(
    victim: Victim,
    folder: Path,
    count: int,
    *,
    faults: Sequence[str] = tuple(FAULTS),
    seed: int | None = None,
) -> list[Row]:
    """Injects `count` faults into runs of a command.

    Args:
      victim: the command.
      folder: for data and output; what shows a loss stays there.
      count: of faults.
      faults: kinds to draw from.
      seed: of all chance; a new one unless given.

    Returns:
      A row for every kind drawn. A fault is survived if its process ended as it should and the
      run, once it had ended in peace, was the unbroken one to the bit.
    """
    rng = np.random.default_rng(seed)
    reference = folder / f"{victim.name}-unbroken"
    began = time.monotonic()
    # The second run finds everything compiled, as do all that follow.
    for _ in range(2):
        shutil.rmtree(reference, ignore_errors=True)
        began = time.monotonic()
        started = _timed(Sitting(victim, folder, reference, (0.0, 0.0), rng))
    seconds = time.monotonic() - began, started
    want = outcome(reference)
    assert want, f"{victim.name} left nothing to compare"
    saves = any(reference.glob("**/checkpoints"))
    kinds = [name for name in faults if saves or "checkpoint" not in name]
    rows = {name: Row(victim.name, name) for name in kinds}
    spent = 0
    bar = tqdm(total=count, desc=victim.name, unit="fault", disable=None)
    while spent < count:
        out = folder / f"{victim.name}-{spent}"
        prepare(reference, out)
        sitting = Sitting(victim, folder, out, seconds, rng)
        done: list[tuple[str, bool]] = []
        while len(done) < min(_MOST, count - spent):
            name = str(rng.choice(kinds))
            fine = FAULTS[name](sitting)
            if fine is None:
                break
            done.append((name, fine))
            bar.update()
            if not fine:
                shutil.copy(sitting.said, folder / f"{out.name}-{len(done)}-said.txt")
        same = left_alone(sitting) and outcome(out) == want
        assert same or done, f"{out}: left alone it does not end as the unbroken one"
        for name, fine in done:
            rows[name].injected += 1
            rows[name].survived += same and fine
        spent += len(done)
        if same and all(fine for _, fine in done):
            shutil.rmtree(out)
    bar.close()
    return [row for row in rows.values() if row.injected]


def _timed(sitting: Sitting) -> float:
    """Runs to the end; seconds until the folder was claimed."""
    began, claimed = time.monotonic(), []

    def watch(process):
        sitting.claimed(process)
        claimed.append(time.monotonic() - began)

    code, said = sitting.run(watch)
    assert code == 0, said
    return claimed[0]


def table(rows: Sequence[Row]) -> str:
    """Rows as text, with their sum."""
    total = Row("all", "", sum(r.injected for r in rows), sum(r.survived for r in rows))
    head = f"{'command':<14}{'fault':<26}{'injected':>9}{'survived':>9}{'lost':>6}"
    lines = [
        f"{row.victim:<14}{row.fault:<26}{row.injected:>9}{row.survived:>9}{row.lost:>6}"
        for row in (*rows, total)
    ]
    return "\n".join([head, *lines])


def write(rows: Sequence[Row], out: Path) -> None:
    """The table as `torture.json` and `torture.txt`."""
    out.mkdir(parents=True, exist_ok=True)
    plain = [dataclasses.asdict(row) | {"lost": row.lost} for row in rows]
    (out / "torture.json").write_text(json.dumps(plain, indent=1) + "\n")
    (out / "torture.txt").write_text(table(rows) + "\n")
