import csv
import io

import pytest
from scipy import stats

from fm.report import tables, text_table
from fm.report.parsing import parse

from . import helpers_results
from .helpers_multitask import multitask_results


def test_mean_and_t_interval_over_seeds():
    values = [0.5, 0.6, 0.7]
    cells = [
        {"task": "x", "arm": "in_domain", "num_labels": 64, "seed": seed, "value": value}
        for seed, value in enumerate(values)
    ]
    (mean,) = tables.seed_means(parse({"schema": 2, "cells": cells}), "x")["in_domain"]
    low, high = stats.t.interval(0.95, 2, loc=0.6, scale=stats.sem(values))
    assert (mean.mean, mean.low, mean.high) == pytest.approx((0.6, low, high), abs=1e-12)
    assert mean.seeds == 3
    assert tables.seed_mean(64, [0.5]) == tables.SeedMean(64, 0.5, None, None, 1)


def test_text_table_has_a_line_for_each_comparison_and_fits_a_terminal():
    results = helpers_results.results()
    lines = text_table(results).splitlines()
    assert len(lines) == 2 + len(results["comparisons"])
    assert max(map(len, lines)) <= 100
    assert "in_domain − scratch" in lines[2] and lines[2].endswith("improving")
    assert "128" in lines[3] and lines[3].endswith("better")
    assert sum(line.split()[1] == "all" for line in lines[2:]) == len(results["comparisons"]) / 5


def test_text_table_cuts_long_names_and_never_moves_the_cursor():
    results = helpers_results.results()
    for row in results["comparisons"]:
        row |= {"task": "a\x1b[2J\nvery " * 20, "arm": "an arm of many words " * 5}
        row |= {"num_labels": 1_000_000_000}
    lines = text_table(results).splitlines()
    assert len(lines) == 2 + len(results["comparisons"])
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in "".join(lines)


def test_no_outcome_is_cut_off_the_text_table():
    results = helpers_results.results()
    for row in results["comparisons"]:
        row |= {"task": "spoken_words", "arm": "in_domain_with_classical"}
        row |= {"baseline": "classical_unlabeled", "num_labels": 1_000, "detectable": 1.2}
        row |= {"difference": -0.345, "low": -1.142, "high": -0.976, "p_adjusted": 0.0001}
    lines = text_table(results).splitlines()
    assert all(line.endswith("worse") and ">100" in line for line in lines[2:])


def test_text_table_without_comparisons():
    assert text_table({"schema": 2}) == "No comparisons."


def test_csv_keeps_every_comparison_unrounded():
    results = helpers_results.results()
    rows = list(csv.DictReader(io.StringIO(tables.comparisons_csv(parse(results)))))
    assert len(rows) == len(results["comparisons"])
    key = ("task", "arm", "baseline")
    wanted = {(*(r[k] for k in key), r["num_labels"]): r for r in results["comparisons"]}
    for row in rows:
        labels = int(row["num_labels"]) if row["num_labels"] else None
        source = wanted[*(row[k] for k in key), labels]
        for name in ("difference", "low", "p_adjusted", "p_equivalence", "detectable"):
            assert float(row[name]) == source[name]
        assert float(row["run_variance"]) == source["variance"]["run"]
        assert float(row["item_variance"]) == source["variance"]["item"]


def test_scores_stand_beside_accuracy_and_only_where_they_were_measured():
    table = tables.score_table(parse(helpers_results.results()), "reviews")
    assert table["columns"] == ["accuracy", "balanced accuracy", "macro-F1", "NLL, nats", "ECE"]
    labels, rows = table["groups"][0]
    arm, mean, others = rows[0]
    assert (labels, arm, len(others)) == (64, "scratch", 4)
    assert others[0] == f"{100 * mean.mean - 1:.1f}%" and others[3] == "4.0%"
    old = tables.score_table(parse(helpers_results.old_results()), "reviews")
    assert old["columns"] == ["accuracy"]


def test_cost_is_by_one_clock_with_what_is_done_once_apart():
    rows = tables.cost_rows(parse(helpers_results.results()), "reviews")
    cpu = {each["row"].arm: each["cpu"] for each in rows}
    assert cpu["in_domain"] == {
        "pretrain_cpu_seconds": 262.0,
        "adapt_cpu_seconds": 31.0,
        "compile_seconds": pytest.approx(6.1),
        "feature_cpu_seconds": 3.0,
    }
    assert cpu["classical"]["adapt_cpu_seconds"] == 8.5
    assert cpu["classical"]["feature_cpu_seconds"] is None


@pytest.mark.parametrize("content", [helpers_results.results, helpers_results.old_results])
def test_a_decision_has_a_row_with_the_scores_it_is_between(content):
    rows = tables.decision_table(parse(content()), "reviews")
    assert [each["row"].num_labels for each in rows] == list(helpers_results.BUDGETS)
    first = rows[0]
    assert first["row"].best_pretrained == "in_domain"
    assert first["row"].best_rival == "classical_unlabeled"
    gap = first["own_value"] - first["rival_value"]
    assert first["row"].difference == pytest.approx(gap)
    assert first["verdict"] == "pretrain" and first["row"].published_value


def test_amortized_cost_is_of_the_fewest_labels_and_of_what_was_recorded():
    table = tables.amortized_cost_table(parse(multitask_results()))
    assert table["num_labels"] == 30 and table["counts"] == [1, 2, 3]
    assert [words for words, _ in table["groups"]] == ["computing", "time"]
    assert table["groups"][0][1][0] == ("scratch", ["30 GFLOP", "60 GFLOP", "90 GFLOP"])


def test_break_even_says_where_it_ends_and_who_never_gets_there():
    first, second = tables.break_even_rows(parse(multitask_results()))
    assert first["cells"] == ["from 37 tasks", "only up to 2"] and first["compared"] == "2 of 3"
    assert first["note"] == "scratch never gets there on Film_reviews"
    assert set(second["cells"]) == {"–"} and second["compared"] == "0 of 3"


def test_wordings_of_an_instruction_stand_side_by_side():
    rows = [
        {"task": "reviews", "condition": "held out", "metric": "accuracy", "value": 0.8},
        {"task": "reviews", "condition": "swapped", "metric": "accuracy", "value": 0.4},
    ]
    (only,) = tables.instruction_following_rows(parse({"schema": 2, "instruction_following": rows}))
    assert [cell and cell.value for cell in only["cells"]] == [0.8, None, None, 0.4]
