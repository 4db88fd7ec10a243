import ast
import base64
import copy
import errno
import html.parser
import json
import lzma
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fm.report
from fm.errors import UserError
from fm.report import pages, style, write
from fm.report.pages import render_report
from fm.report.parsing import parse

from . import helpers_results
from .helpers_multitask import multitask_results

# A figure whose labels leave no room for its axes.
pytestmark = pytest.mark.filterwarnings("error:constrained_layout not applied")

SECTIONS = (
    *("finding", "arms", "accuracy", "differences", "multiplier", "curves"),
    *("cost", "methods", "mistakes", "samples", "data", "method", "configuration"),
)
EXTRAS = {
    "tasks": "descriptions of the data",
    "curves": "pretraining curves",
    "samples": "samples",
    "mistakes": "mistakes",
    "methods": "methods side by side",
    "label_efficiency": "label multipliers",
    "compute_cost": "costs",
    "decontamination": "search for test items in pretraining data",
}


class _Tags(html.parser.HTMLParser):
    """Collects every tag with its attributes, and all text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def _without_plots(results):
    """The text of the page alone: drawing takes most of the time."""
    return _Tags(render_report(parse(results), [])).text


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves out the drawing, which takes most of the time, where no picture is looked at."""
    monkeypatch.setattr(style, "to_png", lambda figure, levels=16: b"PNG")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "compare"
    return write(helpers_results.results(), out)


@pytest.fixture(scope="module")
def page(written):
    return _Tags(written.read_text(encoding="utf-8"))


def test_the_files(written):
    assert written.name == "report.html"
    plots = sorted((written.parent / "plots").iterdir())
    assert {plot.stem.split("-")[-1 - plot.stem[-1].isdigit()] for plot in plots} == {
        *("reviews", "digits")
    }
    # Accuracy, differences of the decision, fitted curves, in_domain and other arms, multipliers,
    # cost, pretraining; and pictures of digits.
    assert len(plots) == 7 * 2 + (3 + 2) + 1
    assert all(plot.read_bytes().startswith(b"\x89PNG") for plot in plots)
    assert max(plot.stat().st_size for plot in plots) < 100_000
    assert (written.parent / "table.csv").exists()
    assert not list(written.parent.rglob("*.partial"))


def test_every_section_is_there_and_reachable(page):
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert set(SECTIONS) <= ids
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links and all(link[0] == "#" and link[1:] in ids for link in links)
    assert "This run recorded no" not in page.text


def test_text_from_data_is_text(page):
    assert not [tag for tag, _ in page.tags if tag in ("script", "iframe", "object", "link")]
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert (
        page.text.count(helpers_results.HOSTILE) == 3
    )  # a sample, a mistake and the configuration
    assert "{{ 7 * 7 }}" in page.text
    assert not re.search(r"[\x00-\x08\x1b]", page.text)


def test_nothing_is_loaded_from_outside(page):
    loaded = [
        attributes[key]
        for _, attributes in page.tags
        for key in ("src", "href", "srcset", "data", "action")
        if key in attributes
    ]
    assert loaded and all(re.match(r"#|data:image/png;base64,[A-Za-z0-9+/=]+$", x) for x in loaded)
    styles = page.text + "".join(attributes.get("style", "") for _, attributes in page.tags)
    assert "url(" not in styles and "@import" not in styles


def test_a_broken_picture_says_so(page):
    assert page.text.count("no image") == 1


def test_figures_of_the_results_are_on_the_page(page):
    row = helpers_results.results()["comparisons"][0]
    assert f"{100 * row['difference']:+.1f}" in page.text
    order = ("How sure", "Next step", "Before you trust this", "own −", "Scores by number of lab")
    places = [page.text.index(words) for words in (*order, "What was compared")]
    assert places == sorted(places)
    assert "the runs start from 2 checkpoints" in page.text
    assert "Every arm tried the same number of settings (2). Each seed chose its own" in page.text
    assert "Westfall-Young max-T" in page.text and "Holm" not in page.text
    assert "all label budgets of in_domain − scratch, in_domain − classical and" in page.text
    assert "Film reviews: 25,000 items (the slice sealed), kept apart" in page.text
    assert "“Within the margin” (1 point) is said where two one-sided tests" in page.text


def test_the_models_of_all_published_arms_are_described():
    results = helpers_results.results()
    results["arms"].append(helpers_results.arm("published") | {"name": "encoder"})
    for name, model in (("published", "minilm"), ("encoder", "tiny")):
        results["tasks"][0][name] = {"model": model, "source": "somewhere", "licence": "MIT"}
    text = _without_plots(results)
    assert "A published model may have seen these very test items" in text
    assert "Film reviews, published: minilm" in text and "Film reviews, encoder: tiny" in text
    for row in results["arms"]:
        row["pretrained_on"] = None
    assert "A published model may have" not in _without_plots(results)


