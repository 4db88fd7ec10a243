"""One run that nothing happens to, for all that are compared with it."""

import pytest

from tests.training.toy import go, lines


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    return go(out), lines(out)
