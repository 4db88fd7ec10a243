"""Orbax's lines are dropped from the logger that it shares; those of others stay."""

import logging
import pathlib

import orbax.checkpoint
import pytest

from fm.training import checkpoint

assert checkpoint


@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
@pytest.mark.parametrize(("of_orbax", "shown"), [(True, 0), (False, 1)])
def test_only_orbax_is_silent(caplog, level, of_orbax, shown):
    folder = pathlib.Path(orbax.checkpoint.__file__).parent if of_orbax else "/home/me"
    logger = logging.getLogger("absl")
    record = logger.makeRecord("absl", level, f"{folder}/handler.py", 1, "a line", (), None)
    assert logger.isEnabledFor(level)
    logger.handle(record)
    assert len(caplog.records) == shown
