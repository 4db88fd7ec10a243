import pytest

from fm.benchmark import report
from fm.benchmark.core import ResultRow, as_json


def rows(*ratios, **fields):
    base = {"median_seconds": 0.5, "peer": "torch", "peer_implementation": "eager"}
    return [
        as_json(ResultRow("step", f"case {n}", "float32", "fm", ratio=ratio, **base, **fields))
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
        "roof": {},
        "rows": found,
        "scaling": [],
    }


def test_the_summary_has_median_least_and_most():
    (line,) = report.summarize_ratios([*rows(0.5, 2.0, 1.0), *rows(None)])
    assert (line["median"], line["least"], line["most"], line["cases"]) == (1.0, 0.5, 2.0, 3)
    assert (line["peer"], line["way"]) == ("torch", "eager")


def test_what_comes_from_a_row_is_escaped():
    text = report.render_html(results(rows(1.0, note="<script>x</script>")), {})
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_a_busy_machine_is_said():
    assert "do not trust" in report.render_html(results(rows(1.0), load=1.5), {})
    assert "do not trust" not in report.render_html(results(rows(1.0), load=0.2), {})


@pytest.mark.parametrize(
    ("spread", "verdict"),
    [((1.1, 2), "better"), ((0.5, 0.9), "worse"), ((0.9, 1.1), "unclear"), ((2, 2), "unclear")],
)
def test_a_ratio_is_coloured_only_where_its_middle_half_is_on_one_side(spread, verdict):
    assert report.significance(spread) == verdict
    assert report.significance(None) == "unknown"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (report.format_seconds(3.14e-5), "31.4 µs"),
        (report.format_seconds(1.24), "1.24 s"),
        (report.format_seconds(2e-9), "2 ns"),
        (report.format_bytes(3 * 2**20), "3 MiB"),
        (report.format_bytes(12), "12 B"),
        (report.format_ratio(1.524), "×1.52"),
        (report.format_ratio(152.4), "×152"),
        (report.format_rate(752.145), "752 "),
        (report.format_rate(None), "–"),
    ],
)
def test_numbers_as_a_person_reads_them(text, expected):
    assert text == expected
