"""A report is rebuilt from any study's results, and never replaced by one that shows nothing."""

import json

import pytest

from tests.report import helpers_results
from tests.report.test_text_quality import results as text_quality_results

assert text_quality_results  # a fixture


@pytest.fixture
def rebuilt(call, tmp_path):
    """Calls `report` on results where a page and a table lie already; returns both with it."""

    def rebuild(results):
        for name in ("report.html", "table.csv"):
            (tmp_path / name).write_text("as it was")
        (tmp_path / "results.json").write_text(json.dumps(results))
        done = call("report", f"--out={tmp_path}")
        return done, *((tmp_path / name).read_text() for name in ("report.html", "table.csv"))

    return rebuild


@pytest.mark.slow
def test_a_comparison(rebuilt):
    done, page, table = rebuilt(helpers_results.results())
    assert done.code == 0 and "Handwritten digits" in page
    assert len(table.splitlines()) > 3


@pytest.mark.slow
def test_a_text_quality_study(rebuilt, request):
    results = request.getfixturevalue("text_quality_results")
    done, page, table = rebuilt(results | {"experiment": "text_quality"})
    assert done.code == 0, done.err
    assert "MAUVE-style area" in done.out and "MAUVE-style area" in page
    assert len(table.splitlines()) > 50


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        ({"schema": 2, "experiment": "text_quality"}, "is not consistent"),
        ({"schema": 2, "experiment": "text_quality", "domains": [], "samples": 3}, "consistent"),
        ({"schema": 2, "experiment": "attention"}, "experiment 'attention': holds no cells"),
        ({"schema": 2, "models": [{"arm": "A"}], "samples": []}, "holds no cells"),
        ({"schema": 1}, "holds no cells"),
    ],
)
def test_a_report_stays_where_another_would_show_nothing(rebuilt, results, reason):
    done, *files = rebuilt(results)
    assert done.code == 2 and reason in done.error and "results.json" in done.error
    assert files == ["as it was", "as it was"]
