"""One run without interruption, for all that are compared with it."""

import pytest

from tests.training.helpers_runs import log_records, run_toy


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("uninterrupted")
    return run_toy(out_dir), log_records(out_dir)
