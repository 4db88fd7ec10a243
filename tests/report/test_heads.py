import numpy as np
import pytest

from fm.report import heads

CAUSAL = np.tril(np.ones((4, 4), bool))
FULL = np.ones((4, 4), bool)


def test_a_head_that_looks_at_the_one_before():
    weights = np.eye(4, k=-1)
    weights[0, 0] = 1
    got = heads.habits(weights, CAUSAL, heads.steps(4))
    assert (got.distance, got.entropy, got.itself, got.before) == (1, 0, 0, 1)
    assert got.first == pytest.approx(1 / 3)  # the first row has no choice and does not count


def test_even_attention_by_hand():
    got = heads.habits(heads.even(CAUSAL), CAUSAL, heads.steps(4))
    assert got.entropy == pytest.approx(np.mean(np.log2([2, 3, 4])))
    assert got.distance == pytest.approx(np.mean([0.5, 1.0, 1.5]))
    assert got.itself == got.first == pytest.approx(np.mean([1 / 2, 1 / 3, 1 / 4]))
    both = heads.habits(heads.even(FULL), FULL, heads.steps(4))
    assert both.entropy == pytest.approx(2) and both.before == pytest.approx(0.25)


def test_a_head_that_looks_at_itself():
    got = heads.habits(np.eye(4), FULL, heads.steps(4))
    assert (got.distance, got.entropy, got.itself, got.before, got.first) == (0, 0, 1, 0, 0.25)


def test_patches_lie_on_a_grid_and_a_start_piece_nowhere():
    apart = heads.patches_apart(2, 3, start=False)
    assert apart[0, 5] == pytest.approx(np.sqrt(1 + 4)) and apart[1, 4] == 1
    led = heads.patches_apart(2, 3, start=True)
    np.testing.assert_array_equal(led[1:, 1:], apart)
    assert np.isnan(led[0]).all() and np.isnan(led[:, 0]).all()


def test_weight_on_the_start_piece_does_not_count_as_distance():
    apart = heads.patches_apart(1, 2, start=True)
    seen = np.tril(np.ones((3, 3), bool))
    weights = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.25, 0.25]])
    got = heads.habits(weights, seen, apart)
    assert got.distance == pytest.approx(np.mean([0, 0.5]))
    assert got.first == pytest.approx(0.5)
    nowhere = heads.habits(np.eye(3)[[0, 0, 0]], seen, apart)
    assert nowhere.distance is None and nowhere.first == 1


def test_nothing_to_choose_among_is_no_number():
    one = heads.habits(np.ones((1, 1)), np.ones((1, 1), bool), heads.steps(1))
    assert one == heads.Habits(None, None, None, None, None)
