"""The words, table and page of a paired comparison."""

import csv
import io

import pytest

from fm.report import paired
from fm.report.formats import to_ascii
from tests.report.helpers_paired import ROWS, VERDICTS, results, row


def test_words_follow_the_adjusted_p_and_the_equivalence_test():
    assert {each["arm"]: paired.verdict(each) for each in ROWS} == VERDICTS
    # The interval excludes zero, but not after adjusting for all comparisons.
    assert paired.verdict(row("open", 0.03, 0.02, 0.06)) == "unclear"


def test_every_outcome_is_said_with_its_figures():
    lines = paired.headline(results()).splitlines()
    assert lines[0] == (
        "better is better than base: +5.0 points of accuracy, 95% interval 3.0 to 7.0, p below "
        "0.001, adjusted for 6 comparisons 0.001."
    )
    assert lines[1].startswith("worse is worse than base: −5.0 points")
    assert lines[2].startswith("equal and base are equivalent within 1 point: +0.1 points")
    assert lines[3].startswith("small is better than base, but by less than 1 point: +0.6 points")
    assert (
        "is 2.1 points. If the difference is as large as found, 12 more seeds or 4,100" in lines[4]
    )
    assert "Neither more seeds alone nor more items alone" in lines[5]
    assert lines[6].endswith("1,200 test items and new runs, judged by 5 seeds.")


def test_one_run_says_what_it_does_not_cover():
    given = results(rows=[row("open", 0.01, 0.03, 0.4, seeds=1, p=0.4)], seeds=1)
    text = paired.headline(given)
    assert "p 0.400. The smallest" in text and "adjusted" not in text
    assert "Even 100 times as many items" in text
    assert "One run of each: intervals cover the choice of the 1,200 test items only." in text


def test_the_table_fits_a_terminal():
    table = paired.text_table(results())
    assert "−5.0" in table and to_ascii(table).isascii()
    assert max(map(len, table.splitlines())) <= 100
    assert "80.0%" in table and "balanced accuracy" in table and "NLL" not in table
    scored = paired.text_table(results(paired.SCORE))
    assert "12.35" in scored and "balanced" not in scored and "+0.05 " in scored


def test_the_csv_is_not_rounded():
    rows = list(csv.DictReader(io.StringIO(paired.comparisons_csv(results()))))
    assert [each["verdict"] for each in rows][:4] == [
        "better",
        "worse",
        "equivalent",
        "better, small",
    ]
    assert float(rows[4]["detectable"]) == 0.0213 and rows[4]["items_to_decide"] == "4100"
    assert rows[0]["seeds_to_decide"] == ""


@pytest.mark.parametrize("metric", ["accuracy", paired.SCORE])
@pytest.mark.parametrize("margin", [0.01, None])
def test_the_page_holds_every_comparison(tmp_path, metric, margin):
    given = results(metric)
    given["config"]["margin"] = margin
    if margin is None:
        given["comparisons"] = [
            each | {"margin": None, "p_equivalence": None} for each in given["comparisons"]
        ]
    page = paired.write(given, tmp_path)
    html = page.read_text(encoding="utf-8")
    assert page == tmp_path / "report.html"
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [
        "differences.png", "report.html", "table.csv",
    ]  # fmt: skip
    assert "&lt;b&gt;hopeless&lt;/b&gt;" in html and "<b>hopeless" not in html
    assert html.count("− base</td>") == 2 * len(ROWS)
    assert ("equivalence p" in html) == (margin is not None)
    assert "a.csv: columns not used: note." in html
