"""What a page opens with: decision, saturation, banner, cost, next step; and that it fits."""

import base64
import io
import re

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from fm.report import curve_plots, pages, style, text_quality
from fm.report.contact_sheet import contact_sheet
from fm.report.headline import SMOKE_TEST
from fm.report.pages import render_report
from fm.report.parsing import parse
from fm.report.records import Sample
from fm.report.saturation import saturated_budgets, saturation_sentence
from fm.report.summary import summarize

from . import helpers_results
from .helpers_browser import layout
from .helpers_multitask import multitask_results
from .test_headline import row, study

MINUS = "\N{MINUS SIGN}"
BUDGETS = (20, 100, 400)
VALUES = {"in_domain": 0.7, "classical_unlabeled": 0.6}


def summary(*comparisons, values=VALUES, budgets=BUDGETS, **more):
    return summarize(parse(study(*comparisons, values=values, budgets=budgets, **more)), "reviews")


def rows(*differences, **more):
    return [
        row(value, value - 0.02, value + 0.02, number, **more)
        for value, number in zip(differences, BUDGETS, strict=False)
    ]


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        (
            (0.1, 0.1, 0.1),
            "Pretrain on your own unlabeled text: it is ahead of everything without pretraining at "
            "every number of labels (20 to 400).",
        ),
        ((0.1, 0.0, 0.0), "without pretraining at 20 labels; no clear difference at 100 and 400 l"),
        ((0.0, -0.1, -0.1), "Do not pretrain: it is behind the best without pretraining at 100 an"),
        ((0.1, 0.0, -0.1), "It depends on the number of labels: pretraining on your own unlabeled"),
        ((0.0, 0.0, 0.0), "Pretraining is not shown to pay: no clear difference from the best wit"),
    ],
)
def test_the_decision_is_one_sentence_over_all_numbers_of_labels(differences, words):
    found = summary(*rows(*differences))
    assert words in found.decision
    assert "With 400 labels: in_domain 70.0%, best without pretraining 60.0%" in found.scores


def test_the_declared_mean_decides_where_no_single_number_of_labels_does():
    primary = row(0.03, 0.01, 0.05, None, baseline="best rival", primary=True)
    found = summary(*rows(0.0, 0.0, 0.0), primary)
    assert "in the mean over all numbers of labels it is ahead of" in found.decision
    assert "by +3.0 [1.0, 5.0] points; at no single number of labels" in found.decision
    assert found.next_step.startswith("Pretrain on your own unlabeled text")
    lost = row(-0.03, -0.05, -0.01, None, baseline="best rival", primary=True)
    found = summary(*rows(0.0, 0.0, 0.0), lost)
    assert found.decision.startswith("Do not pretrain") and f"by {MINUS}3.0" in found.decision
    assert found.next_step.startswith("Use the classical baseline with unlabeled text")


def test_what_would_decide_is_the_next_step_where_nothing_is_decided():
    found = summary(*rows(0.0, 0.0, 0.0, seeds_to_decide=24, seeds=8))
    assert found.next_step == (
        "To decide it takes about so many more seeds (now 8): 24 at 20 labels, 24 at 100 labels "
        "and 24 at 400 labels. Until it is decided, use the classical baseline with unlabeled text."
    )


def test_cost_explains_the_break_even():
    costs = [
        {"task": "reviews", "arm": "in_domain", "pretrain_cpu_seconds": 150.0}
        | {"adapt_cpu_seconds": 5.0, "break_even_tasks": 9},
        {"task": "reviews", "arm": "classical_unlabeled", "adapt_cpu_seconds": 2.0},
    ]
    found = summary(*rows(0.1, 0.1, 0.1), compute_cost=costs)
    assert found.cost == (
        "Pretraining takes 2.5 min of CPU time, once. in_domain takes 5 s for each set of labels. "
        "classical_unlabeled takes 2 s for each set of labels. Break-even, the number of tasks "
        "from which one shared pretrained model is cheaper than a network from scratch for each: 9."
    )


