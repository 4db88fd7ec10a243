"""The claims about one model for many tasks: held, not held, and by how much."""

import base64

from fm import report
from fm.report.pages import render_report
from fm.report.schema import parse
from fm.report.unified import claims, instruction_following_rows

NAMES = ("reviews", "digits", "words")


def row(task, arm, baseline, difference, half, labels=30):
    ends = {"low": difference - half, "high": difference + half}
    place = {"task": task, "labels": labels, "arm": arm, "baseline": baseline}
    return place | ends | {"difference": difference, "p": 0.1, "p_adjusted": 0.2, "seeds": 8}


RESULTS = {
    "schema": 1,
    "experiment": "unify",
    "comparisons": [
        *(row(name, "joint", "scratch", value, 0.02) for name, value in
          zip(NAMES, (0.1, 0.01, -0.05), strict=True)),
        *(row(name, "instruction_tuned", "joint", value, 0.02) for name, value in
          zip(NAMES, (-0.015, -0.021, 0.0), strict=True)),
    ],
    "following": [
        {"task": "reviews", "condition": "held out", "metric": "accuracy", "value": 0.8,
         "answers_of_this_task": 0.99},
        {"task": "reviews", "condition": "swapped", "metric": "accuracy", "value": 0.4,
         "answers_of_this_task": 0.01},
    ],
}  # fmt: skip


def test_a_claim_counts_tasks_and_names_those_it_fails_on():
    joint, instructed = claims(parse(RESULTS))
    assert joint.endswith(
        "at 30 labels ahead on 1 of 3 tasks, behind on 1 (words), +2.0 points on average."
    )
    assert "behind on 1 (digits), within 2 points or better on 2, -1.2 points" in instructed


def test_the_headline_is_ascii_and_of_its_experiment():
    text = report.headline(RESULTS)
    assert text.startswith("Joint pretraining against distinct networks from scratch: at 30")
    assert text.isascii()
    assert not report.headline(RESULTS | {"experiment": "compare"}).startswith("Joint")
    assert "Nothing was compared" in report.headline(RESULTS | {"comparisons": []})


def test_ways_of_asking_stand_side_by_side():
    (only,) = instruction_following_rows(parse(RESULTS))
    assert [cell and cell["value"] for cell in only["cells"]] == [0.8, None, None, 0.4]
    page = render_report(parse(RESULTS), [])
    assert "Following instructions" in page and "80.0% (99.0%)" in page and "40.0% (1.0%)" in page
    assert "One model for many tasks" in page


def test_samples_play_and_move_and_nothing_else_gets_in():
    made = {"gif": b"GIF89a...", "wav": b"RIFF....WAVE"}
    files = {kind: base64.b64encode(data).decode() for kind, data in made.items()}
    png = base64.b64encode(b"\x89PNG\r\n\x1a\n...").decode()
    rows = [
        {"task": "reviews", "arm": "joint", "png": png} | {kind: data}
        for kind, data in files.items()
    ]
    bad = {
        "task": "reviews",
        "arm": "joint",
        "png": png,
        "wav": base64.b64encode(b"<svg>").decode(),
    }
    page = render_report(parse(RESULTS | {"samples": [*rows, bad]}), [])
    assert page.count("data:image/gif;base64,") == 1
    assert page.count('<audio controls src="data:audio/wav;base64,') == 1
    assert "media-src data:" in page
