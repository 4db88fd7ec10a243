"""Stages are numbered by the plan; a time is given once the same kind of work was measured."""

import pytest

from fm.study import stages
from fm.study.stages import Stage, StagePlan


@pytest.fixture
def clock(monkeypatch):
    found = [0.0]
    monkeypatch.setattr(stages, "_clock", lambda: found[0])
    return found


def test_a_time_is_given_once_the_same_work_was_measured(clock, capsys):
    films, digits, more = (
        Stage(name, f"{name}: pretraining") for name in ("films", "digits", "more")
    )
    plan = StagePlan([films, digits, films, more])
    for stage, kind, work in (
        (films, "text", 100),
        (digits, "image", 100),
        (more, "text", 300),
        (films, "text", 0),  # done already
    ):
        with plan.stage(stage, kind=kind, work=work):
            clock[0] += 60
    assert capsys.readouterr().err.splitlines() == [
        "1 of 3: films: pretraining",
        "2 of 3: digits: pretraining",
        "3 of 3: more: pretraining, about 3 min",
        "1 of 3: films: pretraining",
    ]


def test_a_stage_that_is_not_planned_has_no_number(capsys):
    with StagePlan().stage(Stage("own", "an arm of one's own")):
        pass
    assert capsys.readouterr().err == "an arm of one's own\n"


def test_a_failed_stage_measures_nothing(clock, capsys):
    stage = Stage("films", "films")
    plan = StagePlan([stage])
    with pytest.raises(ValueError), plan.stage(stage, kind="text", work=1):
        raise ValueError
    with plan.stage(stage, kind="text", work=1):
        pass
    assert "about" not in capsys.readouterr().err
