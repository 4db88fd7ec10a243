"""Gives the fuzz tests a cache of their own."""

import pytest


@pytest.fixture(scope="package", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FM_CACHE", str(tmp_path_factory.mktemp("fm_cache")))
        yield
