"""The imported arm: a published model read by a probe, or asked in words."""

import dataclasses

import numpy as np
import pytest

from fm.adaptation import feature_cache, prompting
from fm.errors import UserError
from fm.evaluation.model_selection import make_folds
from fm.hf.model_zoo import PublishedModel
from fm.study import analysis, arms
from fm.study.cells import run_cells
from fm.study.config import PublishedConfig
from fm.study.published_arm import PublishedArm, probe_feature_config
from fm.study.tasks import prepare_task
from tests.hf import helpers_hf as problems
from tests.study.helpers_study import config, dataset, loads, split

ASKED = PublishedConfig("tiny", 24, "w1 {text} w2 {answer}", ("w3", "w4"))
ADAPT = ("probe", "full", "prompt")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(tmp_path))


def published(family):
    made = problems.pretrained(family)
    return PublishedModel(
        "tiny", made.config, made.params, made.tokenizer, made.causal, (), "made up", "none"
    )


def texts(count, seed=0):
    """Texts of two classes that share no word."""
    draws = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    return [" ".join(f"w{n}" for n in draws.integers(5, 15, 12) + 12 * y) for y in labels], labels


def arm(family="bert", asked=ASKED, adapt=ADAPT, count=40):
    inputs, labels = texts(count)
    made = PublishedArm(published(family), asked, inputs, test_from=30, adapt=adapt, trials=5)
    return made, labels


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_a_probe_learns_what_can_be_told_apart(family):
    made, labels = arm(family, adapt=("probe", "full"))
    assert len(made.grid()) == 5 and {each["adapt"] for each in made.grid()} == {"probe"}
    drawn = np.arange(20)
    trials = made.validate(drawn, labels[:20], 0)
    assert [trial["config"] for trial in trials] == made.grid()
    best = max(trials, key=lambda trial: trial["validation"])
    assert best["validation"] > 0.8
    guessed = made.fit_predict(drawn, labels[:20], 0, best["config"])
    assert guessed.shape == (10,) and np.mean(guessed == labels[30:]) > 0.8
    assert made.fit_flops(40, best["config"]) == 2 * made.fit_flops(20, best["config"]) > 0


def test_texts_are_read_once(monkeypatch):
    made, labels = arm()
    calls, features = [], feature_cache.cached_features
    monkeypatch.setattr(
        feature_cache, "cached_features", lambda *a: calls.append(a) or features(*a)
    )
    for seed in range(2):
        made.validate(np.arange(20), labels[:20], seed)
        made.fit_predict(np.arange(20), labels[:20], seed, made.grid()[0])
    assert len(calls) == 1 and len(calls[0][3]) == 40


def test_as_many_settings_with_prompts_and_only_decoders_have_these():
    asked = dataclasses.replace(ASKED, num_fewshot=(0, 2))
    causal, _ = arm("llama", asked)
    assert [each["adapt"] for each in causal.grid()] == ["probe"] + 4 * ["prompt"]
    encoder, _ = arm("bert", asked)
    assert [each["adapt"] for each in encoder.grid()] == 5 * ["probe"]
    with pytest.raises(UserError, match=r"imported arm \(tiny\), which follows no prompts"):
        arm("bert", adapt=("prompt",))
    with pytest.raises(UserError, match="can do none of these"):
        arm("llama", adapt=("full", "lora"))


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("calibrated", [False, True])
def test_prompts_answer_as_the_scores_say(shots, calibrated):
    asked = dataclasses.replace(ASKED, max_length=48, num_fewshot=(shots,))
    made, labels = arm("llama", asked, adapt=("prompt",))
    setting = {"adapt": "prompt", "shots": shots, "calibrated": calibrated}
    drawn = np.array([7, 4, 9, 2, 1, 6, 0, 3])
    prompter = made._prompter
    model = made.model

    def answered(rows, solved):
        shown = [(made.texts[row], int(labels[row])) for row in solved[:shots]]
        both = [
            prompting.answer_logprobs(
                model.params,
                model.config,
                prompter.encode_prompts(each, shown),
                prompter.encode_answers(),
            )
            for each in ([made.texts[row] for row in rows], prompting.CONTENT_FREE)
        ]
        return (prompting.calibrate(*both) if calibrated else both[0]).argmax(axis=1)

    got = made.fit_predict(drawn, labels[drawn], 0, setting)
    assert np.array_equal(got, answered(range(30, 40), drawn))
    (trial,) = [
        each for each in made.validate(drawn, labels[drawn], 0) if each["config"] == setting
    ]
    right = [
        answered(drawn[held], drawn[fit]) == labels[drawn[held]]
        for fit, held in make_folds(labels[drawn], seed=0)
    ]
    assert trial["validation"] == pytest.approx(np.concatenate(right).mean())
    assert made.fit_flops(8, setting) == 0.0


def test_readings_are_of_depths_the_model_has():
    for layers in (1, 2, 6, 30):
        for causal in (False, True):
            assert max(probe_feature_config(causal, layers).resolve_layers(layers)) <= layers
    assert probe_feature_config(True, 30).layers == (20, 25, 29, 30)


def test_a_task_with_the_arm(monkeypatch, tmp_path):
    parts = split(*texts(40)), split(*texts(12, 1))
    data = dataclasses.replace(dataset(), train=parts[0], test=parts[1])
    loads(monkeypatch, data)
    monkeypatch.setattr("fm.hf.model_zoo.load_published", lambda name: published("bert"))
    task = prepare_task(config(imported=ASKED), ("published", "classical"), 2)
    ways = {
        "published": arms.build_published_arm(task),
        "classical": arms.build_classical_arm(task),
    }
    cells = run_cells(task, ways, 1, tmp_path / "cells")
    assert {len(cell.trials) for cell in cells} == {2}
    rows = analysis.cell_rows(cells, task, {})
    fed = {row["arm"]: row["pretrain_flops"] for row in rows}
    assert fed == {"published": None, "classical": 0.0}
    (bill,) = [
        row for row in analysis.compute_cost_rows(cells, task, {}, []) if row["arm"] == "published"
    ]
    assert bill["pretrain_flops"] is None and bill["break_even_tasks"] is None
    assert "a cost that is not known" in bill["note"]
    about = ways["published"].about()
    assert about["source"] == "made up" and about["licence"] == "none"
    assert about["parameters"] > 1000 and about["template"] is None
    assert "not searched" in analysis.not_decontaminated_row(task)["method"]


def test_a_task_without_a_model_or_without_text(monkeypatch):
    loads(monkeypatch, dataset())
    task = prepare_task(config(), ("scratch", "classical"), 1)
    with pytest.raises(UserError, match="--published_model=NAME"):
        arms.build_published_arm(task)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"length": 4}, "length=4"),
        ({"shots": ()}, "shots="),
        ({"shots": (0, 0)}, "none of them twice"),
        ({"words": "{text}"}, "answer"),
        ({"answers": ("w3",)}, "answers"),
    ],
    ids=str,
)
def test_a_bad_setting_is_named(changes, says):
    with pytest.raises(UserError, match=says):
        dataclasses.replace(ASKED, **changes)
