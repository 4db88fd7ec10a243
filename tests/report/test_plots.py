import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from fm.report import cost_plots, curve_plots, difference_plots, formats, multitask_plots, style
from fm.report.decisions import outcome
from fm.report.parsing import parse
from fm.report.summary import summarize

from . import helpers_results
from .helpers_multitask import multitask_results

pytestmark = pytest.mark.filterwarnings("error:constrained_layout not applied")


@pytest.fixture(scope="module")
def results():
    return parse(helpers_results.results())


def test_accuracy_draws_the_means_and_chance(results):
    axes = curve_plots.accuracy(results, "reviews").axes[0]
    scratch = next(line for line in axes.lines if line.get_color() == "#000000")
    np.testing.assert_array_equal(scratch.get_xdata(), helpers_results.BUDGETS)
    cells = [
        row.value
        for row in results.cells
        if (row.task, row.arm, row.num_labels) == ("reviews", "scratch", 64)
    ]
    assert scratch.get_ydata()[0] == pytest.approx(100 * np.mean(cells))
    assert axes.get_xscale() == "log"
    assert "most frequent class" in [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(
    ("rate", "level", "name"),
    [
        (None, 50, "chance"),
        (0.51, 51, "chance"),
        (0.86, 86, "most frequent class"),
        (0.3, 50, "chance"),
        (0.54, 54, "chance"),
    ],
)
def test_chance_is_what_the_most_frequent_class_gives(rate, level, name):
    content = helpers_results.results()
    for task in content["tasks"]:
        task["majority_rate"] = rate
    axes = curve_plots.accuracy(parse(content), "reviews").axes[0]
    (line,) = (line for line in axes.lines if line.get_linestyle() == ":")
    assert line.get_ydata()[0] == pytest.approx(level)
    assert name in [text.get_text() for text in axes.texts]


def test_forest_colors_follow_the_outcomes(results):
    axes = difference_plots.forest(results, "digits", "out_of_domain").axes[0]
    colors = [line.get_color() for line in axes.lines if line.get_marker() == "D"]
    rows = [row for row in results.comparisons if row.task == "digits"]
    losses = [row for row in rows if row.arm == "out_of_domain" and outcome(row) == "worse"]
    assert losses and colors == [style.WORSE] * len(losses)


def test_headings_of_a_forest_are_lines_of_their_own_and_wrapped():
    content = helpers_results.results()
    name = "classical, optimizer.schedule.warmup_fraction=0.03125"
    for row in content["comparisons"]:
        row["baseline"] = {"classical": name}.get(row["baseline"], row["baseline"])
    figure = difference_plots.forest(parse(content), "digits", "out_of_domain")
    axes = figure.axes[0]
    bold = {text.xy[1]: text.get_text() for text in axes.texts if text.get_fontweight() == "bold"}
    lines = [bold[place] for place in sorted(bold)]
    long = [line for line in lines if "scratch" not in line and "unlabeled" not in line]
    assert len(long) == 2 and "".join(long) == f"against {name}"
    rows = [line.get_ydata()[0] for line in axes.lines if line.get_marker() in ("o", "D")]
    assert not set(rows) & set(bold) and sorted([*rows, *bold]) == list(
        range(len(rows) + len(bold))
    )
    # A name in the axis's label takes no room from the axes.
    widths = []
    for arm in ("out_of_domain", "out_of_domain, optimizer.schedule.warmup_fraction=0.03125"):
        text = json.dumps(content).replace('"out_of_domain"', f'"{arm}"')
        figure = difference_plots.forest(parse(json.loads(text)), "digits", arm)
        style.to_png(figure)
        widths.append(figure.axes[0].get_position().width)
        ends = figure.get_tightbbox()
        assert ends.x0 >= 0 and ends.x1 <= style.WIDTH
    assert widths[0] == pytest.approx(widths[1], abs=1e-3) and widths[0] > 0.3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("short", "short"),
        ("in_domain, mask_ratio=0.5", "in_domain,\nmask_ratio=0.5"),
        ("a" * 20, "a" * 15 + "\n" + "a" * 5),
        ("pretrained_on_everything, ratio=0.5", "pretrained_on_\n…ing, ratio=0.5"),
    ],
)
def test_wrapped_names(text, expected):
    assert style.wrap(text, 15) == expected


