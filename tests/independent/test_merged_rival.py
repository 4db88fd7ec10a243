"""The merged rival answers with the surer of its two sources."""

import pandas as pd
import pytest

from tests.independent.merged_rival import PRETRAINED, table


def test_the_surer_source_answers():
    truth = [0, 1, 1]
    answers = {
        "scratch": ([0, 0, 1], [0.9, 0.6, 0.5]),
        "classical": ([1, 1, 1], [0.8, 0.7, 0.6]),
        PRETRAINED: ([0, 1, 0], [0.9, 0.9, 0.9]),
    }
    rows = [
        ("digits", arm, 20, 0, item, truth[item], predictions[item], probabilities[item])
        for arm, (predictions, probabilities) in answers.items()
        for item in range(3)
    ]
    columns = ["task", "arm", "num_labels", "seed", "item", "truth", "prediction", "probability"]
    (row,) = table(pd.DataFrame(rows, columns=columns)).to_dict("records")
    assert row["best merged rival"] == "scratch + classical"
    assert row["% merged"] == 100
    assert row["%"] == pytest.approx(200 / 3)
    assert row[PRETRAINED] == pytest.approx(200 / 3)
