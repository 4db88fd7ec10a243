import dataclasses

import jax
import numpy as np
import pytest

from fm.adaptation import methods
from fm.adaptation.finetune import FinetuneConfig, memory_footprint
from fm.adaptation.lora import LoraConfig
from fm.adaptation.methods import METHODS, extend_grid, method_of, num_trials, register_method
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
    l2_penalties: tuple[float, ...] = (0.03,)
    feature_scaling: str = "l2"


def task_model():
    return TaskModel([params()], MODEL, Recipe(), EXAMPLES, 30, 2, 20)


def test_built_in_methods():
    assert list(METHODS) == ["full", "probe", "lora", "prompt"]
    model = task_model()
    assert [name for name, method in METHODS.items() if method.supports(model)] == [
        "full",
        "probe",
        "lora",
    ]
    frozen = dataclasses.replace(model, trainable=False)
    assert [name for name, method in METHODS.items() if method.supports(frozen)] == ["probe"]
    assert all(method.description for method in METHODS.values())


def test_a_method_is_one_object(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", dict(METHODS))

    class HeadOnly(methods.Finetuning):
        name = "head"
        description = "trains a head for no steps"

    register_method(HeadOnly())
    (hparams,) = method_of({"method": "head"}).search_space(Recipe())
    assert hparams == {"method": "head", "learning_rate": 3e-3}
    with pytest.raises(ValueError, match="'head' is registered already"):
        register_method(HeadOnly())


@pytest.mark.parametrize("names", [(), ("full", "full"), ("magic",)])
def test_unknown_or_repeated_methods_are_refused(names):
    with pytest.raises(UserError, match=r"--adapt.*full, probe, lora, prompt"):
        methods.check_methods(names)


def test_trials_of_all_methods():
    assert num_trials(Recipe(), ("probe", "full")) == 2
    assert num_trials(Recipe(), METHODS, num_fewshot=(0, 4)) == 7


def test_a_grid_is_extended_above_and_below():
    assert extend_grid((10.0, 100.0), 3) == pytest.approx((10, 100, 10**2.5, 10**0.5, 10**3))
    assert extend_grid((10.0,), -2) == (10.0,)
    grid = METHODS["full"].search_space(Recipe(), num_trials=3)
    assert [hparams["method"] for hparams in grid] == ["full"] * 3
    assert len({hparams["learning_rate"] for hparams in grid}) == 3


@pytest.mark.parametrize("name", ["probe", "full", "lora"])
def test_each_method_fits_and_predicts(name):
    model, method = task_model(), METHODS[name]
    (hparams,) = method.search_space(model.recipe)
    fitted = method.fit(model, TRAIN, LABELS[TRAIN], 0, hparams)
    predictions = method.predict(model, fitted, model.test_idx)
    assert predictions.shape == (10,) and fitted.steps > 0
    folds = [(np.arange(10, 20), np.arange(10)), (np.arange(10), np.arange(10, 20))]
    (value,) = method.cross_validate(model, TRAIN, LABELS[TRAIN], 0, [hparams], folds)
    by_hand = [
        method.predict(model, method.fit(model, fit, LABELS[fit], 0, hparams), held_out)
        == LABELS[held_out]
        for fit, held_out in folds
    ]
    assert value == np.mean(by_hand)


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
    assert 0 == flops["prompt"] < flops["probe"] < flops["lora"]
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
    full = memory_footprint(start, examples, labels, MODEL, config, **options)
    assert full.trained_params == everything + head
    assert full.state_bytes == 16 * full.trained_params
    low = dataclasses.replace(config, lora=LoraConfig(rank=2))
    lora = memory_footprint(start, examples, labels, MODEL, low, **options)
    adapters = 2 * 2 * (MODEL.d_model + MODEL.d_model)
    assert lora.trained_params == adapters + head
    assert lora.state_bytes == 4 * everything + 16 * lora.trained_params
    assert full.program_bytes > 0 and lora.program_bytes > 0
