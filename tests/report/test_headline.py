"""Decisions and claims: stated from the intervals alone, a loss as plainly as a win."""

import msgspec
import pytest

from fm.errors import UserError
from fm.report import headline
from fm.report.headline import findings, outcome
from fm.report.schema import Comparison, parse

from . import helpers_results


def results_of(*comparisons, data_noun="text", **more):
    names = ("scratch", "in_domain", "out_of_domain", "classical")
    return {
        "schema": 2,
        "arms": [helpers_results.arm(name) for name in names],
        "tasks": [{"name": "reviews", "title": "Film reviews", "data_noun": data_noun}],
        "comparisons": list(comparisons),
    } | more


def row(difference, low, high, num_labels=64, arm="in_domain", baseline="scratch", task="reviews"):
    return {
        "task": task,
        "num_labels": num_labels,
        "arm": arm,
        "baseline": baseline,
        "difference": difference,
        "low": low,
        "high": high,
    }


def test_a_win_is_stated_with_the_figure_at_the_fewest_labels():
    wins = [row(0.2, 0.1, 0.3, num_labels=400), row(0.123, 0.091, 0.152, num_labels=64)]
    assert headline(results_of(*wins)) == (
        "Film reviews: worth it at every number of labels tried. Pretraining on your own "
        "unlabeled text is worth it at 64 and 400 labels (+12.3 points at 64 labels, 95% interval "
        "9.1 to 15.2, against training from scratch)."
    )


def test_a_loss_is_stated_as_plainly():
    losses = [row(-0.031, -0.05, -0.012), row(-0.02, -0.04, -0.001, num_labels=400)]
    assert headline(results_of(*losses, data_noun="images")) == (
        "Film reviews: not worth it. Pretraining on your own unlabeled images at 64 and 400 "
        "labels: worse than training from scratch (-3.1 points at 64 labels, 95% interval -5.0 to "
        "-1.2)."
    )


def test_no_difference_is_not_a_win():
    text = headline(results_of(row(0.05, -0.01, 0.11)))
    assert text.startswith("Film reviews: no clear advantage.")
    assert "at 64 labels: no clear difference to training from scratch (+5.0 points" in text


def test_each_outcome_is_quoted_at_its_fewest_labels():
    rows = [
        row(0.1, 0.05, 0.15, num_labels=64),
        row(0.12, 0.08, 0.16, num_labels=128),
        row(0.11, 0.08, 0.16, num_labels=256),
        row(0.01, -0.02, 0.04, num_labels=512),
        row(-0.03, -0.05, -0.01, num_labels=1024),
    ]
    (finding,) = findings(parse(results_of(*rows)))
    assert finding.decision == "worth it with few labels"
    assert "is worth it at 64 to 256 labels (+10.0 points at 64 labels" in finding.sentences[0]
    assert finding.sentences[1:] == (
        "At 512 labels: no clear difference to training from scratch (+1.0, −2.0 to 4.0).",
        "At 1,024 labels: worse than training from scratch (−3.0, −5.0 to −1.0).",
    )


@pytest.mark.parametrize(
    ("gains", "decision"),
    [
        ((0, 0, 1), "worth it with many labels"),
        ((0, 1, 0), "worth it in part"),
        ((0, -1, 0), "not worth it"),
        ((0, 0, 0), "no clear advantage"),
        ((1,), "worth it"),
    ],
)
def test_decisions(gains, decision):
    rows = [row(g, g - 0.1, g + 0.1, num_labels=10 * 4**n) for n, g in enumerate(gains)]
    (finding,) = findings(parse(results_of(*rows)))
    assert finding.decision == decision


def test_a_win_over_scratch_does_not_hide_a_loss_to_classical():
    text = headline(results_of(row(0.1, 0.05, 0.15), row(-0.1, -0.2, -0.05, baseline="classical")))
    assert "not worth it" in text
    assert "better than training from scratch (+10.0" in text
    assert ", worse than the classical baseline (-10.0, -20.0 to -5.0)" in text


