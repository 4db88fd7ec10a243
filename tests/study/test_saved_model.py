"""A saved adapted model predicts what the model in memory predicted, to the bit."""

import dataclasses
import json

import numpy as np
import pytest

from fm.adaptation.methods import METHODS, AdaptationMethod, LinearProbing
from fm.data.datasets import Dataset
from fm.errors import UserError
from fm.evaluation.model_selection import draw_train_idx
from fm.hf.model_zoo import PublishedModel
from fm.study import saved_model
from fm.study.adaptation import ModelArm
from fm.study.adapted_model import adapted_model
from fm.study.built_arm import InitialModel
from fm.study.config import PublishedConfig
from fm.study.model_card import ModelCard
from fm.study.processing import build_processor
from fm.study.published_arm import build_published_arm
from fm.study.tasks import prepare_task
from tests.hf import helpers_hf
from tests.study.helpers_study import config, dataset, images, loads, recipe, split, texts
from tests.study.helpers_targets import COLORS, colors, stars

SEED = 1
HPARAMS = {
    "full": {"learning_rate": 3e-3, "weight_decay": 0.01, "epochs": 4},
    "lora": {"learning_rate": 1e-2, "weight_decay": 0.01, "epochs": 4},
    "lp_ft": {"learning_rate": 3e-3, "weight_decay": 0.01, "epochs": 4},
    "self_training": {"learning_rate": 3e-3, "weight_decay": 0.01, "epochs": 4, "rounds": 1},
    "probe": {"scale": "standardise", "class_weight": None, "l2": 0.1},
    "svc": {"scale": "l2", "class_weight": None, "C": 1.0, "gamma": 1.0},
}


def sounds(count, seed):
    """Noise, of one class in its first half, of the other in its second."""
    draws, labels = np.random.default_rng(seed), np.arange(count) % 2
    waves = draws.integers(-8000, 8000, (count, 4000))
    waves[labels == 0, :2000] //= 50
    waves[labels == 1, 2000:] //= 50
    return waves.astype(np.int16), labels


def clips(count, seed):
    pixels, labels = images(count, seed)
    return np.repeat(pixels[:, None], 4, axis=1), labels


MEDIA = {
    "image": (images, [8, 8, 1], None),
    "audio": (sounds, [4000], 16000.0),
    "video": (clips, [4, 8, 8, 1], 8.0),
}


def data(modality):
    if modality == "text":
        return dataset(make=texts)
    make, shape, rate = MEDIA[modality]
    found = dataset(make=images)
    info = found.info | {"shape": shape, "rate": rate}
    parts = split(*make(40, 0)), split(*make(12, 1))
    return Dataset("fruit", modality, ("a", "b"), *parts, info)


def fitted_arm(monkeypatch, tmp_path, modality, method):
    """Returns (task, arm, fitted, hparams, tokenizer) of a fit to 16 labels."""
    found = data(modality)
    loads(monkeypatch, found)
    own = recipe("text" if modality == "text" else "image")
    task = prepare_task(config(label_budgets=(16,), recipe=own), ("scratch",), 1)
    rate = found.info["rate"]
    processor = build_processor(found.train, modality, own, tmp_path, rate)
    arm = task.task_type.build_model_arm(task, processor, [], (method,))
    idx = draw_train_idx(found.train.labels, 16, 0)
    hparams = {"method": method, **HPARAMS[method]}
    pool = task.pool_rows(idx)
    fitted = arm.fit(pool, found.train.labels[idx], SEED, hparams)
    return task, arm, fitted, hparams, processor.tokenizer


def adapted_of(task, arm, fitted, hparams, tokenizer):
    return adapted_model(
        arm.model,
        fitted,
        hparams,
        SEED,
        dataset=task.dataset,
        task_type=task.task_type,
        tokenizer=tokenizer,
    )


CASES = [
    *(("text", method) for method in HPARAMS),
    *(("image", method) for method in ("full", "probe", "lora", "svc")),
    *((modality, method) for modality in ("audio", "video") for method in ("full", "probe")),
]