CEILING = {"in_domain": 0.99, "classical_unlabeled": 0.985, "scratch": 0.98}
FLOOR = {"in_domain": 0.02, "classical_unlabeled": 0.07, "scratch": 0.01}


def test_a_task_at_the_ceiling_says_so_and_is_not_blown_up():
    results = parse(study(*rows(0.005, 0.005, 0.005), values=CEILING, budgets=BUDGETS))
    found = summarize(results, "reviews")
    assert found.decision == (
        "This task cannot tell the arms apart: all are at the ceiling (accuracy 98.0% to 99.0%)."
    )
    assert "fewer labels" in found.next_step
    low, high = curve_plots.accuracy(results, "reviews").axes[0].get_ylim()
    assert low == 80 and 100 < high < 101
    assert "cannot tell the arms apart" in render_report(results, [])


def test_a_clear_difference_at_the_ceiling_stands():
    results = parse(study(row(0.015, 0.01, 0.02), values=CEILING))
    assert not saturated_budgets(results, "reviews")


def test_a_task_that_no_arm_has_learned_says_so():
    content = study(*rows(-0.05, -0.05, -0.05), values=FLOOR, budgets=BUDGETS)
    content["tasks"][0]["metric"] = "entity F1"
    results = parse(content)
    found = summarize(results, "reviews")
    assert found.decision == (
        "This task cannot tell the arms apart: none has learned it (entity F1 1.0% to 7.0%)."
    )
    low, high = curve_plots.accuracy(results, "reviews").axes[0].get_ylim()
    assert -1 < low < 0 and high == 20


def test_accuracy_is_at_the_floor_where_it_is_at_chance():
    content = study(values={"in_domain": 0.52, "scratch": 0.49})
    content["tasks"][0] |= {"classes": ["a", "b"], "metric": "accuracy"}
    assert "none has learned it (accuracy 49.0% to 52.0%)" in saturation_sentence(
        parse(content), "reviews"
    )
    content["cells"][0]["value"] = 0.7
    assert not saturated_budgets(parse(content), "reviews")


def test_some_numbers_of_labels_at_the_ceiling_are_a_caution():
    content = study(*rows(0.0, 0.0, 0.0), values=CEILING, budgets=BUDGETS)
    for cell in content["cells"]:
        cell["value"] -= 0.3 * (cell["num_labels"] == 20)
    page = render_report(parse(content), [])
    assert (
        "This task cannot tell the arms apart there: all are at the ceiling at 100 and 400 labels"
        in page
    )
    assert "not shown to pay" in page


def test_a_smoke_test_has_a_banner():
    content = helpers_results.results()
    assert "Smoke test" not in render_report(parse(content), [])
    content["config"]["smoke_test"] = True
    page = render_report(parse(content), [])
    assert page.index(SMOKE_TEST) < page.index('<p class="decision">')
    assert "without --profile=quick" in page


def test_the_first_screen_has_both_plots_and_what_is_folded_comes_below():
    results = parse(helpers_results.results())
    figures = [
        pages.RenderedFigure(section, "reviews", f"{section}.png", section, section, b"")
        for section in ("accuracy", "decision")
    ]
    page = render_report(results, figures)
    screen = page[page.index('id="finding-1"') : page.index('id="finding-2"')]
    assert screen.count("<figure>") == 2 and page.count("<figure>") == 2
    shown, _, folded = screen.partition("<details>")
    for words in ("Cost", "How sure", "Next step", "(networks pretrained separately)"):
        assert words in shown
    assert "<table" not in shown and "<table" in folded


def test_near_duplicate_columns_say_what_they_count():
    page = render_report(parse(helpers_results.results()), [])
    for words in ("test items searched for", "test items with a near-dup", "pretraining items rem"):
        assert words in page
    assert "pairs checked" not in page


