import dataclasses

import jax
import numpy as np
import pytest

from fm.adaptation import methods
from fm.adaptation.finetune import FinetuneConfig, FinetuningRun
from fm.adaptation.lora import LoraConfig
from fm.adaptation.methods import METHODS, method_of, register_method, regularization
from fm.adaptation.methods.finetuning import SELF_TRAINING_ROUNDS, unlabeled_sample
from fm.adaptation.task_model import TaskModel
from fm.errors import UserError
from tests.adaptation.helpers_models import MODEL, params, separable

EXAMPLES, LABELS = separable(40)
TRAIN = np.arange(20)
FINETUNE, LORA = FinetuneConfig(min_steps=4, batch_size=8), LoraConfig(rank=2)


@dataclasses.dataclass(frozen=True)
class Recipe:
    finetune: FinetuneConfig = FINETUNE
    learning_rates: tuple[float, ...] = (3e-3,)
    lora: LoraConfig = LORA
    lora_learning_rates: tuple[float, ...] = (3e-2,)
    regularizers: tuple[str, ...] = ("weight_decay",)
    search_grid: str = "product"
    l2_penalties: tuple[float, ...] = (0.003, 0.03, 0.3)


def task_model(recipe=None, **fields):
    return TaskModel([params()], MODEL, recipe or Recipe(), EXAMPLES, 30, 2, 20, **fields)


def test_built_in_methods():
    assert list(METHODS) == ["full", "probe", "lora", "prompt", "lp_ft", "self_training", "svc"]

    def supported(model):
        return [name for name, method in METHODS.items() if method.supports(model)]

    model = task_model()
    assert supported(model) == ["full", "probe", "lora", "lp_ft", "self_training", "svc"]
    assert supported(dataclasses.replace(model, trainable=False)) == ["probe", "svc"]
    assert all(method.description for method in METHODS.values())