@pytest.mark.parametrize(("modality", "method"), CASES)
def test_saved_and_loaded_it_predicts_the_same(monkeypatch, tmp_path, modality, method):
    task, arm, fitted, hparams, tokenizer = fitted_arm(monkeypatch, tmp_path, modality, method)
    adapted = adapted_of(task, arm, fitted, hparams, tokenizer)
    inputs = task.test.inputs(range(len(task.test)))
    expected = adapted.predict(inputs)
    own = arm.predict(fitted, hparams)
    assert np.array_equal(expected.values, own.values)
    if own.probabilities is not None:
        np.testing.assert_allclose(expected.probabilities, own.probabilities, atol=1e-6)
    saved_model.save(tmp_path / "model", adapted, ModelCard("fruit", "A model."))
    loaded = saved_model.load(tmp_path / "model")
    found = loaded.predict(inputs)
    assert np.array_equal(found.values, expected.values)
    if own.probabilities is None:
        assert found.probabilities is None
    else:
        assert np.array_equal(found.probabilities, expected.probabilities)
    assert loaded.prediction_texts(found)[0] in ("a", "b")
    # One by one, and in another order, each example gets the same numbers.
    for n in (0, 7):
        alone = loaded.predict(inputs[n : n + 1])
        assert alone.values[0] == found.values[n]
        if found.probabilities is not None:
            assert np.array_equal(alone.probabilities[0], found.probabilities[n])
    assert len(loaded.predict(inputs[:0]).values) == 0


@pytest.mark.parametrize("method", ["full", "lora", "probe"])
@pytest.mark.parametrize("make", [stars, colors], ids=["numbers", "sets"])
def test_numbers_and_sets_of_classes_are_saved(monkeypatch, tmp_path, make, method):
    found = make()
    loads(monkeypatch, found)
    own = recipe("text")
    task = prepare_task(config(found.name, label_budgets=(16,), recipe=own), ("scratch",), 1)
    processor = build_processor(found.train, "text", own, tmp_path, None)
    arm = task.task_type.build_model_arm(task, processor, [], (method,))
    hparams = {"method": method, **HPARAMS[method], "threshold": 0.4}
    pool = task.pool_rows(task.train_idx[0])
    fitted = arm.fit(pool, task.strata[task.train_idx[0]], SEED, hparams)
    adapted = adapted_of(task, arm, fitted, hparams, processor.tokenizer)
    saved_model.save(tmp_path / "model", adapted)
    loaded = saved_model.load(tmp_path / "model")
    predictions = loaded.predict(task.test.texts(range(len(task.test))))
    expected = arm.predict(fitted, hparams)
    texts_of = loaded.prediction_texts(predictions)
    if make is stars:
        np.testing.assert_allclose(predictions.values, expected.values, rtol=1e-5)
        assert predictions.probabilities is None and float(texts_of[0]) == predictions.values[0]
    else:
        np.testing.assert_array_equal(predictions.values, predictions.probabilities >= 0.4)
        np.testing.assert_allclose(predictions.probabilities, expected.probabilities, atol=1e-5)
        assert all(set(each.split(";")) <= {*COLORS, ""} for each in texts_of)


WORDS = [["Ann", "met", "Bob", "today"], ["no", "name", "here"], ["Bob", "sings"], ["so", "what"]]
TAGS = [["B-person", "O", "B-person", "O"], ["O"] * 3, ["B-person", "O"], ["O", "O"]]


def tagged(count):
    """Sentences of one entity type."""
    rows = np.arange(count) % len(WORDS)
    sentences = [[*WORDS[n], f"w{place}"] for place, n in enumerate(rows)]
    made = split([" ".join(words) for words in sentences], None)
    columns = {
        "words": lambda idx: [sentences[n] for n in idx],
        "tags": lambda idx: [[*TAGS[rows[n]], "O"] for n in idx],
    }
    return dataclasses.replace(made, columns=columns)


