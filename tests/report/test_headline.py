"""What to do at each number of labels; words from the interval and the adjusted p together."""

import re

import msgspec
import pytest

from fm.errors import UserError
from fm.report import headline
from fm.report.decisions import (
    decision_outcome,
    decisions,
    label_multiplier,
    outcome,
    outcome_words,
)
from fm.report.formats import to_ascii
from fm.report.headline import SMOKE_TEST, findings, scored_before
from fm.report.parsing import parse
from fm.report.records import Comparison

from . import helpers_results
from .helpers_results import arm

MINUS = "\N{MINUS SIGN}"
REVIEWS = {
    "in_domain": 0.612,
    "published": 0.629,
    "classical": 0.57,
    "classical_unlabeled": 0.601,
}


def row(
    difference, low, high, num_labels=20, own="in_domain", baseline="classical_unlabeled", **kw
):
    place = {"task": kw.pop("task", "reviews"), "num_labels": num_labels}
    return place | {
        "arm": own,
        "baseline": baseline,
        "difference": difference,
        "low": low,
        "high": high,
        "p_adjusted": 0.01,
        "checkpoints": 1,
        **kw,
    }


def study(*comparisons, values=REVIEWS, budgets=(20,), **more):
    cells = [
        {"task": "reviews", "arm": name, "num_labels": number, "seed": seed, "value": value}
        for name, value in values.items()
        for number in budgets
        for seed in (0, 1)
    ]
    return {
        "schema": 2,
        "arms": [arm(name) for name in helpers_results.ARMS],
        "tasks": [{"name": "reviews", "title": "Film reviews", "data_noun": "text", "test": 900}],
        "cells": cells,
        "comparisons": list(comparisons),
    } | more


def test_the_first_sentence_says_what_to_do_over_all_arms():
    text = headline(study(row(0.011, -0.009, 0.031, p_adjusted=0.4, seeds_to_decide=24, seeds=8)))
    assert text == (
        "Film reviews: Start from published weights, the best at 20 labels. Pretraining is not "
        "shown to pay: no clear difference from the best without it at 20 labels.\n"
        "  At 20 labels: start from published weights (62.9%); without them pretrain on your own "
        "unlabeled text (61.2%); best without pretraining: classical_unlabeled (60.1%), no clear "
        f"difference (+1.1 [{MINUS}0.9, 3.1]).\n"
        "  To decide it takes about so many more seeds (now 8): 24 at 20 labels.\n"
        "  Mean accuracy over 2 seeds and 900 test items, for this checkpoint; differences in "
        "points [95% interval]."
    )


def test_every_arm_of_published_data_is_told_apart_from_own_pretraining():
    values = REVIEWS | {"encoder": 0.64}
    arms = [arm(name) for name in helpers_results.ARMS]
    arms.append(arm("published") | {"name": "encoder", "title": "starting from the encoder"})
    content = study(row(0.011, -0.009, 0.031, p_adjusted=0.4), values=values, arms=arms)
    text = headline(content)
    assert "start from the encoder (64.0%); without them pretrain on your own unlab" in text
    given = {"task": "reviews", "num_labels": 20, "best_arm": "encoder", "best_value": 0.64}
    for decided in ([], [given | {"best_pretrained": "encoder", "published_value": 0.64}]):
        (found,) = decisions(parse(content | {"decisions": decided}), "reviews")
        assert (found.best_pretrained, found.published_value) == ("in_domain", 0.64)
    # The same arm, pretrained for this study, is the best that a user would pretrain.
    arms[-1]["pretrained_on"] = "other data"
    assert "without them" not in headline(content)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"in_domain": 0.7},
            "pretrain on your own unlabeled text (70.0%); published weights reach 62.9%; best "
            "without pretraining: classical_unlabeled (60.1%), pretraining is better (",
        ),
        (
            {"classical_unlabeled": 0.65},
            "use the classical baseline with unlabeled text (65.0%); published weights reach "
            "62.9%; pretraining on your own unlabeled text reaches 61.2%, pretraining is better (",
        ),
        (
            {"classical_unlabeled": 0.62},
            "start from published weights (62.9%); without them use the classical baseline with "
            "unlabeled text (62.0%); pretraining on your own unlabeled text reaches 61.2%",
        ),
    ],
)
def test_the_published_weights_and_the_best_rival_are_always_named(values, words):
    text = headline(study(row(0.1, 0.05, 0.15), values=REVIEWS | values))
    assert f"At 20 labels: {words}" in text.splitlines()[1]


def test_a_loss_is_stated_as_plainly():
    values = {"in_domain": 0.57, "classical": 0.601, "published": 0.5}
    text = headline(study(row(-0.031, -0.05, -0.012, baseline="classical"), values=values))
    assert (
        "use the classical baseline (60.1%); published weights reach 50.0%; pretraining on" in text
    )
    assert f"reaches 57.0%, worse ({MINUS}3.1 [{MINUS}5.0, {MINUS}1.2])." in text


