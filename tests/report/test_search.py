"""The page of a search says what to do, and shows every trial."""

import pytest

from fm.report import search, style
from fm.report.headline import SMOKE_TEST


def trial(score, **values):
    ends = {"low": None, "high": None} if score is None else {"low": score - 0.02, "high": score}
    return {"values": values, "score": score, "seconds": 30.0, "error": None} | ends


def results(*trials, **config):
    about = {"arm": "in_domain", "task": "<b>digits", "metric": "accuracy", "config": config}
    return about | {"trials": list(trials)}


@pytest.mark.parametrize(
    ("trials", "words"),
    [
        (
            [trial(0.8), trial(0.7, steps=2), trial(None, steps=3)],
            "Keep the recipe as it is (80.0%): of 2 recipes tried none is ahead of it.",
        ),
        (
            [trial(0.7), trial(0.8, steps=2)],
            "Best of 2 recipes: steps=2 (80.0%), +10.0 points from the recipe as it is (70.0%).",
        ),
        (
            [trial(None), trial(0.8, steps=2)],
            "Best of 1 recipe: steps=2 (80.0%); the recipe as it is could not be scored.",
        ),
        ([trial(None)], "No recipe could be trained."),
    ],
)
def test_the_decision(trials, words):
    assert search.search_decision(results(*trials)) == words


def test_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "to_png", lambda figure: b"\x89PNG\r\n\x1a\n")
    given = results(trial(0.8), trial(None, steps=2), smoke_test=True)
    page = search.write(given, tmp_path, "runs/best.json").read_text()
    assert page.index(SMOKE_TEST) < page.index("Keep the recipe as it is")
    assert "&lt;b&gt;digits" in page and "<b>digits" not in page
    assert "failed" in page and "78.0% to 80.0%" in page and "--recipe=runs/best.json" in page
    assert "2 trials took 60.0 s in all." in page and 'src="http' not in page
    assert (tmp_path / "search.png").exists()
    smoke = results(trial(0.8))
    assert SMOKE_TEST not in search.write(smoke, tmp_path, "x").read_text()


def test_the_plot_names_its_trials_readably():
    figure = search.search_figure(results(trial(0.8), trial(0.7, steps=2)))
    labels = figure.axes[0].get_yticklabels()
    assert {label.get_text() for label in labels} == {"as it is", "steps=2"}
    assert min(label.get_fontsize() for label in labels) >= style.SMALL