def test_an_older_file_says_only_what_it_knows():
    results = helpers_results.old_results()
    results["config"] |= {"pretrain_seeds": 1, "search_seeds": 2}
    for cell in results["cells"]:
        cell["trials"] = [{"config": {}, "validation": 0.5}]
    text = _without_plots(results)
    assert "one and the same pretrained checkpoint" in text
    assert "The search was made on 2 of 8 seeds and its choice used for all of them" in text
    assert "How often these test items had been scored before this study was not recorded" in text
    assert "Holm's correction for" in text and "Westfall" not in text
    assert "scored once" not in text and "smallest true difference" not in text
    results["config"]["pretrain_seeds"] = 3
    assert "they are too narrow" in _without_plots(results)


def test_the_kept_results_give_a_page():
    kept = Path(__file__).parents[2] / "experiments" / "results" / "compare" / "results.json.xz"
    text = _without_plots(json.loads(lzma.decompress(kept.read_bytes())))
    assert "Film reviews" in text and "own pretraining" in text


def test_money_is_named_where_a_label_has_a_price():
    results = helpers_results.results()
    assert "money saved" not in _without_plots(results)
    results["compute_cost"][1] |= {"label_cost": 0.1, "labels_saved": 4_321, "money_saved": 432.1}
    text = _without_plots(results)
    assert "money saved" in text and "4,321" in text


@pytest.mark.parametrize(("name", "words"), EXTRAS.items())
def test_a_missing_section_says_so(name, words):
    results = helpers_results.results()
    del results[name]
    assert f"This run recorded no {words}." in _without_plots(results)


def test_the_bare_contract_is_enough(tmp_path):
    page = _Tags(write({"schema": 2}, tmp_path).read_text())
    assert set(SECTIONS) <= {attributes.get("id") for _, attributes in page.tags}
    assert "nothing to conclude" in page.text
    assert not list((tmp_path / "plots").iterdir())


def test_rows_may_lack_fields(tmp_path, undrawn):
    results = helpers_results.results()
    for name in (
        *("label_efficiency", "compute_cost", "decontamination", "tasks", "samples"),
        *("mistakes", "curves"),
    ):
        results[name] = [{"task": "reviews", "name": "reviews"}]
    write(results, tmp_path)


def _only(results, keep):
    for name, rows in results.items():
        if isinstance(rows, list):
            results[name] = [row for row in rows if keep(row)]
    return results


def test_one_task(tmp_path, undrawn):
    results = _only(
        helpers_results.results(), lambda row: row.get("task", row.get("name")) == "digits"
    )
    page = _Tags(write(results, tmp_path).read_text())
    assert "Film reviews" not in page.text


def test_two_arms(tmp_path):
    two = ("scratch", "in_domain", None)
    results = _only(
        helpers_results.results(),
        lambda row: row.get("arm") in two and row.get("baseline", "scratch") in two,
    )
    page = _Tags(write(results, tmp_path).read_text())
    assert "classical" not in page.text.split("Configuration")[-2].split("}")[-1]


def test_one_budget(tmp_path):
    write(_only(helpers_results.results(), lambda row: row.get("num_labels", 64) == 64), tmp_path)
    assert (tmp_path / "plots" / "accuracy-reviews.png").exists()
    # A curve is through two points or more.
    assert not list((tmp_path / "plots").glob("learning-curves*"))


@pytest.mark.parametrize(
    "more",
    [
        ", optimizer.schedule.warmup_fraction=0.0625",
        pytest.param("x" * 200, marks=pytest.mark.slow),
    ],
)
def test_arms_with_long_names(more):
    text = json.dumps(helpers_results.results())
    for name in ("in_domain", "scratch", "classical_unlabeled"):
        text = text.replace(f'"{name}"', f'"{name}{more}"')
    drawn = pages.render_figures(parse(json.loads(text)))
    assert {"accuracy", "learning_curves", "differences", "multiplier", "cost", "pretraining"} <= {
        each.section for each in drawn
    }


def test_one_seed_has_no_interval(tmp_path):
    results = _only(helpers_results.old_results(), lambda row: row.get("seed", 0) == 0)
    for row in results["comparisons"]:
        row |= {"low": None, "high": None, "p": None, "p_adjusted": None, "seeds": 1}
        row |= {"variance": None}
    page = _Tags(write(results, tmp_path).read_text())
    assert "one run with one seed" in page.text
    assert "no interval" in page.text


def test_not_a_number_is_missing(tmp_path):
    results = helpers_results.results()
    results["cells"][0]["value"] = float("nan")
    results["comparisons"][0] |= {"difference": float("nan"), "low": float("nan")}
    assert "nan" not in _Tags(write(results, tmp_path).read_text()).text.split("Data")[0]


