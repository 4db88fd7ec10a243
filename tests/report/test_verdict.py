import pytest

from fm.errors import UserError
from fm.report import headline
from fm.report.schema import parse
from fm.report.verdict import outcome

from . import synthetic


def _results(*comparisons, modality="text"):
    cells = [{"task": row["task"], "modality": modality} for row in comparisons]
    return {"schema": 1, "cells": cells, "comparisons": list(comparisons)}


def _row(difference, low, high, labels=64, arm="in_domain", baseline="scratch", task="reviews"):
    return {
        "task": task,
        "labels": labels,
        "arm": arm,
        "baseline": baseline,
        "difference": difference,
        "low": low,
        "high": high,
    }


def test_a_win_is_said_with_the_figure_at_the_fewest_labels():
    wins = [_row(0.2, 0.1, 0.3, labels=400), _row(0.123, 0.091, 0.152, labels=64)]
    assert headline(_results(*wins)) == (
        "Reviews: pretraining on its own unlabelled text beats training from scratch at all "
        "2 budgets (+12.3 points at 64 labels, 95% interval 9.1 to 15.2)."
    )


def test_a_loss_is_said_as_plainly():
    losses = [_row(-0.031, -0.05, -0.012), _row(-0.02, -0.04, -0.001, labels=400)]
    assert headline(_results(*losses, modality="image")) == (
        "Reviews: pretraining on its own unlabelled images does worse than training from scratch "
        "at all 2 budgets (-3.1 points at 64 labels, 95% interval -5.0 to -1.2)."
    )


def test_no_difference_is_not_a_win():
    assert "shows no clear difference to training from scratch at the one budget tried" in headline(
        _results(_row(0.05, -0.01, 0.11))
    )


def test_mixed_outcomes_are_counted_and_both_ends_quoted():
    rows = [
        _row(0.1, 0.05, 0.15, labels=64),
        _row(0.01, -0.02, 0.04, labels=128),
        _row(-0.03, -0.05, -0.01, labels=256),
    ]
    sentence = headline(_results(*rows))
    assert "beats training from scratch at 1 of 3 budgets, does worse at 1 and shows no clear" in (
        sentence
    )
    assert "(+10.0 points at 64 labels, 95% interval 5.0 to 15.0; -3.0 at 256, -5.0 to -1.0)" in (
        sentence
    )


def test_a_win_over_scratch_does_not_hide_a_loss_to_classical():
    sentence = headline(
        _results(_row(0.1, 0.05, 0.15), _row(-0.1, -0.2, -0.05, baseline="classical"))
    )
    assert ", but does worse than the classical baseline at the one budget tried" in sentence


def test_other_pretrained_arms_are_named_too():
    sentence = headline(
        _results(_row(0.1, 0.05, 0.15), _row(-0.1, -0.2, -0.05, arm="out_of_domain"))
    )
    assert sentence.endswith("while pretraining on other text does worse than scratch at the one "
                             "budget tried.")  # fmt: skip


def test_equal_asides_are_told_together():
    rows = [_row(0.1, 0.05, 0.15, arm=arm) for arm in ("in_domain", "out_of_domain", "joint")]
    rows.append(_row(0.1, -0.05, 0.15, arm="published"))
    sentence = headline(_results(*rows))
    assert (
        "while each of upstream and joint beats scratch at the one budget tried, and " in sentence
    )
    assert "starting from published weights shows no clear difference to scratch" in sentence


def test_without_a_pretrained_arm_it_says_so():
    sentence = headline(_results(_row(0.1, 0.05, 0.15, arm="classical")))
    assert sentence.startswith("Reviews: the classical baseline beats training from scratch")
    assert sentence.endswith("and no pretrained arm was compared.")


def test_one_seed_claims_nothing():
    sentence = headline(_results(_row(0.1, None, None)))
    assert "has no interval against training from scratch" in sentence
    assert "beats" not in sentence


def test_nothing_compared():
    assert headline({"schema": 1}) == "Nothing was compared, so there is nothing to conclude."


def test_tasks_share_one_ascii_sentence():
    sentence = headline(synthetic.results())
    assert sentence.isascii()
    assert sentence.startswith("Reviews: ")
    assert "; digits: " in sentence


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.01, 0.2, "better"), (-0.2, -0.01, "worse"), (-0.1, 0.1, "unclear"), (0.0, 0.1, "unclear")],
)
def test_verdict_is_the_side_of_zero(low, high, expected):
    row = parse(_results(_row(0.0, low, high)))["comparisons"][0]
    assert outcome(row) == expected


@pytest.mark.parametrize("bad", [{"schema": 2}, {}, [], {"schema": 1, "comparisons": "many"}])
def test_another_schema_is_refused(bad):
    with pytest.raises(UserError):
        headline(bad)