def test_equal_outcomes_share_their_words():
    text = headline(results_of(row(0.1, -0.05, 0.15), row(-0.1, -0.2, 0.05, baseline="classical")))
    assert "no clear difference to training from scratch (+10.0 points, 95% interval" in text
    assert ") or the classical baseline (-10.0, -20.0 to 5.0)." in text


def test_other_pretrained_arms_are_named_too():
    text = headline(results_of(row(0.1, 0.05, 0.15), row(-0.1, -0.2, -0.05, arm="out_of_domain")))
    assert text.endswith(
        "Pretraining on other text: worse than training from scratch at 64 labels."
    )


def test_an_arm_nobody_described_is_reported_all_the_same():
    rows = [row(0.1, 0.05, 0.15, arm=arm) for arm in ("in_domain", "out_of_domain", "distilled")]
    text = headline(results_of(*rows))
    assert "Pretraining on other text and arm distilled: better than training from scratch" in text


def test_without_a_pretrained_arm_it_says_so():
    text = headline(results_of(row(0.1, 0.05, 0.15, arm="classical")))
    assert text.startswith("Film reviews: no pretrained arm was compared. The classical baseline")
    assert "better than training from scratch" in text and "worth" not in text


def test_one_seed_claims_nothing():
    text = headline(results_of(row(0.1, None, None)))
    assert "no intervals, so no decision" in text
    assert "no interval against training from scratch" in text
    assert "better" not in text


def test_nothing_compared():
    assert headline({"schema": 2}) == "Nothing was compared, so there is nothing to conclude."


def test_every_task_has_an_ascii_line():
    lines = headline(helpers_results.results()).splitlines()
    assert all(line.isascii() for line in lines)
    assert [line.split(":")[0] for line in lines] == ["Film reviews", "Handwritten digits"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.01, 0.2, "better"), (-0.2, -0.01, "worse"), (-0.1, 0.1, "unclear"), (0.0, 0.1, "unclear")],
)
def test_outcome_is_the_side_of_zero(low, high, expected):
    assert outcome(msgspec.convert(row(0.0, low, high), Comparison)) == expected


@pytest.mark.parametrize("bad", [{"schema": 3}, {}, [], {"schema": 2, "comparisons": "many"}])
def test_another_schema_is_refused(bad):
    with pytest.raises(UserError):
        headline(bad)


NAMES = ("reviews", "digits", "words")


def claims():
    ends = {"joint": (0.1, 0.01, -0.05), "instruction_tuned": (-0.015, -0.021, 0.0)}
    rows = [
        row(value, value - 0.02, value + 0.02, 30, arm, baseline, task)
        for arm, baseline in (("joint", "scratch"), ("instruction_tuned", "joint"))
        for task, value in zip(NAMES, ends[arm], strict=True)
    ]
    return {
        "schema": 2,
        "experiment": "multitask",
        "arms": [helpers_results.arm(name) for name in ("scratch", "joint", "instruction_tuned")],
        "claims": [
            {"arm": "joint", "baseline": "scratch", "text": "joint pretraining against scratch"},
            {"arm": "instruction_tuned", "baseline": "joint", "text": "one network", "margin": 2.0},
            {"arm": "joint", "baseline": "classical", "text": "never compared"},
        ],
        "comparisons": rows,
    }


def test_a_claim_counts_tasks_and_names_those_it_fails_on():
    joint, instructed = findings(parse(claims()))
    assert joint.decision == "ahead on some tasks, behind on others"
    assert joint.sentences == (
        "At 30 labels ahead on 1 of 3 tasks, behind on 1 (words), +2.0 points on average.",
    )
    assert "behind on 1 (digits), within 2 points or better on 2, −1.2" in instructed.sentences[0]
    assert instructed.decision == "ahead on no task, behind on some"


def test_claims_make_the_headline():
    text = headline(claims())
    assert text.startswith("Joint pretraining against scratch: ahead on some tasks") and (
        text.isascii()
    )
    assert "Nothing was compared" in headline(claims() | {"comparisons": []})