def test_a_method_is_one_object(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", dict(METHODS))

    class HeadOnly(methods.Finetuning):
        name = "head"
        description = "trains a head for no steps"

    register_method(HeadOnly())
    (hparams,) = method_of({"method": "head"}).search_space(Recipe())
    assert hparams == {"method": "head", "learning_rate": 3e-3} | regularization("weight_decay")
    with pytest.raises(ValueError, match="'head' is registered already"):
        register_method(HeadOnly())


@pytest.mark.parametrize("names", [(), ("full", "full"), ("magic",)])
def test_unknown_or_repeated_methods_are_refused(names):
    with pytest.raises(UserError, match=r"--adapt.*full, probe, lora, prompt, lp_ft"):
        methods.check_methods(names)


def test_a_star_is_smaller_than_the_product():
    recipe = Recipe(learning_rates=(1e-2, 1e-3, 1e-1), regularizers=("dropout", "weight_decay"))
    product = METHODS["full"].search_space(recipe)
    star = METHODS["full"].search_space(dataclasses.replace(recipe, search_grid="star"))
    assert len(product) == 6 and len(star) == 4
    assert star[0] == product[0] and all(hparams in product for hparams in star)
    assert {(h["learning_rate"], h["dropout"] > 0) for h in star} == {
        *((rate, True) for rate in recipe.learning_rates),
        (1e-2, False),
    }


def test_regularizers():
    assert regularization("affine_erase")["augment"] == "affine_erase"
    none = regularization("none")
    assert none["augment"] is None and none["dropout"] == 0
    assert none["weight_decay"] < regularization("weight_decay")["weight_decay"]
    with pytest.raises(UserError, match="'magic' is not known; accepted are none, weight_decay, "):
        regularization("magic")


FOLDS = [(np.arange(10, 20), np.arange(10)), (np.arange(10), np.arange(10, 20))]


@pytest.mark.parametrize("name", ["probe", "full", "lora", "lp_ft", "svc"])
def test_each_method_searches_fits_and_predicts(name):
    recipe = Recipe(finetune=FinetuneConfig(min_steps=4, batch_size=8, max_epochs=32))
    model, method = task_model(recipe), METHODS[name]
    trials = method.search(model, TRAIN, LABELS[TRAIN], 0, FOLDS)
    assert all(trial["config"]["method"] == name and trial["flops"] >= 0 for trial in trials)
    hparams = trials[0]["config"]
    fitted = method.fit(model, TRAIN, LABELS[TRAIN], 0, hparams)
    predictions = method.predict(model, fitted, model.test_idx)
    assert predictions.shape == (10,) and fitted.steps > 0
    probabilities = method.predict_proba(model, fitted, model.test_idx)
    if name != "svc":
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
        assert np.array_equal(probabilities.argmax(axis=1), predictions)
    if method.updates_model:
        assert {"last_gain", "readings"} <= trials[0].keys() and hparams["epochs"] >= 4
    recalls = []
    predicted = np.concatenate(
        [
            method.predict(model, method.fit(model, fit, LABELS[fit], 0, hparams), held_out)
            for fit, held_out in FOLDS
        ]
    )
    truth = LABELS[np.concatenate([held_out for _, held_out in FOLDS])]
    recalls = [np.mean(predicted[truth == k] == k) for k in range(2)]
    assert trials[0]["validation"] == pytest.approx(np.mean(recalls))


def test_a_class_not_seen_has_probability_zero():
    model = dataclasses.replace(task_model(), num_classes=3)
    fitted = METHODS["probe"].fit(
        model, TRAIN, LABELS[TRAIN] * 2, 0, {"scale": "l2", "l2": 0.1, "class_weight": None}
    )
    probabilities = METHODS["probe"].predict_proba(model, fitted, model.test_idx)
    assert probabilities.shape == (10, 3) and not probabilities[:, 1].any()


def test_validation_is_balanced_accuracy():
    labels = np.array([0] * 8 + [1] * 2)
    assert task_model().tune(np.zeros(10, int), np.arange(10), labels) == (0.5, {})


def test_lp_ft_starts_from_a_head_that_predicts():
    method, model = METHODS["lp_ft"], task_model()
    (hparams,) = method.search_space(model.recipe)
    for labels, classes in ((LABELS[TRAIN], 2), (LABELS[TRAIN] * 2, 3)):
        started = dataclasses.replace(model, num_classes=classes)
        run = method.start(started, TRAIN, labels, 0, hparams)
        assert np.array_equal(started.predict_finetuned(run.finetuned(), TRAIN), labels)
    assert (
        not METHODS["full"]
        .start(model, TRAIN, labels, 0, hparams)
        .finetuned()["head"]["kernel"]
        .any()
    )


@pytest.mark.slow
def test_self_training_learns_words_that_no_label_has():
    """Class 1 has a word of its own in labeled examples, and a second one beside it elsewhere."""
    draws, count = np.random.default_rng(0), 320
    labels = np.arange(count) % 2
    examples, _ = separable(count)
    tokens = draws.integers(8, 12, examples["tokens"].shape)
    own, second = 4 + labels, 6 + labels
    tokens[:, 0] = own
    tokens[20:, 1] = second[20:]
    tokens[20:60, 0] = draws.integers(8, 12, 40)  # test items have the second word alone
    examples["tokens"] = tokens
    config = FinetuneConfig(min_steps=30, batch_size=8, max_epochs=16)
    recipe = Recipe(finetune=config, learning_rates=(1e-2,))
    model = TaskModel([], MODEL, recipe, examples, 20, 2, 20, unlabeled_idx=np.arange(60, count))
    assert np.array_equal(model.test_idx, np.arange(20, 60))
    method = METHODS["self_training"]
    (hparams,) = method.search_space(recipe)
    hparams |= {"epochs": 32}

    def hits(rounds):
        fitted = method.fit(model, TRAIN, labels[:20], 0, hparams | {"rounds": rounds})
        return np.mean(method.predict(model, fitted, model.test_idx) == labels[20:60])

    assert hits(1) > hits(0) + 0.2
    folds = [(np.arange(5, 20), np.arange(5))]
    trials = method.search(model, TRAIN, labels[:20], 0, folds)
    assert [t["config"]["rounds"] for t in trials] == [0, *range(1, SELF_TRAINING_ROUNDS + 1)]
    assert trials[1]["flops"] < trials[2]["flops"]


def test_self_training_of_fixed_rounds():
    fixed = FinetuneConfig(batch_size=8, fixed_updates=5, self_training_rounds=1, max_unlabeled=6)
    model = task_model(Recipe(finetune=fixed), unlabeled_idx=np.arange(36, 40))
    method, labels = METHODS["self_training"], LABELS[TRAIN]
    assert method.only_setting(model, 20)["rounds"] == 1
    assert len(unlabeled_sample(model, TRAIN, 0)) == 6
    # The teacher's updates and the student's.
    assert method.fit(model, TRAIN, labels, 0, method.only_setting(model, 20)).steps == 10
    trials = method.search(model, TRAIN, labels, 0, [(np.arange(5, 20), np.arange(5))])
    assert [trial["config"]["rounds"] for trial in trials] == [1]
    # Where all examples are labeled, the teacher is all.
    every = dataclasses.replace(task_model(Recipe(finetune=fixed)), test_from=20)
    assert method.only_setting(every, 20)["rounds"] == 0
    with pytest.raises(UserError, match="self_training_rounds=0"):
        FinetuneConfig(self_training_rounds=0)
    with pytest.raises(UserError, match="max_unlabeled=1"):
        FinetuneConfig(max_unlabeled=1)


def test_unlabeled_is_every_example_but_test_items_and_the_seeds_own_labels():
    model = task_model(unlabeled_idx=np.arange(36, 40))
    drawn = unlabeled_sample(model, TRAIN, 0)
    assert drawn.tolist() == [*(n for n in range(30) if n not in TRAIN), *range(36, 40)]
    every = np.concatenate([np.arange(30), np.arange(36, 40)])
    assert not len(unlabeled_sample(model, every, 0))


def test_self_training_without_unlabeled_examples_is_its_teacher():
    model = dataclasses.replace(task_model(), test_from=len(TRAIN))
    labels, method = LABELS[TRAIN], METHODS["self_training"]
    folds = [(np.arange(5, len(TRAIN)), np.arange(5))]
    trials = method.search(model, TRAIN, labels, 0, folds)
    assert {trial["config"]["rounds"] for trial in trials} == {0}
    assert all(np.isfinite(trial["validation"]) for trial in trials)


def test_lora_shares_the_frozen_model():
    model = task_model()
    hparams = {"method": "lora", "learning_rate": 3e-2}
    fitted = METHODS["lora"].fit(model, TRAIN, LABELS[TRAIN], 0, hparams, num_steps=30).params
    assert "adapters" in fitted
    frozen = model.checkpoints[0]["layers"]
    assert all(fitted["model"]["layers"][name] is value for name, value in frozen.items())
    full = METHODS["full"].fit(model, TRAIN, LABELS[TRAIN], 0, hparams, num_steps=2).params
    assert "adapters" not in full
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), full["model"]["layers"], frozen)
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_each_method_has_its_cost():
    model = task_model()
    flops = {name: METHODS[name].flops(model, 20, {}) for name in METHODS}
    assert 0 == flops["prompt"] < flops["probe"] == flops["svc"] < flops["lora"]
    assert METHODS["full"].flops(model, 20, {"epochs": 8}) == 5 * flops["full"]
    assert flops["lora"] == pytest.approx(flops["full"] * 2 / 3)
    hparams = {"learning_rate": 1e-3}
    sizes = {
        name: METHODS[name].footprint(model, TRAIN, LABELS[TRAIN], hparams) for name in METHODS
    }
    assert sizes["lora"].state_bytes < sizes["full"].state_bytes
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params()))
    assert sizes["probe"].state_bytes == sizes["prompt"].state_bytes == weights
    assert sizes["prompt"].trained_params == 0
    # One vector and a bias for two classes, every hidden state.
    assert sizes["probe"].trained_params == (MODEL.num_layers + 2) * MODEL.d_model + 1