INSIDE = {"p_equivalence": 0.01, "margin": 0.01}


@pytest.mark.parametrize(
    ("low", "high", "more", "expected"),
    [
        (0.01, 0.2, {}, "better"),
        (0.01, 0.2, {"p_adjusted": None}, "better"),
        (0.01, 0.2, {"p_adjusted": 0.06}, "unclear"),
        (-0.2, -0.01, {}, "worse"),
        (-0.1, 0.1, {}, "unclear"),
        (0.0, 0.1, {}, "unclear"),
        (0.01, 0.2, {"loser_improving": True}, "still improving"),
        (-0.1, 0.1, {"loser_improving": True}, "unclear"),
        (-0.005, 0.005, INSIDE, "within"),
        (-0.005, 0.005, INSIDE | {"p_equivalence": 0.06}, "unclear"),
        (0.001, 0.005, INSIDE, "better"),
        (None, None, {}, "unknown"),
    ],
)
def test_words_follow_the_interval_and_the_adjusted_p(low, high, more, expected):
    found = msgspec.convert(row(0.0, low, high, **more), Comparison)
    assert outcome(found) == expected
    if expected == "within":
        assert outcome_words(found) == "within the margin of 1 point"


def test_an_interval_without_zero_that_the_correction_leaves_open_says_why():
    text = headline(study(row(0.1, 0.01, 0.19, p_adjusted=0.2)))
    assert "unclear after adjustment (+10.0 [1.0, 19.0], adjusted p 0.200)" in text


@pytest.mark.parametrize(("marked", "beaten"), [((True, True), False), ((False, False), True)])
def test_an_arm_that_was_still_improving_is_never_beaten(marked, beaten):
    results = study(row(0.1, 0.05, 0.15))
    rival = [cell for cell in results["cells"] if cell["arm"] == "classical_unlabeled"]
    for cell, mark in zip(rival, marked, strict=True):
        cell["still_improving"] = mark
    text = headline(results)
    assert ("better" in text) == beaten and ("was still improving (+10.0" in text) != beaten


@pytest.mark.parametrize(
    ("multipliers", "words"),
    [
        ({"scratch": (18.9, None), "classical": (1.7, None)}, ", worth 1.7x as many labels)"),
        ({"scratch": (4.0, "above"), "classical": (3.0, "above")}, ", worth more than 3x as many"),
        ({"scratch": (4.0, None), "classical": (1.0, "above")}, "15.0])."),
        ({"scratch": (4.0, None), "classical": (1.0, "below")}, "15.0])."),
        # The published weights are no rival without pretraining.
        ({"scratch": (4.0, None), "published": (0.5, None)}, ", worth 4x as many labels)"),
    ],
)
def test_the_smallest_label_multiplier_is_quoted(multipliers, words):
    rows = [
        {"task": "reviews", "num_labels": 20, "arm": "in_domain", "rival": rival}
        | {"label_multiplier": value, "censored": censored}
        for rival, (value, censored) in multipliers.items()
    ]
    assert words in headline(study(row(0.1, 0.05, 0.15), label_efficiency=rows))


def test_a_bound_is_a_bound_and_nothing_where_it_says_nothing():
    assert label_multiplier(1.74, None) == "1.7x"
    assert label_multiplier(3.0, "above") == "more than 3x"
    assert {label_multiplier(*each) for each in ((1.0, "above"), (0.4, "below"), (None, None))} == {
        ""
    }


@pytest.mark.parametrize(
    ("crossing", "words"),
    [
        (
            {"status": "crosses", "labels": 231, "low": 120, "high": 390},
            "stops paying at about 231 labels (95% interval 120 to 390), where classical_unlabeled",
        ),
        (
            {"status": "crosses", "labels": 231, "low": None, "high": None},
            "(95% interval fewer than measured to more than 20)",
        ),
        ({"status": "ahead to the end"}, "stays ahead up to 20 labels; where it stops paying is "),
        ({"status": "never ahead"}, "at no number of labels up to 20 ahead of classical_unlabeled"),
        ({"status": "unclear"}, "The fitted curves do not say where pretraining stops paying."),
    ],
)
def test_where_pretraining_stops_paying(crossing, words):
    place = {"task": "reviews", "arm": "in_domain", "rival": "classical_unlabeled"}
    other = place | {"rival": "scratch", "status": "crosses", "labels": 5}
    assert words in headline(study(row(0.1, 0.05, 0.15), crossings=[other, place | crossing]))


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (0, ", scored once;"),
        (1, ", at least 1 configuration had been scored on these items before;"),
        (3, ", at least 3 configurations had been scored on these items before;"),
        ("unknown", ", how often these items had been scored before is unknown;"),
        (None, "for this checkpoint;"),
    ],
)
def test_scored_once_is_said_only_where_it_is_true(before, words):
    results = study(row(0.1, 0.05, 0.15))
    results["tasks"][0]["test_slice"] = {"name": "sealed", "scored_before": before}
    text = headline(results)
    assert words in text and ("once" in text) == (before == 0)


