import itertools

import numpy as np
import pytest

from fm.benchmark.core import Candidate, TimingConfig
from fm.benchmark.timing import quartiles, time_interleaved
from tests.benchmark.helpers_candidates import fake


def test_candidates_take_turns_in_alternating_order():
    calls = []
    candidates = {name: fake(name, calls, 0.001) for name in "abc"}
    seconds = time_interleaved(
        candidates, TimingConfig(num_rounds=4, seconds_per_turn=0.0, async_dispatch=False)
    )
    assert {name: len(each) for name, each in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    # Three calls warm each up; then every turn is one call to settle and one timed.
    turns = [name for name, _ in itertools.groupby(calls[9:])]
    assert calls[:9] == [*"aaabbbccc"]
    assert turns == [*"abc", *"ba", *"bc", *"ba"]
    assert [calls[9:].count(name) for name in "abc"] == [8, 8, 8]


@pytest.mark.slow
def test_every_call_is_waited_for_unless_async_or_chained():
    def waits(chained, ahead):
        waited = []
        candidate = Candidate(call=lambda: len(waited), wait=waited.append, chained=chained)
        before = len(waited)
        time_interleaved(
            {"one": candidate},
            TimingConfig(num_rounds=1, seconds_per_turn=1e-4, async_dispatch=ahead),
        )
        return len(waited) - before

    # A turn is up to a thousand calls of next to nothing: many waits, or one.
    assert waits(chained=False, ahead=False) > 20
    assert waits(chained=False, ahead=True) < 10
    assert waits(chained=True, ahead=False) < 10


def test_a_case_out_of_time_gets_three_rounds():
    timing = TimingConfig(num_rounds=9, seconds_per_turn=0.0, async_dispatch=False, max_seconds=0.0)
    assert len(time_interleaved({"one": fake("one", [], 0.001)}, timing)["one"]) == 3


def test_a_slower_candidate_takes_longer():
    candidates = {"slow": fake("slow", [], 0.02), "fast": fake("fast", [], 0.001)}
    seconds = time_interleaved(
        candidates, TimingConfig(num_rounds=3, seconds_per_turn=0.0, async_dispatch=False)
    )
    assert min(seconds["slow"]) > 0.02
    assert np.median(seconds["slow"]) > np.median(seconds["fast"])


@pytest.mark.parametrize("figures", [[3.0], [2.0, 1.0], [5.0, 1.0, 4.0, 2.0, 9.0, 0.5]])
def test_quartiles_are_those_of_numpy(figures):
    np.testing.assert_allclose(quartiles(figures), np.quantile(figures, [0.25, 0.5, 0.75]))
