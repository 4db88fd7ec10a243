"""The benchmark page: summary, escaping, number formats."""

import dataclasses

import pytest

from fm.benchmark import report
from fm.benchmark.core import ResultRow


def rows(*ratios, **fields):
    base = {"median_seconds": 0.5, "peer": "torch", "peer_implementation": "eager"}
    return [
        dataclasses.asdict(
            ResultRow("train_step", f"case {n}", "float32", "fm", ratio=ratio, **base, **fields)
        )
        for n, ratio in enumerate(ratios)
    ]


def results(found, load=0.0):
    return {
        "finished": True,
        "command": "python -m experiments.benchmark",
        "config": {"repeats": 3},
        "device": {"kind": "cpu", "platform": "cpu", "cores": 2, "count": 1},
        "versions": {"jax": "0"},
        "xla_flags": "",
        "load_before": load,
        "missing": {},
        "roofline": {},
        "rows": found,
        "scaling": [],
    }


def test_summary_has_median_min_and_max():
    (line,) = report.summarize_ratios([*rows(0.5, 2.0, 1.0), *rows(None)])
    assert (line["median"], line["min"], line["max"], line["cases"]) == (1.0, 0.5, 2.0, 3)
    assert (line["peer"], line["peer_implementation"]) == ("torch", "eager")


def test_rows_are_escaped():
    text = report.render_html(results(rows(1.0, note="<script>x</script>")), {})
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_a_busy_machine_is_reported():
    assert "do not trust" in report.render_html(results(rows(1.0), load=1.5), {})
    assert "do not trust" not in report.render_html(results(rows(1.0), load=0.2), {})


@pytest.mark.parametrize(
    ("spread", "expected"),
    [((1.1, 2), "better"), ((0.5, 0.9), "worse"), ((0.9, 1.1), "unclear"), ((2, 2), "unclear")],
)
def test_a_ratio_is_colored_only_where_its_interquartile_range_excludes_1(spread, expected):
    assert report.ratio_css_class(spread) == expected
    assert report.ratio_css_class(None) == "unknown"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (report.format_si(3.14e-5, "s"), "31.4 µs"),
        (report.format_si(1.2345, "s"), "1.23 s"),
        (report.format_si(2e-9, "s"), "2 ns"),
        (report.format_si(3 * 2**20, "B"), "3.15 MB"),
        (report.format_si(1.5236e9, "FLOP/s"), "1.52 GFLOP/s"),
        (report.format_si(752.145), "752"),
        (report.format_si(None), "–"),
        (report.format_ratio(1.524), "×1.52"),
        (report.format_ratio(152.4), "×152"),
    ],
)
def test_number_formats(text, expected):
    assert text == expected


def test_the_first_line_counts_what_is_clearly_faster():
    found = [
        *rows(2.0, 3.0, ratio_spread=(1.5, 2.5)),
        *rows(0.5, ratio_spread=(0.4, 0.6)),
        *rows(1.0, ratio_spread=(0.9, 1.1)),
    ]
    page = report.render_html(results(found), {})
    assert "Clearly faster than its peers in 2 of 4 comparisons, clearly slower in 1." in page
    (line,) = report.summarize_ratios(found)
    assert (line["faster"], line["slower"]) == (2, 1)


def test_a_quick_run_is_a_smoke_test():
    quick = results(rows(1.0)) | {"config": {"repeats": 3, "scale": "quick"}}
    assert report.SMOKE_TEST in report.render_html(quick, {})
    assert report.text_table(quick).endswith(report.SMOKE_TEST)
    assert report.SMOKE_TEST not in report.render_html(results(rows(1.0)), {})
