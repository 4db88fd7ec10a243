import csv
import io

from fm.report import text_table
from fm.report.schema import parse
from fm.report.tables import csv_table

from . import synthetic


def test_text_table_has_a_line_for_each_comparison_and_fits_a_terminal():
    results = synthetic.results()
    lines = text_table(results).splitlines()
    assert len(lines) == 2 + len(results["comparisons"])
    assert max(map(len, lines)) <= 100
    assert "self - scratch" in lines[2] and "better" in lines[2]


def test_text_table_cuts_long_names_and_never_moves_the_cursor():
    results = synthetic.results()
    for row in results["comparisons"]:
        row |= {"task": "a\x1b[2J\nvery " * 20, "arm": "an arm of many words " * 5}
        row |= {"labels": 1_000_000_000}
    lines = text_table(results).splitlines()
    assert len(lines) == 2 + len(results["comparisons"])
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in "".join(lines)


def test_text_table_without_comparisons():
    assert text_table({"schema": 1}) == "No comparisons."


def test_csv_keeps_every_comparison_unrounded():
    results = synthetic.results()
    rows = list(csv.DictReader(io.StringIO(csv_table(parse(results)))))
    assert len(rows) == len(results["comparisons"])
    wanted = {(r["task"], r["arm"], r["baseline"], r["labels"]): r for r in results["comparisons"]}
    for row in rows:
        source = wanted[row["task"], row["arm"], row["baseline"], int(row["labels"])]
        assert float(row["difference"]) == source["difference"]
        assert float(row["low"]) == source["low"]
        assert float(row["p_adjusted"]) == source["p_adjusted"]
        assert float(row["run_variance"]) == source["variance"]["run"]
        assert float(row["item_variance"]) == source["variance"]["item"]
