"""Injects faults into every command; prints how many it survived (`make fault_injection`)."""

import argparse
import sys
from pathlib import Path

from tests.fault_injection.faults import FAULTS
from tests.fault_injection.injection import inject_faults, table, write
from tests.fault_injection.targets import TARGETS


def main() -> int:
    """Injects faults into every command; returns 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=100, help="faults per command")
    parser.add_argument("--only", choices=TARGETS, help="inject into this command only")
    parser.add_argument("--kind", choices=FAULTS, help="inject this fault only")
    parser.add_argument("--seed", type=int, help="seed of faults and times")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/fault_injection"), help="folder of the table"
    )
    given = parser.parse_args()
    rows, folder = [], given.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in [given.only] if given.only else TARGETS:
        kinds = [given.kind] if given.kind else list(FAULTS)
        rows += inject_faults(TARGETS[name], folder, given.faults, faults=kinds, seed=given.seed)
        write(rows, folder)
        print(f"{table(rows)}\n", flush=True)
    return int(any(row.lost for row in rows))


if __name__ == "__main__":
    sys.exit(main())
