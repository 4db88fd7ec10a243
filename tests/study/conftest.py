"""Studies of the tests have their own cache, and so their own ledger of test slices."""

import pytest


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("fm_cache")


@pytest.fixture(autouse=True)
def _own_cache(session_cache, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(session_cache))
