"""A few bad inputs in processes of their own: exit code and last line."""

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "argument", "message"),
    [
        ("pretrain", b"--dataset=\xff\xfe", rb"unknown data set '\udcff\udcfe'"),
        ("compare", "--label_budgets=" + "9" * 5000, b"--label_budgets=999"),
        ("plan", "--mfu=nan", b"mfu=nan"),
        ("report", "--out=/dev/null", b"/dev/null"),
    ],
    ids=["bytes", "long", "not a number", "no folder"],
)
def test_a_process_ends_with_one_line(tmp_path, experiment, argument, message):
    out = [] if experiment in ("plan", "report") else [f"--out={tmp_path / 'out'}"]
    command = [sys.executable, "-m", f"experiments.{experiment}", argument, *out]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=600)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith(b"error: ") and message in last, done.stderr
    assert b"Traceback" not in done.stderr and not (tmp_path / "out").exists()
