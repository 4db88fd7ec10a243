"""The long form: python -m tests.torture --faults=100 --out=runs/torture (`make torture`)."""

import argparse
import sys
from pathlib import Path

from tests.torture.faults import FAULTS
from tests.torture.torment import table, torment, write
from tests.torture.victims import VICTIMS


def main() -> int:
    """Torments every command; 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=100, help="of each command")
    parser.add_argument("--only", choices=VICTIMS, help="one command alone")
    parser.add_argument("--kind", choices=FAULTS, help="of fault, alone")
    parser.add_argument("--seed", type=int, help="of all chance")
    parser.add_argument("--out", type=Path, default=Path("runs/torture"), help="of the table")
    given = parser.parse_args()
    rows, folder = [], given.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in [given.only] if given.only else VICTIMS:
        kinds = [given.kind] if given.kind else list(FAULTS)
        rows += torment(VICTIMS[name], folder, given.faults, faults=kinds, seed=given.seed)
        write(rows, folder)
        print(f"{table(rows)}\n", flush=True)
    return int(any(row.lost for row in rows))


if __name__ == "__main__":
    sys.exit(main())