def test_unequal_search_is_admitted():
    results = helpers_results.results()
    for cell in results["cells"]:
        if cell["arm"] == "in_domain":
            cell["trials"] = cell["trials"] * 3
    text = _without_plots(results)
    assert "Settings tried: scratch 2, in_domain 6" in text


def test_a_name_with_slashes_or_dollars_stays_in_the_folder(tmp_path, undrawn):
    results = helpers_results.results()
    for name in ("cells", "comparisons"):
        for row in results[name]:
            row |= {"task": "../../$x" if row["task"] == "digits" else "..\\..\\$x"}
            row["arm"] = row["arm"].replace("out_of_domain", "$\\frac{$")
            row["metric"] = "$f_1"
    write(results, tmp_path / "a" / "out")
    outside = [path for path in tmp_path.rglob("*.png") if path.parent.name != "plots"]
    assert not outside
    assert len(list((tmp_path / "a" / "out" / "plots").glob("accuracy-*.png"))) == 2


@pytest.mark.slow
def test_same_results_same_bytes_and_results_untouched(tmp_path):
    results = helpers_results.results()
    before = copy.deepcopy(results)
    first, second = write(results, tmp_path / "a"), write(results, tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()
    assert results == before


def test_a_failed_write_leaves_the_old_report_whole(tmp_path, undrawn, monkeypatch):
    old = write({"schema": 2}, tmp_path).read_bytes()

    def full_disk(self, content):
        with self.open("wb") as partial:
            partial.write(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(helpers_results.results(), tmp_path)
    assert (tmp_path / "report.html").read_bytes() == old
    assert not list(tmp_path.rglob("*.partial"))


def test_nothing_is_written_when_the_page_cannot_be_made(tmp_path, undrawn, monkeypatch):
    def broken(*_):
        raise RuntimeError("no page")

    monkeypatch.setattr(pages, "render_report", broken)
    with pytest.raises(RuntimeError):
        write(helpers_results.results(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="taken"):
        write({"schema": 2}, tmp_path / "taken")


def test_the_report_needs_no_jax():
    allowed = {"matplotlib", "jinja2", "markupsafe", "msgspec", "numpy", "fm"}
    # Names and titles of metrics: plain tables.
    tables = tuple(f"fm.evaluation.text_quality.{name}" for name in ("metrics", "words"))
    statistics = tuple(f"fm.evaluation.{name}" for name in ("statistics", "power"))
    own = ("fm.report", "fm.errors", "fm.files", *statistics, *tables)
    found = subprocess.run(
        [sys.executable, "-c", "import sys, fm.report.text_quality; print('jax' in sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == "False"
    for source in Path(fm.report.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                assert top in allowed or top in sys.stdlib_module_names, (source.name, name)
                assert not name.startswith("fm.") or name.startswith(own), (source.name, name)


def test_a_multitask_study_has_its_own_sections():
    results = parse(multitask_results())
    figures = pages.render_figures(results)
    assert [each.section for each in figures] == [
        *("amortized_cost", "amortized_cost"),
        *("ablation transfer_matrix", "ablation mixture", "ablation mixture"),
        "ablation data_amount",
    ]
    page = render_report(results, figures)
    for words in ("Cost of K tasks", "from 37 tasks", "Ablations", "Less data", "“fresh”"):
        assert words in page
    assert "One model for many tasks" in page
    plain = render_report(parse({"schema": 2, "experiment": "compare"}), [])
    assert "Cost of K tasks" not in plain and "Ablations" not in plain


def test_instruction_following_gives_the_share_of_the_task_s_own_answers():
    row = {"task": "reviews", "condition": "held out", "metric": "accuracy", "value": 0.8}
    results = {"schema": 2, "instruction_following": [row | {"answers_of_this_task": 0.99}]}
    page = render_report(parse(results), [])
    assert "Following instructions" in page and "80.0% (99.0%)" in page


def test_samples_play_and_move_and_nothing_else_gets_in():
    files = {"gif": b"GIF89a...", "wav": b"RIFF....WAVE"}
    png = base64.b64encode(b"\x89PNG\r\n\x1a\n...").decode()
    rows = [
        {"task": "reviews", "arm": "joint", "png": png, kind: base64.b64encode(data).decode()}
        for kind, data in files.items()
    ]
    bad = rows[1] | {"wav": base64.b64encode(b"<svg>").decode()}
    page = render_report(parse({"schema": 2, "samples": [*rows, bad]}), [])
    assert page.count("data:image/gif;base64,") == 1
    assert page.count('<audio controls src="data:audio/wav;base64,') == 1
    assert "media-src data:" in page
