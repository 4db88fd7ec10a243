import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from fm.evaluation.metrics import accuracy, macro_f1


def test_accuracy():
    assert accuracy([1, 0, 2, 2], [1, 0, 2, 0]) == 0.75
    with pytest.raises(ValueError, match="do not match"):
        accuracy([1, 0], [1])
    with pytest.raises(ValueError, match="do not match"):
        accuracy([], [])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_macro_f1_matches_sklearn(pairs):
    predictions, labels = np.array(pairs).T
    expected = f1_score(labels, predictions, average="macro", zero_division=0)
    assert macro_f1(predictions, labels) == pytest.approx(expected)


def test_macro_f1_by_hand():
    # Class 0: precision 1, recall 1/2, F1 2/3. Class 1: 2/3, 1, 4/5. Class 2 never seen.
    assert macro_f1([0, 1, 1, 1], [0, 0, 1, 1]) == pytest.approx((2 / 3 + 4 / 5) / 2)
