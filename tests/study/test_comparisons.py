import numpy as np
import pytest

from fm.evaluation.design import Design
from fm.evaluation.statistics import paired_difference
from fm.study import comparisons
from fm.study.comparisons import BEST_RIVAL, TaskScores, against_every

BUDGETS = (20, 50, 150)
PAIRS = [("in_domain", "scratch"), ("in_domain", "classical"), ("classical", "scratch")]


def task_scores(means, task="fruit", seeds=8, items=60, run=0.02, seed=0, **more):
    """Scores of arms with these means at each label budget, and normal runs, items and error."""
    random = np.random.default_rng(seed)
    easy = 0.3 * random.normal(size=items)
    scores = {
        (arm, num_labels): mean
        + easy
        + run * random.normal(size=(seeds, 1))
        + 0.1 * random.normal(size=(seeds, items))
        for arm, values in means.items()
        for num_labels, mean in zip(BUDGETS, values, strict=True)
    }
    return TaskScores(task, BUDGETS, scores, ("scratch", "classical"), **more)


MEANS = {
    "scratch": (0.5, 0.6, 0.7),
    "in_domain": (0.7, 0.75, 0.8),
    "published": (0.85, 0.85, 0.85),
    "classical": (0.6, 0.7, 0.78),
}


def find(rows, **fields):
    (row,) = (row for row in rows if fields.items() <= row.items())
    return row


def test_a_row_per_pair_and_budget_and_their_mean():
    task = task_scores(MEANS)
    rows = comparisons.comparison_rows([task], {"fruit": PAIRS})
    assert len(rows) == 3 * 4 + 1
    for arm, baseline in PAIRS:
        row = find(rows, arm=arm, baseline=baseline, num_labels=50)
        expected = paired_difference(task.scores[arm, 50], task.scores[baseline, 50])
        assert (row["difference"], row["low"], row["p"]) == (
            expected.difference,
            expected.low,
            expected.p,
        )
        mean = find(rows, arm=arm, baseline=baseline, num_labels=None)
        assert mean["difference"] == pytest.approx(
            np.mean(
                [
                    row["difference"]
                    for row in rows
                    if (row["arm"], row["baseline"]) == (arm, baseline) and row["num_labels"]
                ]
            )
        )
    primary = {(row["arm"], row["baseline"]) for row in rows if row["primary"]}
    assert primary == {("in_domain", each) for each in ("scratch", "classical", BEST_RIVAL)}
    assert all(row["p"] <= row["p_adjusted"] <= 1 for row in rows)
    assert all((row["p"] < 0.05) == (row["low"] > 0 or row["high"] < 0) for row in rows)


def test_best_rival_is_every_rival():
    rows = comparisons.comparison_rows([task_scores(MEANS)], {"fruit": PAIRS})
    best = find(rows, baseline=BEST_RIVAL)
    own = [
        find(rows, arm="in_domain", baseline=each, num_labels=None)
        for each in ("scratch", "classical")
    ]
    assert best["rival"] == "classical"
    assert (best["difference"], best["low"]) == (own[1]["difference"], own[1]["low"])
    assert best["p"] == max(row["p"] for row in own)
    assert best["p_adjusted"] == max(row["p_adjusted"] for row in own) < 0.05


@pytest.mark.parametrize(
    ("lows", "highs", "p", "expected"),
    [
        ((0.1, 0.02), (0.2, 0.1), (0.001, 0.01), (1, 0.01)),
        ((0.1, -0.02), (0.2, 0.1), (0.001, 0.3), (1, 0.3)),
        # Wide and open against one, behind another that is closer: nothing is clear.
        ((-0.1, -0.04), (0.2, 0.01), (0.6, 0.2), (0, 0.6)),
        # One rival is ahead: the largest p, of another, does not hide that.
        ((-0.1, 0.02), (-0.02, 0.1), (0.01, 0.03), (0, 0.01)),
        ((-0.1, -0.02), (-0.02, 0.1), (0.01, 0.3), (0, 0.01)),
    ],
)
def test_intersection_union_never_contradicts_its_interval(lows, highs, p, expected):
    rows = [
        {"low": low, "high": high, "p": each, "p_adjusted": each, "baseline": n}
        for n, (low, high, each) in enumerate(zip(lows, highs, p, strict=True))
    ]
    found = against_every(rows)
    assert (found["rival"], found["p"]) == expected
    assert (found["p"] < 0.05) == (found["low"] > 0 or found["high"] < 0)


def test_checkpoints_are_the_design_of_pretrained_arms_only():
    checkpoints = [0, 1, 2, 3] * 2
    task = task_scores(MEANS, checkpoints={"in_domain": checkpoints})
    rows = comparisons.comparison_rows([task], {"fruit": PAIRS})
    pretrained = find(rows, arm="in_domain", baseline="scratch", num_labels=20)
    expected = paired_difference(
        *(task.scores[arm, 20] for arm in ("in_domain", "scratch")), design=Design(checkpoints)
    )
    assert (pretrained["low"], pretrained["checkpoints"]) == (expected.low, 4)
    assert find(rows, arm="classical", baseline="scratch", num_labels=20)["checkpoints"] == 1


def test_groups_of_items_enter_every_row():
    task = task_scores(MEANS, groups=(np.arange(60) % 10).tolist())
    rows = comparisons.comparison_rows([task], {"fruit": PAIRS})
    assert {row["groups"] for row in rows} == {10}
    assert comparisons.learning_curve_rows(task)[0]