@given(st.text("ab ,_.=\t", max_size=80), st.integers(2, 20), st.integers(1, 3))
def test_wrapped_lines_fit(text, width, max_lines):
    lines = style.wrap(text, width, max_lines).split("\n")
    assert len(lines) <= max_lines and all(len(line) <= width for line in lines)
    if "…" not in "".join(lines):
        assert "".join(lines).replace(" ", "") == "".join(text.split())


def test_long_names_go_into_a_legend_below(results):
    assert not curve_plots.accuracy(results, "reviews").legends
    text = json.dumps(helpers_results.results())
    long = "in_domain, optimizer.schedule=0.5"
    named = parse(json.loads(text.replace('"in_domain"', f'"{long}"')))
    figure = curve_plots.accuracy(named, "reviews")
    (legend,) = figure.legends
    assert long in [each.get_text() for each in legend.get_texts()]
    assert figure.get_figheight() > curve_plots.accuracy(results, "reviews").get_figheight()


def test_a_difference_that_the_correction_leaves_open_is_hollow():
    content = helpers_results.results()
    for row in content["comparisons"]:
        row["p_adjusted"] = 0.2
    axes = difference_plots.forest(parse(content), "digits", "out_of_domain").axes[0]
    marked = [line for line in axes.lines if line.get_marker() in ("o", "D")]
    assert marked and all(line.get_markerfacecolor() == "white" for line in marked)


def test_fitted_curves_are_the_power_laws_and_show_where_they_cross(results):
    axes = curve_plots.learning_curves(results, "reviews").axes[0]
    color = results.arm("in_domain").color
    curve = next(line for line in axes.lines if len(line.get_xdata()) == 100)
    assert curve.get_color() == color
    assert curve.get_ydata()[-1] == pytest.approx(100 * (1 - 0.6 * 400**-0.25))
    assert axes.texts[0].get_text() == "310" and axes.patches
    assert not curve_plots.learning_curves(results, "digits").axes[0].patches


def test_nothing_to_draw_is_none():
    empty = parse({"schema": 2})
    assert curve_plots.accuracy(empty, "x") is None
    assert difference_plots.forest(empty, "x", "scratch") is None
    assert curve_plots.multipliers(empty, "x", "in_domain") is None
    assert curve_plots.learning_curves(empty, "x") is None
    assert cost_plots.cpu_seconds(empty, "x") is None
    assert cost_plots.pretraining(empty, "x", "loss") is None
    ablation = parse(multitask_results()).ablations[0]
    ablation.rows = []
    assert multitask_plots.ablation_difference_grid(empty, ablation, 30) is None
    assert not [
        figure for *_, figure in multitask_plots.ablation_figures(empty, ablation) if figure
    ]


def test_lines_that_are_all_alike_keep_their_scale():
    content = helpers_results.results()
    for row in content["cells"]:
        row["value"] = 1.0
    figure = curve_plots.accuracy(parse(content), "reviews")
    axes = figure.axes[0]
    before = axes.get_ylim()
    style.to_png(figure)
    assert axes.get_ylim() == before and 85 < before[0] < 91 and 100 < before[1] < 101


