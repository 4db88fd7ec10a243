import numpy as np
import pytest

from fm.report import attention_maps

CAUSAL = np.tril(np.ones((4, 4), bool))
FULL = np.ones((4, 4), bool)


def test_a_head_that_looks_at_the_one_before():
    weights = np.eye(4, k=-1)
    weights[0, 0] = 1
    got = attention_maps.summarize_head(weights, CAUSAL, attention_maps.token_distances(4))
    assert (got.distance, got.entropy_bits, got.self_weight, got.previous_weight) == (1, 0, 0, 1)
    assert got.first_weight == pytest.approx(
        1 / 3
    )  # the first row has no choice and does not count


def test_even_attention_by_hand():
    got = attention_maps.summarize_head(
        attention_maps.uniform_weights(CAUSAL), CAUSAL, attention_maps.token_distances(4)
    )
    assert got.entropy_bits == pytest.approx(np.mean(np.log2([2, 3, 4])))
    assert got.distance == pytest.approx(np.mean([0.5, 1.0, 1.5]))
    assert got.self_weight == got.first_weight == pytest.approx(np.mean([1 / 2, 1 / 3, 1 / 4]))
    both = attention_maps.summarize_head(
        attention_maps.uniform_weights(FULL), FULL, attention_maps.token_distances(4)
    )
    assert both.entropy_bits == pytest.approx(2) and both.previous_weight == pytest.approx(0.25)


def test_a_head_that_looks_at_itself():
    got = attention_maps.summarize_head(np.eye(4), FULL, attention_maps.token_distances(4))
    assert (
        got.distance,
        got.entropy_bits,
        got.self_weight,
        got.previous_weight,
        got.first_weight,
    ) == (0, 0, 1, 0, 0.25)


def test_patches_lie_on_a_grid_and_a_start_piece_nowhere():
    apart = attention_maps.patch_distances(2, 3, start=False)
    assert apart[0, 5] == pytest.approx(np.sqrt(1 + 4)) and apart[1, 4] == 1
    led = attention_maps.patch_distances(2, 3, start=True)
    np.testing.assert_array_equal(led[1:, 1:], apart)
    assert np.isnan(led[0]).all() and np.isnan(led[:, 0]).all()


def test_weight_on_the_start_piece_does_not_count_as_distance():
    apart = attention_maps.patch_distances(1, 2, start=True)
    seen = np.tril(np.ones((3, 3), bool))
    weights = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.25, 0.25]])
    got = attention_maps.summarize_head(weights, seen, apart)
    assert got.distance == pytest.approx(np.mean([0, 0.5]))
    assert got.first_weight == pytest.approx(0.5)
    nowhere = attention_maps.summarize_head(np.eye(3)[[0, 0, 0]], seen, apart)
    assert nowhere.distance is None and nowhere.first_weight == 1


def test_nothing_to_choose_among_is_no_number():
    one = attention_maps.summarize_head(
        np.ones((1, 1)), np.ones((1, 1), bool), attention_maps.token_distances(1)
    )
    assert one == attention_maps.HeadSummary(None, None, None, None, None)
