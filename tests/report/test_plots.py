import numpy as np
import pytest

from fm.report import plots, schema, style
from fm.report.schema import parse

from . import synthetic


@pytest.fixture(scope="module")
def results():
    return parse(synthetic.results())


def test_accuracy_draws_the_means_and_chance(results):
    axes = plots.accuracy(results, "reviews").axes[0]
    scratch = next(line for line in axes.lines if line.get_color() == "#000000")
    np.testing.assert_array_equal(scratch.get_xdata(), synthetic.BUDGETS)
    cells = [
        row["value"]
        for row in results["cells"]
        if (row["task"], row["arm"], row["labels"]) == ("reviews", "scratch", 64)
    ]
    assert scratch.get_ydata()[0] == pytest.approx(100 * np.mean(cells))
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.texts if "chance" in text.get_text()] == ["chance"]


def test_forest_colours_follow_the_verdicts(results):
    axes = plots.forest(results, "digits", "classical").axes[0]
    colours = [line.get_color() for line in axes.lines if line.get_marker() == "D"]
    rows = [row for row in results["comparisons"] if row["task"] == "digits"]
    losses = [row for row in rows if row["baseline"] == "classical" and row["high"] < 0]
    assert losses and colours == [schema.WORSE] * len(losses)


def test_nothing_to_draw_is_none():
    empty = parse({"schema": 1})
    assert plots.accuracy(empty, "x") is None
    assert plots.forest(empty, "x", "scratch") is None
    assert plots.multipliers(empty, "x") is None
    assert plots.pretraining(empty, "x", "loss") is None
    assert plots.adaptation(empty, "x") is None


def test_end_labels_do_not_overlap():
    with style.plot_style():
        axes = style.new_figure(3.5).add_subplot()
        axes.set_ylim(0, 100)
        ends = [
            (90.0, schema.describe("a")),
            (90.1, schema.describe("b")),
            (89.9, schema.describe("c")),
        ]
        style.label_line_ends(axes, ends, 2.7)
    heights = sorted(text.xy[1] for text in axes.texts)
    assert np.diff(heights).min() >= 100 * (12 / 72) / 2.7 - 1e-9
    order = sorted(axes.texts, key=lambda text: text.xy[1])
    assert [text.get_text() for text in order] == ["c", "a", "b"]


def test_every_arm_has_its_own_look():
    names = [
        "scratch",
        "in_domain",
        "out_of_domain",
        "joint",
        "instruction_tuned",
        "published",
        "classical",
    ]
    looks = [schema.describe(name) for name in names]
    assert len({arm.color for arm in looks}) == len(names)
    assert schema.WORSE not in {arm.color for arm in looks}
    assert schema.ordered({"zebra", "classical", "in_domain", "scratch"}) == [
        "scratch",
        "in_domain",
        "classical",
        "zebra",
    ]