def test_end_labels_do_not_overlap():
    arms = parse({"schema": 2, "cells": [{"arm": name} for name in "abc"]}).arms
    with style.plot_style():
        axes = style.new_figure(3.5).add_subplot()
        axes.set_ylim(0, 100)
        style.label_line_ends(axes, list(zip((90.0, 90.1, 89.9), arms, strict=True)), 2.7)
    heights = sorted(text.xy[1] for text in axes.texts)
    assert np.diff(heights).min() >= 100 * (12 / 72) / 2.7 - 1e-9
    order = sorted(axes.texts, key=lambda text: text.xy[1])
    assert [text.get_text() for text in order] == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("difference", "color"), [(0.2, style.BETTER), (-0.2, style.WORSE), (0.01, "#ececec")]
)
def test_a_loss_has_its_own_color(difference, color):
    row = parse(multitask_results()).ablations[0].rows[0]
    row.difference, row.low, row.high = difference, difference - 0.03, difference + 0.03
    figure = difference_plots.difference_grid(["text"], ["digits"], {("text", "digits"): row})
    (patch,) = figure.axes[0].patches
    own, wanted = patch.get_facecolor()[:3], to_rgb(color)
    # As the color, if paler.
    extremes = [(each.index(max(each)), each.index(min(each))) for each in (own, wanted)]
    assert extremes[0] == extremes[1]
    assert (own == wanted) == (color == "#ececec")


def test_a_grid_without_differences_is_no_figure():
    row = parse(multitask_results()).ablations[0].rows[0]
    assert row.difference is None
    assert difference_plots.difference_grid(["a"], ["b"], {("a", "b"): row}) is None


def test_an_ablation_grid_has_a_line_a_variant_and_a_modality_s_tasks_side_by_side():
    results = parse(multitask_results())
    axes = multitask_plots.ablation_difference_grid(results, results.ablations[0], 30).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["text", "image", "all"]
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert names == ["Film_reviews", "Topics", "Digits"] and len(axes.patches) == 9


def test_a_variant_of_the_mixture_is_named_by_modality_and_factor():
    results = parse(multitask_results())
    axes = multitask_plots.ablation_difference_grid(results, results.ablations[1], 30).axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["text 0.25x", "text 4x", "image 4x"]


def decided(rival, difference, low, high):
    """Results whose decision on the reviews at 64 labels is quoted against another rival."""
    content = helpers_results.results()
    (row,) = (
        row for row in content["decisions"] if (row["task"], row["num_labels"]) == ("reviews", 64)
    )
    row |= {"rival": rival, "difference": difference, "low": low, "high": high}
    row |= {"p_adjusted": 0.9, "verdict": "no clear difference"}
    return content, row


def drawn(figure):
    """Returns (heading, text of the row) of a forest plot, downwards."""
    texts = sorted(figure.axes[0].texts, key=lambda text: text.xy[1])
    heading, found = "", []
    for text in texts:
        if text.get_fontweight() == "bold":
            heading = text.get_text()
        else:
            found.append((heading, text.get_text()))
    return found


@pytest.mark.parametrize("rival", ["classical", "classical_unlabeled", "scratch"])
def test_the_first_plot_shows_the_rival_that_the_scores_name(rival):
    content, row = decided(rival, 0.132, -0.02, 0.28)
    results = parse(content)
    sentence = summarize(results, "reviews").scores.split("; ")[0].split(". ")[0]
    assert "best without pretraining" in sentence and f"({row['best_rival']})" in sentence
    (against,) = (
        each
        for each in content["comparisons"]
        if (each["task"], each["num_labels"], each["arm"], each["baseline"])
        == ("reviews", 64, row["best_pretrained"], row["best_rival"])
    )
    shown = drawn(difference_plots.decision_forest(results, "reviews"))
    best = [text for heading, text in shown if heading.endswith("best without pretraining")]
    other = [text for heading, text in shown if heading.endswith(f"{rival}, hardest to beat")]
    quoted = "+13.2 [\N{MINUS SIGN}2.0 to 28.0]"
    if rival == row["best_rival"]:
        assert quoted in best and not other
        return
    assert formats.points(against["difference"]) in " ".join(best) and quoted not in best
    # The reference has rows of its own.
    assert other == ([] if rival == "scratch" else [quoted])