@pytest.mark.parametrize("method", ["full", "lora", "probe"])
def test_tags_are_predicted_for_new_sentences(monkeypatch, tmp_path, method):
    found = dataset(make=texts)
    info = found.info | {"tags": ["O", "B-person", "I-person"]}
    found = Dataset("names", "text", (), tagged(40), tagged(12), info)
    loads(monkeypatch, found)
    own = recipe("text")
    task = prepare_task(config("names", label_budgets=(16,), recipe=own), ("scratch",), 1)
    processor = build_processor(found.train, "text", own, tmp_path)
    arm = task.task_type.build_head(task, InitialModel(processor), None, (method,))
    assert isinstance(arm, ModelArm)
    idx = task.train_idx[0]
    hparams = {"method": method, **HPARAMS[method]}
    fitted = arm.fit(task.pool_rows(idx), task.strata[idx], SEED, hparams)
    counts = arm.predict(fitted, hparams).values
    adapted = adapted_of(task, arm, fitted, hparams, processor.tokenizer)
    saved_model.save(tmp_path / "model", adapted)
    loaded = saved_model.load(tmp_path / "model")
    sentences = task.test.words(range(len(task.test)))
    predicted = loaded.predict(sentences)
    assert predicted.probabilities is None
    again = [tags.count("B-person") for tags in predicted.values]
    assert again == counts[:, 1].tolist()
    assert loaded.prediction_texts(predicted)[0].split() == predicted.values[0]
    assert loaded.predict(sentences[3:4]).values[0] == predicted.values[3]


def test_texts_longer_than_any_label_get_the_same_numbers_in_any_company(monkeypatch, tmp_path):
    task, *rest = fitted_arm(monkeypatch, tmp_path, "text", "full")
    adapted = adapted_of(task, *rest)
    short, long = "plum fig", " ".join(["apple", "pear"] * 40)
    both = adapted.predict([short, long, short]).probabilities
    assert np.array_equal(both[0], both[2])
    assert np.array_equal(adapted.predict([long]).probabilities[0], both[1])


def test_what_is_kept(monkeypatch, tmp_path):
    kept = {}
    for method in ("full", "probe", "lora"):
        adapted = adapted_of(*fitted_arm(monkeypatch, tmp_path / method, "text", method))
        saved_model.save(tmp_path / method / "model", adapted)
        kept[method] = adapted.arrays.keys()
        names = {path.name for path in (tmp_path / method / "model").iterdir()}
        assert names == {"model.json", "params.safetensors", "tokenizer.json", "digests.json"}
    assert kept == {
        "full": {"fitted"},
        "probe": {"fitted", "initial"},
        "lora": {"fitted", "initial"},
    }


@pytest.fixture
def model_dir(monkeypatch, tmp_path):
    adapted = adapted_of(*fitted_arm(monkeypatch, tmp_path, "text", "probe"))
    saved_model.save(tmp_path / "out" / "model", adapted)
    return tmp_path / "out" / "model"


@pytest.mark.parametrize("name", ["model.json", "params.safetensors", "tokenizer.json"])
def test_a_damaged_folder_is_refused(model_dir, name):
    content = bytearray((model_dir / name).read_bytes())
    content[len(content) // 2] ^= 1
    (model_dir / name).write_bytes(content)
    with pytest.raises(UserError, match=f"is damaged .{name} is not what was written"):
        saved_model.load(model_dir)
    (model_dir / name).unlink()
    with pytest.raises(UserError, match=r"damaged|no adapted model"):
        saved_model.load(model_dir)


def rewritten(model_dir, **changes):
    """Changes fields of model.json, digests included."""
    path = model_dir / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    saved_model.write_digests(model_dir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 7}, "has the format 7; this version reads 1"),
        ({"hparams": {"method": "magic"}}, "needs the adaptation method 'magic'"),
        ({"task_type": "magic"}, "needs the task type 'magic'"),
        ({"names": 3}, "is damaged .Expected `array`"),
        ({"state": None}, "holds no complete model"),
        ({"recipe": {}}, "recipe: field model is missing"),
    ],
)
def test_a_folder_of_something_else_is_refused(model_dir, changes, message):
    rewritten(model_dir, **changes)
    with pytest.raises(UserError, match=message) as caught:
        saved_model.load(model_dir)
    assert str(model_dir) in str(caught.value) and "\n" not in str(caught.value)


