import csv
import io

import pytest
from scipy import stats

from fm.report import tables, text_table
from fm.report.schema import parse

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
    assert "in_domain - scratch" in lines[2] and "better" in lines[2]


def test_text_table_cuts_long_names_and_never_moves_the_cursor():
    results = helpers_results.results()
    for row in results["comparisons"]:
        row |= {"task": "a\x1b[2J\nvery " * 20, "arm": "an arm of many words " * 5}
        row |= {"num_labels": 1_000_000_000}
    lines = text_table(results).splitlines()
    assert len(lines) == 2 + len(results["comparisons"])
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in "".join(lines)


def test_text_table_without_comparisons():
    assert text_table({"schema": 2}) == "No comparisons."


def test_csv_keeps_every_comparison_unrounded():
    results = helpers_results.results()
    rows = list(csv.DictReader(io.StringIO(tables.comparisons_csv(parse(results)))))
    assert len(rows) == len(results["comparisons"])
    key = ("task", "arm", "baseline")
    wanted = {(*(r[k] for k in key), r["num_labels"]): r for r in results["comparisons"]}
    for row in rows:
        source = wanted[*(row[k] for k in key), int(row["num_labels"])]
        for name in ("difference", "low", "p_adjusted"):
            assert float(row[name]) == source[name]
        assert float(row["run_variance"]) == source["variance"]["run"]
        assert float(row["item_variance"]) == source["variance"]["item"]


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
