"""A few faults in one command; FM_FAULTS=100 injects a hundred, as `make fault_injection` does."""

import os

import pytest

from tests.fault_injection.injection import Row, inject_faults, table, write
from tests.fault_injection.targets import TARGETS


@pytest.mark.slow
def test_pretraining_survives(tmp_path, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(tmp_path / "cache"))
    count = int(os.environ.get("FM_FAULTS", "5"))
    rows = inject_faults(TARGETS["pretraining"], tmp_path, count)
    assert sum(row.injected for row in rows) == count
    assert not any(row.lost for row in rows), table(rows)


def test_the_table_counts_the_lost_runs(tmp_path):
    rows = [Row("pretraining", "kill -9", 3, 3), Row("sweep", "SIGTERM", 2, 1)]
    assert [row.lost for row in rows] == [0, 1]
    write(rows, tmp_path)
    last = (tmp_path / "fault_injection.txt").read_text().splitlines()[-1]
    assert last.split() == ["all", "5", "4", "1"]
    assert '"lost": 1' in (tmp_path / "fault_injection.json").read_text()
