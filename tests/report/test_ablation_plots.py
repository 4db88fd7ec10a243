"""The plots of ablations of whole studies, read back from what is drawn."""

import numpy as np
import pytest

from fm.report import ablation_plots
from fm.report.parsing import parse

from . import helpers_results

TERMS = [
    {"axis": "parameters"},
    {"axis": "tokens", "center": 100.0, "scale": 0.2, "exponent": 0.5, "low": 0.1, "high": 0.9},
    {"axis": "labels", "center": 10.0, "scale": 0.1, "exponent": 1.0, "low": 0.5, "high": 1.5},
]


def drawn(kind, field, rows):
    """The axes of an ablation's only figure."""
    content = helpers_results.results()
    given = {"task": "reviews", "value": 0.7, "values": [0.6, 0.8], "low": -0.02, "high": 0.08}
    content["mine"] = [given | row for row in rows]
    content["ablations"] = [
        {"name": "mine", "title": "Mine", "figure": {"kind": kind, "field": field}}
    ]
    content["scaling_fits"] = [{"task": "reviews", "floor": 0.05, "terms": TERMS}]
    results = parse(content)
    found = ablation_plots.config_ablation_figures(results, results.ablations[0])
    if found is None:
        return None
    ((_, figure),) = found
    return figure.axes[0]


def test_a_curve_is_sorted_by_level_with_intervals():
    rows = [
        {"share": share, "num_labels": n, "difference": share / 10}
        for share in (1.0, 0.25, 0.5)
        for n in (16, 64)
    ]
    axes = drawn("difference_curve", "share", rows)
    curves = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert len(curves) == 2
    for line in curves:
        np.testing.assert_allclose(line.get_ydata(), [2.5, 5.0, 10.0])
    bounds = [line for line in axes.lines if list(line.get_ydata()) == [-2.0, 8.0]]
    assert len(bounds) == 6


def test_a_forest_names_levels_and_their_data():
    rows = [
        {"kept": kept, "num_labels": 16, "difference": 0.05} | more
        for kept, more in (
            ("far", {"datasets": {"reviews": "docs"}, "characters": 2000, "low": 0.01}),
            ("none", {"low": -0.2, "high": -0.1, "difference": -0.15}),
        )
    ]
    axes = drawn("forest", "kept", rows)
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["16 labels", "16 labels"]
    assert list(axes.get_yticks()) == [1, 3]
    headings = [text for text in axes.texts if text.get_fontweight() == "bold"]
    assert [(text.get_text(), text.xy[1]) for text in headings] == [
        ("far: docs, 2k characters", 0),
        ("none", 2),
    ]
    markers = [line.get_marker() for line in axes.lines if line.get_marker() in "oD"]
    assert markers == ["o", "D"]


def test_a_surface_draws_the_fit_through_its_range():
    rows = [
        {"size": "one", "num_labels": 10, "parameters": 7, "tokens": tokens, "value": value}
        for tokens, value in ((100, 0.65), (10_000, 0.8))
    ]
    axes = drawn("surface", "size", rows)
    points, fit = (next(line for line in axes.lines if len(line.get_xdata()) == n) for n in (2, 30))
    np.testing.assert_allclose(points.get_ydata(), [35.0, 20.0])
    # 0.05 + 0.2 (D / 100)^-0.5 + 0.1
    np.testing.assert_allclose(fit.get_ydata()[[0, -1]], [35.0, 17.0])


@pytest.mark.parametrize("kind", ["grid", "curve"])
def test_other_kinds_are_left_to_others(kind):
    assert drawn(kind, "share", []) is None