def variants():
    content = helpers_results.results()
    cells = [cell for cell in content["cells"] if cell["arm"] == "in_domain"]
    content["cells"] = [
        cell | {"arm": f"in_domain, steps={steps}"} for cell in cells for steps in (1, 2)
    ]
    content["arms"] = [
        helpers_results.arm("in_domain") | {"name": f"in_domain, steps={steps}"} for steps in (1, 2)
    ]
    content |= {"experiment": "ablate steps", "comparisons": [], "decisions": []}
    return parse(content)


def test_a_setting_has_its_own_question_and_its_variants_colors_of_their_own():
    results = variants()
    assert "What does steps change?" in render_report(results, [])
    first, second = (arm.color for arm in results.arms if arm.name.startswith("in_domain, "))
    assert first != second


def picture(*levels):
    out = io.BytesIO()
    Image.fromarray(np.array(levels, np.uint8).reshape(2, -1)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def test_generated_pictures_are_one_enlarged_sheet_without_smoothing():
    png = picture(0, 255, 0, 255)
    samples = [Sample(arm="joint", png=png, caption=f"asked for {n}") for n in range(3)]
    samples += [Sample(arm="joint", png=png, gif="R0lG"), Sample(arm="joint", png="bm8=")]
    samples += [Sample(arm="joint", text="words")]
    figure = contact_sheet(samples)
    assert len(figure.axes) == 3
    assert {text.get_text().replace("\n", " ") for text in figure.texts} == {
        "joint",
        *(f"asked for {n}" for n in range(3)),
    }
    pixels = np.asarray(Image.open(io.BytesIO(style.to_png(figure, 256))).convert("L"))
    box = figure.axes[0].get_window_extent()
    height = pixels.shape[0]
    own = pixels[int(height - box.y1) + 3 : int(height - box.y0) - 3, int(box.x0) + 3 : int(box.x1)]
    assert own.shape[0] > 100 and set(np.unique(own)) == {0, 255}
    assert contact_sheet([Sample(arm="joint", text="words")]) is None


def test_arms_that_share_a_model_share_their_pictures():
    png = picture(1, 2, 3, 4)
    figure = contact_sheet([Sample(arm=arm, png=png, caption="unprompted") for arm in "ab"])
    assert len(figure.axes) == 1 and figure.texts[0].get_text() == "a, b, unprompted"


@pytest.mark.slow
@pytest.mark.parametrize("content", [helpers_results.results, multitask_results])
def test_no_type_is_too_small_for_a_phone(content):
    for section, *_, figure in pages._figures(parse(content())):
        if figure is not None:
            sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]
            assert min(sizes, default=style.SMALL) >= style.SMALL, section


def test_every_table_can_scroll():
    for content in (helpers_results.results(), multitask_results()):
        page = render_report(parse(content), [])
        tables = page.count("<table")
        assert tables == len(re.findall(r'<div class="scroll" tabindex="0"><table', page))
    assert ".scroll {\n  overflow-x: auto;" in page


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200, 1300])
def test_nothing_is_wider_than_its_window(tmp_path, width):
    results = helpers_results.results()
    for page in (
        pages.write(results, tmp_path).read_text(),
        render_report(parse(multitask_results()), []),
    ):
        found = layout(page, width, tmp_path, ".scroll:has(.decisions)")
        assert found["page"] <= found["window"] <= width
        assert max(found["beyond"], default=0) <= 0, "the decision table scrolls"


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_a_long_name_of_the_hardest_rival_fits(tmp_path, width):
    results = helpers_results.results()
    for decision in results["decisions"]:
        decision["rival"] = "scratch_compute_matched"
    page = pages.write(results, tmp_path).read_text()
    assert page.count("from scratch_<wbr>compute_<wbr>matched") == len(results["decisions"])
    found = layout(page, width, tmp_path, ".scroll:has(.decisions)")
    assert found["page"] <= found["window"] <= width
    assert max(found["beyond"], default=0) <= 0, "the decision table scrolls"


def test_text_quality_has_the_banner_too():
    config = {"smoke_test": True, "training_sets": {}}
    assert text_quality.headline({"config": config, "domains": [], "selections": []}).startswith(
        SMOKE_TEST
    )