def test_parameters_kept_for_a_task():
    kept = {name: method.num_task_params(task_model()) for name, method in METHODS.items()}
    head, adapters = (MODEL.d_model + 1) * 2, 2 * 2 * (MODEL.d_model + MODEL.d_model)
    assert kept["full"] == head and kept["lora"] == head + adapters and kept["prompt"] == 0


def test_a_footprint_counts_what_is_trained():
    examples, labels = separable(8)
    start = params()
    everything = sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(start)
        if "token_head" not in jax.tree_util.keystr(path)
    )
    head = (MODEL.d_model + 1) * 2
    options = {"num_classes": 2, "pad_to": 8}
    config = FinetuneConfig(min_steps=2, batch_size=4)
    full = FinetuningRun(start, examples, labels, MODEL, config, seed=0, **options).footprint()
    assert full.trained_params == everything + head
    assert full.state_bytes == 20 * full.trained_params
    low = dataclasses.replace(config, lora=LoraConfig(rank=2))
    lora = FinetuningRun(start, examples, labels, MODEL, low, seed=0, **options).footprint()
    adapters = 2 * 2 * (MODEL.d_model + MODEL.d_model)
    assert lora.trained_params == adapters + head
    assert lora.state_bytes == 4 * everything + 20 * lora.trained_params
    assert full.program_bytes > 0 and lora.program_bytes > 0


def test_one_setting_of_fixed_length_needs_no_search():
    fixed = dataclasses.replace(FINETUNE, fixed_updates=4)
    only = METHODS["full"].only_setting(task_model(Recipe(fixed)), 16)
    (setting,) = METHODS["full"].search_space(Recipe(fixed))
    assert only == setting | {"epochs": 2}
    # It is the setting that a search would find.
    folds = [(np.arange(15), np.arange(15, 20))]
    (trial,) = METHODS["full"].search(task_model(Recipe(fixed)), TRAIN, LABELS[:20], 0, folds)
    assert trial["config"] == only
    for recipe in (Recipe(), Recipe(fixed, learning_rates=(1e-3, 3e-3))):
        assert METHODS["full"].only_setting(task_model(recipe), 16) is None
    for name in ("probe", "self_training"):
        assert METHODS[name].only_setting(task_model(Recipe(fixed)), 16) is None
