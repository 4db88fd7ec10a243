import itertools

import numpy as np
import pytest

from fm.data.builders import list_ops
from fm.data.load import load


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[SM 9 9 5 ]", 3),
        ("[MED 1 5 8 ]", 5),
        ("[MED 1 4 ]", 2),
        ("[MIN [SM 1 2 ] [MAX 0 8 ] ]", 3),
    ],
)
def test_values_of_expressions(text, value):
    assert list_ops.evaluate(text) == value


@pytest.mark.parametrize(
    "text", ["", "[MAX ]", "1 2", "[MAX 1 2", "[SUM 1 2 ]", "1 ]", "[MIN 12 3 ]"]
)
def test_what_is_no_expression_is_refused(text):
    with pytest.raises(ValueError):
        list_ops.evaluate(text)


def test_expressions_have_their_values_and_lengths_and_repeat():
    found = list(list_ops.expressions(300, seed=1))
    assert found == list(list_ops.expressions(300, seed=1))
    assert found != list(list_ops.expressions(300, seed=2))
    assert len({text for text, _ in found}) == 300
    for text, value in found:
        symbols = text.split()
        assert list_ops.MIN_SYMBOLS <= len(symbols) <= list_ops.MAX_SYMBOLS
        assert set(symbols) <= set(list_ops.SYMBOLS)
        assert list_ops.evaluate(text) == value


def test_every_operation_and_depth_occurs():
    texts = [text for text, _ in list_ops.expressions(300, seed=0)]
    symbols = set(itertools.chain.from_iterable(text.split() for text in texts))
    assert symbols == set(list_ops.SYMBOLS)
    depths = [max(np.cumsum([s.startswith("[") - (s == "]") for s in t.split()])) for t in texts]
    assert min(depths) <= 3 and max(depths) >= 6


@pytest.mark.slow
def test_the_data_set():
    dataset = load("list_ops")
    assert len(dataset.train) + len(dataset.test) == list_ops.NUM_EXAMPLES
    assert 3_000 < len(dataset.test) < 3_600
    assert dataset.modality == "text" and dataset.classes == tuple("0123456789")
    texts = dataset.test.inputs(range(50))
    values = [list_ops.evaluate(text) for text in texts]
    assert values == [int(label) for label in dataset.test.labels[:50]]
    shares = np.bincount(dataset.train.labels) / len(dataset.train)
    assert shares.max() < 0.25
