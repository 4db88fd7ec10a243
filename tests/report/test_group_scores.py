"""The table of scores by group: a column per group, or the ends of many."""

from fm.report.group_scores import MAX_COLUMNS, group_tables
from fm.report.pages import render_report
from fm.report.parsing import parse

from . import helpers_results


def results(groups):
    content = helpers_results.results()
    content["group_scores"] = [
        {
            **{"task": "reviews", "arm": "scratch", "num_labels": n, "group": name, "items": 10},
            **{"value": value, "low": value - 0.1, "high": value + 0.1},
        }
        for n in (64, 16)
        for name, value in groups.items()
    ]
    content["tasks"][0]["item_group"] = "source"
    return parse(content)


def test_a_column_per_group():
    found = results({"imdb": 0.75, "rotten": 0.625})
    (table,) = group_tables(found)
    assert table.columns == ["imdb (10 items)", "rotten (10 items)"] and not table.named
    assert [num_labels for _, num_labels, _ in table.rows] == [16, 64]
    assert [cell.value for cell in table.rows[0][2]] == [0.75, 0.625]
    page = render_report(found, [])
    assert "imdb (10 items)" in page and "by source" in page and "62.5" in page


def test_of_many_groups_the_ends_and_the_middle():
    values = {f"voice {n}": n / 10 for n in range(MAX_COLUMNS + 1)}
    (table,) = group_tables(results(values))
    assert table.named and len(table.columns) == 3
    assert [cell.group for cell in table.rows[0][2]] == ["voice 0", "voice 3", "voice 6"]


def test_no_groups_no_table():
    assert group_tables(parse(helpers_results.results())) == []