def test_one_seed_compares_nothing():
    task = task_scores(MEANS, seeds=1)
    sections = comparisons.study_sections([task], {"fruit": PAIRS}, [])
    assert [sections[name] for name in ("comparisons", "learning_curves", "crossings")] == [[]] * 3
    assert [row["best_arm"] for row in sections["decisions"]] == ["published"] * 3
    assert comparisons.label_multiplier_rows(task, {}) == []


def test_unclear_rows_say_what_would_decide_them():
    means = {"scratch": (0.5,) * 3, "in_domain": (0.51, 0.515, 0.6), "classical": (0.5,) * 3}
    rows = comparisons.comparison_rows([task_scores(means, run=0.05)], {"fruit": PAIRS})
    decided = [row for row in rows if row["p_adjusted"] < 0.05 or row["p_equivalence"] < 0.05]
    unclear = [row for row in rows if row not in decided]
    assert decided and any(row["seeds_to_decide"] for row in unclear)
    assert all(row["seeds_to_decide"] is row["items_to_decide"] is None for row in decided)
    assert all(row["detectable"] > row["standard_error"] for row in rows)


def test_label_multipliers_against_every_rival():
    rows = comparisons.label_multiplier_rows(task_scores(MEANS), {("in_domain", 150): 40})
    assert {(row["arm"], row["rival"]) for row in rows} == {
        *(("in_domain", rival) for rival in ("scratch", "classical")),
        *(("published", rival) for rival in ("scratch", "classical")),
        ("classical", "scratch"),
    }
    last = find(rows, arm="in_domain", rival="scratch", num_labels=150)
    assert (last["censored"], last["label_multiplier"], last["high"]) == ("above", 1, None)
    assert last["steps_to_scratch_quality"] == 40
    hard, easy = (
        find(rows, arm="in_domain", rival=each, num_labels=20) for each in ("classical", "scratch")
    )
    assert hard["label_multiplier"] < easy["label_multiplier"]
    assert easy["steps_to_scratch_quality"] is None


def decide(means, still_improving=(), **more):
    task = task_scores(means, **more)
    pairs = [(arm, rival) for arm in means for rival in task.rivals if arm not in task.rivals]
    efficiency = comparisons.label_multiplier_rows(task, {})
    sections = comparisons.study_sections(
        [task], {"fruit": pairs}, efficiency, still_improving={"fruit": still_improving}
    )
    return task, sections["decisions"]


def test_decisions_are_over_all_arms():
    task, rows = decide(MEANS)
    first = rows[0]
    assert [row["num_labels"] for row in rows] == list(BUDGETS)
    assert first["best_value"] == first["published_value"] == task.scores["published", 20].mean()
    assert (first["best_arm"], first["best_pretrained"], first["best_rival"]) == (
        "published",
        "in_domain",
        "classical",
    )
    assert (first["verdict"], first["rival"]) == ("pretrain", "classical")
    assert first["low"] > 0 and first["p_adjusted"] < 0.05
    saved = first["label_multiplier"]
    assert first["smallest_multiplier"] == saved["classical"]["value"]
    assert rows[-1]["label_multiplier"]["classical"]["value"] is None
    assert rows[-1]["label_multiplier"]["classical"]["bound"] == 1
    assert rows[-1]["smallest_multiplier"] is None


def test_every_published_arm_is_left_out_of_the_best_pretrained():
    means = MEANS | {"encoder": (0.9, 0.9, 0.9)}
    task = task_scores(means)
    for published, best, value in (
        (("published", "encoder"), "in_domain", "encoder"),
        (("published",), "encoder", "published"),
    ):
        sections = comparisons.study_sections([task], {"fruit": PAIRS}, [], published=published)
        row = sections["decisions"][0]
        assert row["best_pretrained"] == best
        assert row["published_value"] == task.scores[value, 20].mean()


@pytest.mark.parametrize(
    ("own", "still_improving", "verdict"),
    [
        (0.7, (), "pretrain"),
        (0.7, [("scratch", 20)], "still improving"),
        (0.7, [("in_domain", 20), ("classical", 50)], "pretrain"),
        (0.6, (), "no clear difference"),
        (0.55, (), "do not"),
        (0.55, [("classical", 20)], "do not"),
        (0.55, [("in_domain", 20)], "still improving"),
    ],
)
def test_verdicts(own, still_improving, verdict):
    means = {"scratch": (0.5, 0.6, 0.7), "classical": (0.6, 0.7, 0.8)}
    rows = decide(means | {"in_domain": (own, 0.8, 0.9)}, still_improving, run=0.005)[1]
    assert rows[0]["verdict"] == verdict


def test_where_curves_cross():
    means = {
        "scratch": (0.5, 0.6, 0.7),
        "in_domain": (0.7, 0.72, 0.74),
        "classical": (0.4, 0.6, 0.9),
    }
    curves, crossings = comparisons.learning_curve_rows(task_scores(means))
    assert [row["arm"] for row in curves] == list(means)
    assert all({"asymptote", "scale", "exponent"} <= row.keys() for row in curves)
    by_rival = {row["rival"]: row for row in crossings}
    assert list(by_rival) == ["scratch", "classical", BEST_RIVAL]
    assert by_rival["scratch"]["status"] == "ahead to the end"
    assert by_rival["classical"]["status"] == by_rival[BEST_RIVAL]["status"] == "crosses"
    assert 50 < by_rival[BEST_RIVAL]["labels"] < 150