def test_several_checkpoints_are_counted():
    assert "over 8 checkpoints" in headline(study(row(0.1, 0.05, 0.15, checkpoints=8)))


def test_many_budgets_stay_a_few_lines():
    budgets = [10 * 2**n for n in range(9)]
    same = [row(0.1, 0.05, 0.15, num_labels=number) for number in budgets]
    lines = headline(study(*same, budgets=budgets)).splitlines()
    assert len(lines) == 3 and "At 10 to 2,560 labels (figures at 10): start" in lines[1]
    mixed = [
        row(0.1, 0.05 - 0.1 * (n % 2), 0.15, num_labels=number) for n, number in enumerate(budgets)
    ]
    lines = headline(study(*mixed, budgets=budgets)).splitlines()
    assert len(lines) <= 8
    assert lines[1].startswith("  At 10 labels") and "At 2,560 labels" in lines[4]
    assert "Other numbers of labels are in the report's table." in lines[4]


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (
            (0, 1),
            "scored by each of the 2 variants, before which at least 0 and 1 configuration ha",
        ),
        ((0, 1, 2), "each of the 3 variants, before which at least 0, 1 and 2 configurations had"),
        ((0, "unknown"), "how often these items had been scored before is unknown"),
        ((None, None), ""),
        ((0,), "scored once"),
    ],
)
def test_test_items_of_studies_side_by_side(before, words):
    slices = {str(n): {"scored_before": each} for n, each in enumerate(before)}
    task = {"name": "reviews", "test_slice": slices["0"], "variant_test_slices": slices}
    text = scored_before(parse({"schema": 2, "tasks": [task]}), "reviews")
    assert words in text and bool(words) == bool(text)


def test_given_decisions_are_taken_as_they_are():
    given = {
        "task": "reviews",
        "num_labels": 20,
        "best_arm": "published",
        "best_value": 0.7,
        "published_value": 0.7,
        "best_pretrained": "in_domain",
        "best_rival": "classical",
        **{"difference": 0.05, "low": 0.01, "high": 0.09, "p_adjusted": 0.02},
        "verdict": "still improving",
    }
    (found,) = decisions(parse(study(row(0.1, 0.05, 0.15), decisions=[given])), "reviews")
    assert found.best_rival == "classical" and decision_outcome(found) == "still improving"
    # The published weights are not one's own pretraining: that is worked out.
    of_others = given | {"best_pretrained": "published"}
    (found,) = decisions(parse(study(row(0.1, 0.05, 0.15), decisions=[of_others])), "reviews")
    assert (found.best_pretrained, found.difference) == ("in_domain", 0.1)


def test_the_rival_that_is_hardest_to_beat_and_the_primary_comparison_are_named():
    given = {
        "task": "reviews",
        "num_labels": 20,
        **{"best_arm": "in_domain", "best_value": 0.7, "best_pretrained": "in_domain"},
        **{"best_rival": "classical", "rival": "scratch", "verdict": "do not"},
        **{"difference": 0.02, "low": -0.05, "high": 0.09, "p_adjusted": 0.4},
    }
    primary = row(0.03, 0.01, 0.05, None, baseline="best rival", rival="scratch", primary=True)
    crossing = {"task": "reviews", "arm": "in_domain", "rival": "best rival"}
    text = headline(
        study(primary, decisions=[given], crossings=[crossing | {"status": "never ahead"}])
    )
    # The verdict is over all rivals: it may rest on another than the one quoted.
    assert f"worse (+2.0 [{MINUS}5.0, 9.0] against scratch)" in text
    assert "against the best without pretraining, declared as primary: better (+3.0" in text
    assert "up to 20 ahead of the best arm without pretraining." in text
    assert "best rival" not in [each.name for each in parse(study(primary)).arms]


def test_variants_of_an_arm_are_counted_pair_by_pair():
    pair = {"own": "in_domain, steps=2", "baseline": "in_domain, steps=1"}
    rows = [row(0.1, 0.05, 0.15, **pair), row(0.0, -0.1, 0.1, num_labels=50, **pair)]
    assert headline({"schema": 2, "comparisons": rows}) == (
        "Reviews: in_domain with steps=2 instead of 1: better at 20 labels, no clear difference at "
        "50 labels (+10.0 [5.0, 15.0] at 20 labels)."
    )


