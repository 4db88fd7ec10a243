import pytest

from fm.evaluation.text_quality.metrics import METRICS
from fm.study.text_quality import runner


def row(name, **values):
    every = {metric.name: 0.5 for metric in METRICS} | values
    return {
        "name": name,
        "values": {key: [value, value - 0.05, value + 0.05] for key, value in every.items()},
    }


ROWS = [
    row("real-like", mauve=0.9, distinct_2=0.8, self_bleu=0.2),
    row("wild", mauve=0.3, distinct_2=1.0, self_bleu=0.1),
    row("dull", mauve=0.5, distinct_2=0.2, self_bleu=0.9, scorer_bits_per_byte=0.1),
]


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("mauve", "real-like"),
        ("distinct_2", "wild"),
        ("self_bleu", "wild"),
        ("scorer_bits_per_byte", "dull"),
        ("novelty", "real-like"),  # a tie: the first
    ],
)
def test_each_metric_chooses_its_own_way(metric, name):
    assert runner.best_row(ROWS, metric)["name"] == name


def test_ranges_run_from_worst_to_best():
    found = runner.worst_and_best_values(ROWS)
    assert found["mauve"] == (0.3, 0.9)
    assert found["self_bleu"] == (0.9, 0.1)


def test_regret_by_hand():
    chosen = {metric.name: runner.best_row(ROWS, metric.name) for metric in METRICS}
    rows = runner.metric_regret(chosen, runner.worst_and_best_values(ROWS))
    at = {(each["by"], each["metric"]): each for each in rows}
    assert len(rows) == len(METRICS) ** 2
    assert all(at[name, name]["regret"] == 0 for name in chosen)
    # The wild text is 0.6 of a range of 0.6 worse in divergence, the real-like one 0.2 of 0.8 worse
    # in distinct-2, and an eighth worse in self-BLEU.
    assert at["distinct_2", "mauve"]["regret"] == pytest.approx(1.0)
    assert at["mauve", "distinct_2"]["regret"] == pytest.approx(0.25)
    assert at["mauve", "self_bleu"]["regret"] == pytest.approx(0.125)
    assert at["distinct_2", "mauve"]["clear"]
    assert not at["distinct_2", "self_bleu"]["clear"]
    # Where a metric has the same value everywhere, nothing can be lost.
    assert at["scorer_bits_per_byte", "novelty"]["regret"] == 0


def test_a_choice_that_turns_out_better_than_the_metric_s_own_is_below_zero():
    chosen = {metric.name: ROWS[0] for metric in METRICS}
    chosen["mauve"] = row("flattered", mauve=0.7)
    rows = runner.metric_regret(chosen, runner.worst_and_best_values(ROWS))
    at = {(each["by"], each["metric"]): each["regret"] for each in rows}
    assert at["novelty", "mauve"] == pytest.approx(-1 / 3)