def test_the_folder_above_is_understood_in_the_message(model_dir):
    with pytest.raises(UserError, match=f"did you mean {model_dir}"):
        saved_model.load(model_dir.parent)
    with pytest.raises(UserError, match="holds no saved model"):
        saved_model.save(model_dir.parent, saved_model.load(model_dir))


def test_a_method_without_hooks_cannot_be_saved(monkeypatch, tmp_path):
    class Plain(LinearProbing):
        name = "plain"
        dump, restore = AdaptationMethod.dump, AdaptationMethod.restore

    monkeypatch.setitem(METHODS, "plain", Plain())
    monkeypatch.setitem(HPARAMS, "plain", HPARAMS["probe"])
    with pytest.raises(UserError, match="the adaptation method plain cannot be saved"):
        adapted_of(*fitted_arm(monkeypatch, tmp_path, "text", "plain"))


PUBLISHED = PublishedConfig("tiny", 40, "w1 {text} w2 {answer}", ("w3", "w4"), (0, 2))


def published(seed=0):
    model = helpers_hf.pretrained("llama")
    params = model.params
    if seed:
        params = params | {"streams": {k: v + 1 for k, v in params["streams"].items()}}
    return PublishedModel("tiny", model.config, params, model.tokenizer, True, (), "here", "none")


HPARAMS_OF_PUBLISHED = [(method, HPARAMS[method]) for method in ("probe", "full", "lora")]
PROMPTS = [{"shots": shots, "calibrated": each} for shots in (0, 2) for each in (False, True)]


@pytest.mark.parametrize(
    ("method", "hparams"),
    [*(("prompt", each) for each in PROMPTS), *HPARAMS_OF_PUBLISHED],
)
def test_models_adapted_from_published_ones(monkeypatch, tmp_path, method, hparams):
    monkeypatch.setattr("fm.hf.model_zoo.load_published", lambda name: published())
    monkeypatch.setattr(saved_model, "load_published", lambda name: published())
    monkeypatch.setenv("FM_CACHE", str(tmp_path / "cache"))
    found = dataset(make=lambda count, seed: texts(count, seed, "w5 w6 w7 w8 w23 w24 w25"))
    loads(monkeypatch, found)
    task = prepare_task(config(label_budgets=(16,), recipe=recipe("text")), ("scratch",), 1)
    options = {"test_from": len(task.labeled_pool), "num_classes": 2, "pad_to": 16}
    arm = build_published_arm(
        PUBLISHED, task.config.recipe, task.texts(), methods=(method,), trainable=True, **options
    )
    hparams = {"method": method, **hparams}
    idx = task.train_idx[0]
    fitted = arm.fit(task.pool_rows(idx), found.train.labels[idx], SEED, hparams)
    adapted = adapted_of(task, arm, fitted, hparams, None)
    inputs = task.test.texts(range(len(task.test)))
    expected = adapted.predict(inputs)
    assert np.array_equal(expected.values, arm.predict(fitted, hparams).values)
    saved_model.save(tmp_path / "model", adapted)
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert ("initial" in adapted.arrays, "tokenizer.json" in files) == (False, True)
    loaded = saved_model.load(tmp_path / "model")
    predicted = loaded.predict(inputs)
    assert np.array_equal(predicted.values, expected.values)
    alone = loaded.predict(inputs[5:6])
    assert alone.values[0] == expected.values[5]
    if method != "prompt":
        assert np.array_equal(predicted.probabilities, expected.probabilities)
        assert np.array_equal(alone.probabilities[0], expected.probabilities[5])
    monkeypatch.setattr(saved_model, "load_published", lambda name: published(1))
    if method == "full":
        assert saved_model.load(tmp_path / "model")
    else:
        with pytest.raises(UserError, match=r"adapted from tiny, but .* another model"):
            saved_model.load(tmp_path / "model")
