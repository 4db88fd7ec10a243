"""The bill and the studies of other pretraining on the page."""

import pytest
from matplotlib.colors import to_rgb

from fm.report import plots, schema, tables
from fm.report.pages import render_figures, render_report
from fm.report.plots import difference_grid
from fm.report.schema import parse

TASKS = {"film_reviews": "text", "digits": "image", "topics": "text"}


def studied(task, difference, labels=30, **changes):
    measured = {"difference": difference, "low": None, "high": None, "p": None}
    if difference is not None:
        measured |= {"low": difference - 0.03, "high": difference + 0.03, "p": 0.01}
    place = {"task": task, "modality": TASKS[task], "labels": labels, "metric": "accuracy"}
    return place | measured | {"value": 0.5, "values": [0.4, 0.6]} | changes


def results():
    shares = {"text": 0.8, "image": 0.2}
    return {
        "schema": 1,
        "experiment": "unify",
        "tasks": [{"name": name, "modality": each} for name, each in TASKS.items()],
        "matrix": [
            studied(task, gain, source=source)
            for task in TASKS
            for source, gain in (("nothing", None), ("text", 0.1), ("image", -0.2), ("all", 0.0))
        ],
        "mixture": [
            studied(task, None if name is None else 0.02, format=name, factor=by, shares=shares)
            for task in TASKS
            for name, by in ((None, 1.0), ("text", 0.25), ("text", 4.0), ("image", 4.0))
        ],
        "amount": [studied(task, 0.1, share=share) for task in TASKS for share in (0, 0.25, 1.0)],
        "bill": [
            {"way": way, "labels": labels, "tasks": count, "flops": cost * count * labels,
             "seconds": 1.0 * count, "parameters": None}
            for way, cost in (("scratch", 1e9), ("joint", 2e9))
            for labels in (30, 100)
            for count in (1, 2, 3)
        ],
        "break_even": [
            {"way": "joint", "against": "scratch", "tasks": ["digits", "topics"], "flops": 37,
             "seconds": None, "seconds_until": 2,
             "never": [{"task": "film_reviews", "way": "scratch"}]},
            {"way": "in_domain", "against": "scratch", "tasks": [], "never": []},
        ],
    }  # fmt: skip


def test_the_bill_is_of_the_fewest_labels_and_of_what_was_recorded():
    found = parse(results())
    table = tables.amortized_cost_table(found)
    assert table["labels"] == 30 and table["counts"] == [1, 2, 3]
    assert [words for words, _ in table["groups"]] == ["computing", "time"]
    assert table["groups"][0][1][0] == ("scratch", ["30.0 GFLOP", "60.0 GFLOP", "90.0 GFLOP"])


def test_break_even_says_where_it_ends_and_who_never_gets_there():
    first, second = tables.break_even_rows(parse(results()))
    assert first["cells"] == ["from 37 tasks", "only up to 2"] and first["compared"] == "2 of 3"
    assert first["note"] == "scratch never gets there on Film_reviews"
    assert set(second["cells"]) == {"–"} and second["compared"] == "0 of 3"


@pytest.mark.parametrize(
    ("difference", "colour"), [(0.2, schema.BETTER), (-0.2, schema.WORSE), (0.01, "#ececec")]
)
def test_a_loss_has_its_own_colour(difference, colour):
    row = studied("digits", difference)
    drawn = difference_grid(["text"], ["digits"], {("text", "digits"): row})
    (patch,) = drawn.axes[0].patches
    own, wanted = patch.get_facecolor()[:3], to_rgb(colour)
    # As the colour, if paler.
    assert (own.index(max(own)), own.index(min(own))) == (
        wanted.index(max(wanted)), wanted.index(min(wanted))
    )  # fmt: skip
    assert (own == wanted) == (colour == "#ececec")


def test_nothing_to_compare_is_no_figure():
    assert difference_grid(["a"], ["b"], {("a", "b"): studied("digits", None)}) is None
    assert plots.transfer_matrix(parse({"schema": 1}), 30) is None
    assert not [
        figure for *_, figure in plots.pretraining_variant_figures(parse({"schema": 1})) if figure
    ]


def test_the_matrix_has_a_line_a_source_and_tasks_of_a_format_side_by_side():
    axes = plots.transfer_matrix(parse(results()), 30).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["text", "image", "all"]
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert names == ["Film_reviews", "Topics", "Digits"] and len(axes.patches) == 9


def test_each_is_on_the_page():
    found = parse(results())
    drawings = render_figures(found)
    assert [each.section for each in drawings] == [
        "bill", "bill", "matrix", "mixture", "mixture", "amount"
    ]  # fmt: skip
    page = render_report(found, drawings)
    for words in ("The bill for K tasks", "from 37 tasks", "Other pretraining", "How vast must"):
        assert words in page
    plain = render_report(parse({"schema": 1, "experiment": "compare"}), [])
    assert "The bill" not in plain and "Other pretraining" not in plain
