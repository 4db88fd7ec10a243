"""A command reads each of its data sets once."""

import pytest

from fm.study.loading import datasets_read_once, load
from fm.study.tasks import prepare_task
from tests.study.helpers_study import config, dataset


@pytest.fixture
def reads(monkeypatch):
    made = []
    monkeypatch.setattr(
        "fm.data.load.load", lambda name, **options: made.append((name, options)) or dataset(name)
    )
    return made


def test_equal_arguments_are_read_once(reads):
    with datasets_read_once():
        first = load("fruit", text_column="text")
        prepare_task(config(), (), 1)
        assert load("fruit", text_column="text") is first
        assert load("fruit", text_column="words") is not first
        assert len(reads) == 3
    load("fruit", text_column="text")
    assert len(reads) == 4


def test_another_command_reads_again(reads):
    for _ in range(2):
        with datasets_read_once():
            for _ in range(2):
                load("fruit")
    assert len(reads) == 2
