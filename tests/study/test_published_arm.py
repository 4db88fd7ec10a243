"""The published arm: a published model read by a probe, prompted, or fine-tuned."""

import dataclasses

import numpy as np
import pytest

from fm.adaptation import feature_cache, prompting
from fm.adaptation.features import FeatureConfig
from fm.adaptation.finetune import FinetuneConfig
from fm.errors import UserError
from fm.evaluation.model_selection import make_folds
from fm.hf.model_zoo import PublishedModel
from fm.study.config import PublishedConfig
from fm.study.presets import text_recipe
from fm.study.published_arm import build_published_arm, probe_feature_config
from tests.hf import helpers_hf

CONFIG = PublishedConfig("tiny", 24, "w1 {text} w2 {answer}", ("w3", "w4"))
RECIPE = dataclasses.replace(text_recipe(), finetune=FinetuneConfig(min_steps=4, batch_size=8))
METHODS = ("probe", "full", "prompt")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FM_CACHE", str(tmp_path))


def published(family):
    model = helpers_hf.pretrained(family)
    return PublishedModel(
        "tiny", model.config, model.params, model.tokenizer, model.causal, (), "made up", "none"
    )


def texts(count, seed=0):
    """Texts of two classes that share no word."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    return [" ".join(f"w{n}" for n in rng.integers(5, 15, 12) + 12 * y) for y in labels], labels


@pytest.fixture
def arm(monkeypatch):
    def build(family="bert", config=CONFIG, methods=METHODS, *, trainable=False):
        monkeypatch.setattr("fm.hf.model_zoo.load_published", lambda name: published(family))
        inputs, labels = texts(40)
        options = {"test_from": 30, "num_classes": 2, "pad_to": 20}
        made = build_published_arm(
            config, RECIPE, inputs, methods=methods, trainable=trainable, **options
        )
        return made, labels

    return build


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "modernbert", "gemma2"])
def test_a_probe_learns_separable_classes(arm, family):
    made, labels = arm(family, methods=("probe", "full"))
    train_idx = np.arange(20)
    trials = made.search(train_idx, labels[:20], 0)
    assert len(trials) >= 8 and {trial["config"]["method"] for trial in trials} == {"probe"}
    best = max(trials, key=lambda trial: trial["validation"])
    assert best["validation"] > 0.8
    predictions = made.fit_predict(train_idx, labels[:20], 0, best["config"]).values
    assert predictions.shape == (10,) and np.mean(predictions == labels[30:]) > 0.8
    assert made.fit_flops(40, best["config"]) == 2 * made.fit_flops(20, best["config"]) > 0
    assert made.model.num_features() == made.model.features(0, train_idx).shape[1]


@pytest.mark.slow
def test_features_are_computed_once(arm, monkeypatch):
    made, labels = arm()
    calls, compute = [], feature_cache.cached_features
    monkeypatch.setattr(
        feature_cache, "cached_features", lambda *args: calls.append(args) or compute(*args)
    )
    for seed in range(2):
        trials = made.search(np.arange(20), labels[:20], seed)
        made.fit_predict(np.arange(20), labels[:20], seed, trials[0]["config"])
    assert len(calls) == 1 and len(calls[0][3]) == 40


def test_prompts_are_trials_of_causal_models_only(arm):
    config = dataclasses.replace(CONFIG, num_fewshot=(0, 2))
    causal, _ = arm("llama", config)
    assert [method.name for method in causal.supported_methods()] == ["probe", "prompt"]
    encoder, _ = arm("bert", config)
    assert [method.name for method in encoder.supported_methods()] == ["probe"]
    with pytest.raises(UserError, match=r"published model tiny, which does not follow prompts"):
        arm("bert", methods=("prompt",))
    with pytest.raises(UserError, match="supports none of these"):
        arm("llama", methods=("full", "lora"))


@pytest.mark.parametrize("num_fewshot", [0, 2])
@pytest.mark.parametrize("calibrated", [False, True])
def test_prompted_predictions_are_the_likeliest_answers(arm, num_fewshot, calibrated):
    config = dataclasses.replace(CONFIG, max_length=48, num_fewshot=(num_fewshot,))
    made, labels = arm("llama", config, methods=("prompt",))
    hparams = {"method": "prompt", "shots": num_fewshot, "calibrated": calibrated}
    train_idx = np.array([7, 4, 9, 2, 1, 6, 0, 3])
    encoder, model = made.model._prompt_encoder, made.model.published

    def likeliest(idx, solved):
        shown = [(made.model.inputs[n], int(labels[n])) for n in solved[:num_fewshot]]
        both = [
            prompting.answer_logprobs(
                model.params,
                model.config,
                encoder.encode_prompts(each, shown),
                encoder.encode_answers(),
            )
            for each in ([made.model.inputs[n] for n in idx], prompting.CONTENT_FREE)
        ]
        return (prompting.calibrate(*both) if calibrated else both[0]).argmax(axis=1)

    found = made.fit_predict(train_idx, labels[train_idx], 0, hparams).values
    assert np.array_equal(found, likeliest(range(30, 40), train_idx))
    trials = made.search(train_idx, labels[train_idx], 0)
    (trial,) = [trial for trial in trials if trial["config"] == hparams]
    correct = [
        likeliest(train_idx[held_out], train_idx[fit]) == labels[train_idx[held_out]]
        for fit, held_out in make_folds(labels[train_idx], seed=0)
    ]
    assert trial["validation"] == pytest.approx(np.concatenate(correct).mean())
    assert made.fit_flops(8, hparams) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "modernbert", "gemma3"])
def test_a_trainable_model_is_fine_tuned(arm, family):
    made, labels = arm(family, methods=("lora", "probe"), trainable=True)
    trials = made.search(np.arange(20), labels[:20], 0)
    assert {trial["config"]["method"] for trial in trials} == {"probe", "lora"}
    hparams = trials[-1]["config"]
    fitted = made.fit(np.arange(20), labels[:20], 0, hparams)
    assert fitted.steps > 0 and made.predict(fitted, hparams).values.shape == (10,)


def test_probe_layers_exist():
    for num_layers in (1, 2, 6, 30):
        for causal in (False, True):
            config = probe_feature_config(causal, num_layers)
            assert max(config.resolve_layers(num_layers)) <= num_layers
    assert probe_feature_config(True, 30).layers == (20, 25, 29, 30)
    assert probe_feature_config(False, 6) == FeatureConfig("mean", layers=(5, 6))


def test_the_description_names_source_and_license(arm):
    description = arm("bert")[0].model.description()
    assert description["source"] == "made up" and description["licence"] == "none"
    assert description["parameters"] > 1000 and description["template"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 4}, "4"),
        ({"num_fewshot": ()}, "shots|fewshot"),
        ({"num_fewshot": (0, 0)}, "different"),
        ({"template": "{text}"}, "answer"),
        ({"answers": ("w3",)}, "answers"),
    ],
    ids=str,
)
def test_a_bad_config_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)