def test_one_seed_claims_nothing():
    text = headline(study(values={"in_domain": 0.6, "scratch": 0.5}))
    assert "training from scratch" not in text and "scratch (50.0%), no interval (+10.0)" in text
    assert "better" not in text and "one seed decides nothing" in text.casefold()


def test_nothing_compared():
    assert headline({"schema": 2}) == "Nothing was compared, so there is nothing to conclude."


@pytest.mark.parametrize("content", [helpers_results.results, helpers_results.old_results])
def test_every_task_has_a_few_lines_with_real_minus_signs(content):
    text = headline(content())
    assert MINUS in text and not re.search(r"(?<![\w-])-\d", text)
    assert to_ascii(text).isascii() and f"-{text.split(MINUS)[1][:3]}" in to_ascii(text)
    starts = [line.split(":")[0] for line in text.splitlines() if not line.startswith(" ")]
    assert starts == ["Film reviews", "Handwritten digits"]
    assert len(text.splitlines()) <= 14


@pytest.mark.parametrize("bad", [{"schema": 3}, {}, [], {"schema": 2, "comparisons": "many"}])
def test_another_schema_is_refused(bad):
    with pytest.raises(UserError):
        headline(bad)


NAMES = ("reviews", "digits", "words")


def claims():
    ends = {"joint": (0.1, 0.01, -0.05), "instruction_tuned": (-0.001, -0.021, -0.03)}
    rows = [
        row(value, value - 0.02, value + 0.02, 30, own, baseline, task=task)
        for own, baseline in (("joint", "scratch"), ("instruction_tuned", "joint"))
        for task, value in zip(NAMES, ends[own], strict=True)
    ]
    rows[3] |= {"p_equivalence": 0.01, "margin": 0.02}
    rows.append(row(0.1, 0.05, 0.15, None, "joint", "scratch"))  # a mean over budgets
    return {
        "schema": 2,
        "experiment": "multitask",
        "arms": [arm(name) for name in ("scratch", "joint", "instruction_tuned")],
        "claims": [
            {"arm": "joint", "baseline": "scratch", "text": "joint pretraining against scratch"},
            {"arm": "instruction_tuned", "baseline": "joint", "text": "one network", "margin": 2.0},
            {"arm": "joint", "baseline": "classical", "text": "never compared"},
        ],
        "comparisons": rows,
    }


def test_claims_count_tasks_name_every_loss_and_average_nothing():
    assert headline(claims()) == (
        "Joint pretraining against scratch: ahead on some tasks, behind on others.\n"
        "  With 30 labels: ahead on 1 of 3 tasks (Reviews +10.0 points), behind on 1 (Words "
        f"{MINUS}5.0 points); no clear difference on 1.\n"
        "One network: behind on some tasks, clearly ahead on none.\n"
        "  With 30 labels: ahead on none of 3 tasks, behind on 2 (Digits "
        f"{MINUS}2.1, Words {MINUS}3.0 points); within the margin of 2 points on 1."
    )
    assert len(findings(parse(claims()))) == 2
    assert "Nothing was compared" in headline(claims() | {"comparisons": []})


def test_a_smoke_test_says_so_before_anything_else():
    content = study(row(0.1, 0.05, 0.15))
    assert headline(content | {"config": {"smoke_test": True}}).splitlines()[0] == SMOKE_TEST
    # Of variants side by side, each has a config.
    sides = {"0.5": {"smoke_test": True}, "0.75": {"smoke_test": True}}
    assert headline(content | {"config": sides}).startswith("Smoke test, do not quote")
    assert "Smoke test" not in headline(content)


def test_an_ablation_names_the_largest_and_the_smallest_gain():
    rows = [
        row(gain, gain - 0.03, gain + 0.03, number, baseline="scratch") | {"variant": name}
        for number, gains in ((20, (0.1, -0.01, 0.02)), (400, (0.0, 0.01, 0.02)))
        for name, gain in zip(("whole", "half", "none"), gains, strict=True)
    ]
    figure = {"kind": "forest", "field": "variant"}
    text = headline(
        {
            "schema": 2,
            "experiment": "ablate parts",
            "ablations": [{"name": "parts", "title": "Parts", "figure": figure}],
            "parts": rows,
            "cells": [{"task": "reviews", "arm": "in_domain", "num_labels": 20, "value": 0.5}],
        }
    )
    first, second, *_ = text.splitlines()
    assert first == (
        "Reviews: At 20 labels the gain over training from scratch is largest with “whole” (+10.0 "
        f"[7.0, 13.0]) and smallest with “half” ({MINUS}1.0 [{MINUS}4.0, 2.0]); 1 of 3 gains is "
        "clear."
    )
    assert "At 400 labels" in second and "none of 3 gains is clear" in second
