"""Pages of data whose every text was written to break them have the elements that others have."""

import html.parser
import json
import re

import pytest

from fm.benchmark import report as benchmark
from fm.report import text_quality, write
from fm.report.pages import render_report
from fm.report.parsing import parse
from tests.benchmark import test_report as timings
from tests.report import helpers_results, test_text_quality
from tests.report.helpers_multitask import multitask_results

pytestmark = pytest.mark.filterwarnings("error:constrained_layout not applied")

HOSTILE = [
    "<script>alert(1)</script>",
    "</script></style></title><img src=x onerror=alert(1)>",
    "\"onload=\"alert(1)\" 'onclick='alert(1)' `",
    "$\\badmath$ $\\frac$ \\undefined{ % & #",
    "{{ 7*7 }}{% raw %}{# #}",
    "-->]]><!--<svg/onload=alert(1)>&lt;&#60;",
    "\x1b[31m\0\x07\x9b\u202eRTL\u200f\u2028\ufeff\udc80",
    "javascript:alert(1)",
    "../../etc/passwd/\\..\\x\n\r\n\t ",
]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# What pages tell kinds of things apart by; all else is text of data, models or users.
KEPT = {
    *("kind", "modality", "metric", "png", "gif", "wav", "censored", "experiment", "unit"),
    *("method", "truth", "prediction", "changed_modality", "field"),
}


class Page(html.parser.HTMLParser):
    """Elements with the names of their attributes, and where those point to."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.links = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        # Names have places to break them, more in longer names.
        if tag != "wbr" or attrs:
            self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.links += [value for name, value in attrs if name in ("src", "href")]


def spoken(tree, add, key=""):
    """The results with something put behind every text that is not a kind."""
    if isinstance(tree, dict):
        return {
            name if not add or key not in ("config", "versions") else name + add: spoken(
                value, add, name
            )
            for name, value in tree.items()
        }
    if isinstance(tree, list):
        return [spoken(each, add, key) for each in tree]
    return tree + add if isinstance(tree, str) and key not in KEPT else tree


def same(hostile, plain):
    one, other = Page(hostile), Page(plain)
    assert one.elements == other.elements
    assert not CONTROL.search(hostile)
    assert all(link.startswith(("#", "data:image/", "data:audio/wav;")) for link in one.links)
    assert "49{%" not in hostile


@pytest.mark.parametrize("text", HOSTILE)
def test_a_study(text):
    results = helpers_results.results()
    same(*(render_report(parse(spoken(results, add)), []) for add in (text, " x")))


@pytest.mark.parametrize(
    "results",
    [pytest.param(helpers_results.results, marks=pytest.mark.slow), multitask_results],
)
def test_a_study_with_its_plots_and_files(tmp_path, results):
    page = write(spoken(results(), "".join(HOSTILE)), tmp_path / "out")
    plain = write(spoken(results(), " x"), tmp_path / "plain")
    same(page.read_text(encoding="utf-8"), plain.read_text(encoding="utf-8"))
    names = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    assert all(name.isascii() and ".." not in name for name in names)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "plain"}


@pytest.fixture
def written():
    """A study of texts; `test_text_quality` says which of its texts come from outside."""
    return test_text_quality.results.__wrapped__()


@pytest.mark.parametrize(
    "text",
    [
        "".join(HOSTILE),
        *(pytest.param(each, marks=pytest.mark.slow) for each in (HOSTILE[3], HOSTILE[6])),
    ],
)
def test_a_study_of_texts(written, tmp_path, text):
    nasty = json.dumps(test_text_quality.NASTY)
    pages = []
    for n, other in enumerate((text, "x")):
        changed = json.loads(json.dumps(written).replace(nasty, json.dumps(other)))
        page = text_quality.write(changed, tmp_path / str(n))
        pages.append(page.read_text(encoding="utf-8"))
    same(*pages)
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1"}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_benchmark(text, tmp_path):
    def page(add):
        found = timings.results(timings.rows(1.0, note=add)) | {"command": add, "xla_flags": add}
        found["device"] |= {"kind": add}
        benchmark.write_report(found, tmp_path / "b.json")
        return (tmp_path / "b.html").read_text(encoding="utf-8")

    same(page(text), page("x"))
