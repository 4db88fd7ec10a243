import pytest

from fm.adaptation.search import best_epochs, has_plateaued, last_gain, successive_halving

GRID = [4, 8, 16, 32, 64]


def candidates(curves):
    """Runs with known scores, and a list of the (run, epochs) trained."""
    trained = []

    def start(n):
        def read(epochs):
            trained.append((n, epochs))
            return curves[n][GRID.index(epochs)]

        return read

    return [lambda n=n: start(n) for n in range(len(curves))], trained


def test_the_better_half_goes_on_at_every_reading():
    curves = [[n / 10, n / 10 + 0.01, 0.9 + n / 100, 0.95, 0.97] for n in range(6)]
    starts, trained = candidates(curves)
    readings = successive_halving(starts, GRID)
    assert [len(each) for each in readings] == [1, 1, 1, 2, 3, 5]
    assert readings[5] == dict(zip(GRID, curves[5], strict=True))
    assert [n for n, epochs in trained if epochs == 4] == list(range(6))


def test_of_equal_candidates_the_first_goes_on():
    starts, _ = candidates([[0.5, 0.6, 0.7, 0.8, 0.9]] * 4)
    assert [len(each) for each in successive_halving(starts, GRID)] == [5, 2, 1, 1]


def test_a_run_stops_after_two_doublings_without_gain():
    starts, trained = candidates([[0.6, 0.7, 0.7, 0.65, 0.9]])
    (readings,) = successive_halving(starts, GRID)
    assert list(readings) == [4, 8, 16, 32] == [epochs for _, epochs in trained]
    assert readings[8] == max(readings.values())


def test_an_early_best_is_not_forgotten():
    """A candidate that fell from its best is ranked by the best, as it will be chosen by it."""
    starts, _ = candidates([[0.8, 0.5, 0.5, 0.5, 0.5], [0.6, 0.7, 0.7, 0.7, 0.7]])
    assert [len(each) for each in successive_halving(starts, GRID)] == [3, 1]


@pytest.mark.parametrize(
    ("scores", "plateaued"),
    [
        ([0.5, 0.5], False),
        ([0.5, 0.5, 0.5], True),
        ([0.5, 0.4, 0.6], False),
        ([0.5, 0.6, 0.6], False),
        ([0.5, 0.6, 0.6, 0.6], True),
    ],
)
def test_plateau(scores, plateaued):
    assert has_plateaued(scores) == plateaued


def test_no_run_is_stopped_or_dropped_before_the_least_epochs():
    starts, _ = candidates([[0.7, 0.6, 0.6, 0.6, 0.9], [0.9, 0.5, 0.5, 0.5, 0.5]])
    first, second = successive_halving(starts, GRID, min_epochs=30)
    assert list(first) == list(second) == [4, 8, 16, 32]


def test_the_longest_run_within_a_standard_error_is_taken():
    readings = {4: 0.8, 8: 0.78, 16: 0.75, 32: 0.5}
    # Standard errors of 0.8: 0.4 / sqrt(n).
    assert [best_epochs(readings, n) for n in (1, 50, 100, 2000)] == [32, 16, 8, 4]


def test_the_gain_is_of_the_last_doubling():
    assert last_gain({16: 0.7, 4: 0.5, 8: 0.6}) == pytest.approx(0.1)
    assert last_gain({4: 0.5}) == 0
    assert last_gain({4: 0.8, 8: 0.7, 16: 0.8}) == 0, "back where it was is no gain"
