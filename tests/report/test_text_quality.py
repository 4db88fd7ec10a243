"""The page and the headline of a study of text, from made-up results."""

import csv

import pytest

from fm.evaluation.text_quality.metrics import METRICS
from fm.report import text_quality
from fm.study.text_quality import runner
from fm.study.text_quality.config import to_json
from tests.study.text_quality import helpers_text_quality as helpers

NASTY = '<script>alert(1)</script> & "quotes" \n\n\n\n\n end'


def values(shift, width=0.01):
    every = {metric.name: 0.5 for metric in METRICS} | {"zipf": 1.0, "mauve": 0.8 - shift}
    every |= {
        "distinct_2": 0.4 + shift,
        "scorer_bits_per_byte": 2.0 + shift,
        "longest_copy": 3.0 + shift,
    }
    return {name: [value, value - width, value + width] for name, value in every.items()}


@pytest.fixture
def results():
    config = to_json(helpers.study(("films", "manuals")))
    shifts = {"T 1": 0.1, "T 0.5": 0.0}
    samples = [
        {
            "arm": name,
            "domain": letter,
            "stage": stage,
            "step": 4 * n,
            "sampling": decoding,
            "temperature": float(decoding[2:]),
            "values": values(shift + 0.05 * order),
            "texts": [{"prompt": "Once", "text": NASTY, "faults": ["stuck"]}] * 2,
        }
        for order, (name, training_set) in enumerate(config["training_sets"].items())
        for letter in training_set["prompt_domains"]
        for n, stage in enumerate(("1/4", "1/2", "end"), 1)
        for decoding, shift in shifts.items()
    ]
    found = []
    for letter in "AB":
        mine = [row for row in samples if row["domain"] == letter]
        chosen = {metric.name: runner.best_row(mine, metric.name) for metric in METRICS}
        place = {"stage": "end", "sampling": "T 1"}
        found.append(
            {
                "domain": letter,
                "candidates": len(mine),
                "selected": chosen,
                "within": {row["arm"]: {m.name: place for m in METRICS} for row in mine},
                "regrets": runner.metric_regret(chosen, runner.worst_and_best_values(mine)),
            }
        )
    bits = {"few B": 2.4, "A, few B": 2.1}
    names = list(config["training_sets"])
    about = {"train_texts": 10, "train_bytes": 1000, "license": "none", "description": NASTY}
    leakage = {"method": "words", "checked": 40, "found": 1, "removed": 2}
    human = values(-0.1)
    human.pop("bits_per_byte")
    return {
        "schema": 2,
        "config": config,
        "config_hash": "abc",
        "embedder": "made up",
        "device": {"cores": 2, "platform": "cpu"},
        "seconds": 60.0,
        "domains": [{"letter": a, "name": n, **about} for a, n in (("A", "films"), ("B", NASTY))],
        "decontamination": [{"domain": letter, **leakage} for letter in "AB"],
        "models": [
            {
                "arm": name,
                "stage": stage,
                "step": 4 * n,
                "domain": letter,
                "value": [
                    bits.get(name, 2.5),
                    bits.get(name, 2.5) - 0.1,
                    bits.get(name, 2.5) + 0.1,
                ],
            }
            for name in names
            for letter in "AB"
            for n, stage in enumerate(("1/4", "1/2", "end"), 1)
        ],
        "trained": [
            {"arm": name, "steps": 16, "tokens": 2000, "flops": 1e9, "seconds": 1.0}
            for name in ("scorer", *names)
        ],
        "real_text": [
            {
                "domain": letter,
                "values": human,
                "texts": [{"prompt": "", "text": "x", "faults": []}],
            }
            for letter in "AB"
        ],
        "samples": samples,
        "selections": found,
    }


def test_what_models_wrote_is_escaped_and_nothing_is_loaded(results, tmp_path):
    page = text_quality.write(results, tmp_path).read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert "[5 line breaks]" in page
    assert 'src="http' not in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_the_table_has_every_figure(results, tmp_path):
    page = text_quality.write(results, tmp_path)
    with (page.parent / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    told = {
        (row["of"], row["domain"], row["arm"], row["stage"], row["sampling"], row["metric"]): [
            float(row[key]) for key in ("value", "low", "high")
        ]
        for row in rows
    }
    assert len(told) == len(rows)
    for sample in results["samples"]:
        place = [sample[key] for key in ("domain", "arm", "stage", "sampling")]
        for metric, values in sample["values"].items():
            assert told["model", *place, metric] == pytest.approx(values, rel=1e-5)
    own = results["selections"][0]["selected"]["longest_copy"]
    place = [own[key] for key in ("domain", "arm", "stage", "sampling")]
    assert told["fresh", *place, "longest_copy"] == pytest.approx(
        own["values"]["longest_copy"], rel=1e-5
    )
    assert ("real", "A", "", "", "", "zipf") in told
    assert ("real", "A", "", "", "", "bits_per_byte") not in told


def test_there_is_a_picture_of_everything(results):
    drawings = text_quality.draw_figures(results)
    sections = [drawing.section for drawing in drawings]
    assert {name: sections.count(name) for name in set(sections)} == {
        "closest": 2,
        "frontier": 2,
        "training": 2,
        "copies": 2,
        "regret": 2,
    }
    assert len({drawing.file_name for drawing in drawings}) == len(drawings)
    assert all(drawing.png.startswith(b"\x89PNG") for drawing in drawings)


def sentences(results):
    return [sentence for each in text_quality.findings(results) for sentence in each.sentences]


def test_the_headline_says_who_is_closest_and_that_tuning_won(results):
    told = sentences(results)
    assert told[0] == (
        "The model trained on “A”, after a quarter of its training, at temperature 0.5 writes the "
        "text closest to real text: MAUVE-style area 0.80 [0.79, 0.81] (1 if they cannot be told "
        "apart), clearly short of other real text, 0.90 [0.89, 0.91]."
    )
    assert "is better than training on them alone" in told[-1]
    assert "\nA (films): The model trained on “A”" in text_quality.headline(results)
    assert "2.100 [2.000, 2.200] against 2.400 [2.300, 2.500]" in told[-1]


def test_the_headline_says_which_choice_costs_most_and_which_least(results):
    lost = {("scorer_bits_per_byte", "mauve"): 0.9, ("mauve", "scorer_bits_per_byte"): 0.1}
    results["selections"][0]["regrets"] = [
        {"by": by, "metric": other, "regret": lost.get((by, other), 0.0), "clear": by != other}
        for by in ("scorer_bits_per_byte", "mauve")
        for other in ("scorer_bits_per_byte", "mauve")
    ]
    told = sentences(results)[1]
    assert "Whoever selects by “scorer bits/byte” gets the model trained on “A" in told
    assert "loses 90% of what is to be had in “MAUVE-style area”, the largest loss" in told
    assert "selecting by “MAUVE-style area” costs the other metrics least, 10% on average" in told


@pytest.mark.parametrize(
    ("low", "verdict"), [(2.05, "not clearly different from"), (2.6, "worse than")]
)
def test_the_headline_says_so_when_tuning_did_not_win(results, low, verdict):
    for row in results["models"]:
        if row["arm"] == "A, few B":
            row["value"] = [low + 0.2, low, low + 0.4]
    assert f"is {verdict} training on them alone" in sentences(results)[-1]


def test_the_headline_when_all_metrics_agree(results):
    choice = results["selections"][0]
    first = choice["selected"]["mauve"]
    choice["selected"] = dict.fromkeys(choice["selected"], first)
    assert f"All {len(METRICS)} metrics select it." in sentences(results)
