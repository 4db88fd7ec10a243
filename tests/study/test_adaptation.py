"""The methods of a network arm: which settings each has, and that each one learns."""

import jax
import numpy as np
import pytest

from fm.adaptation.lora import LoraConfig
from fm.errors import UserError
from fm.study.adaptation import NetworkArm, extend_grid
from fm.study.config import StudyConfig
from tests.adaptation.helpers_models import MODEL, params, separable
from tests.study.helpers_study import config, recipe

ROWS, LABELS = separable(40)
RECIPE = recipe("text", adapters=LoraConfig(rank=2), lora_learning_rates=(3e-2,))


def network(adapt=("probe", "full", "lora"), trials=0):
    return NetworkArm([params()], MODEL, RECIPE, ROWS, 30, 2, 20, adapt, trials)


@pytest.mark.parametrize("adapt", [("probe",), ("full",), ("lora",), ("lora", "probe", "full")])
def test_the_settings_are_those_of_the_methods_asked_for(adapt):
    made = network(adapt)
    assert {each["adapt"] for each in made.grid()} == set(adapt)
    trials = made.validate(np.arange(16), LABELS[:16], 0)
    assert [trial["config"] for trial in trials] == made.grid()
    assert all(0 <= trial["validation"] <= 1 for trial in trials)


def test_where_others_try_prompts_it_tries_more_of_its_own():
    made = network(("full", "prompt"), RECIPE.num_trials(("full", "prompt")))
    rates = [each["learning_rate"] for each in made.grid()]
    assert len(rates) == 3 == len(set(rates)) and rates[0] == RECIPE.learning_rates[0]
    assert extend_grid((10.0, 100.0), 3) == pytest.approx((10, 100, 10**2.5, 10**0.5, 10**3))


def test_lora_shares_the_base_and_learns():
    made = network()
    setting = {"adapt": "lora", "learning_rate": 3e-2}
    tuned = made.tune(np.arange(20), LABELS[:20], 0, setting, steps=30)
    assert "adapters" in tuned
    base = made.checkpoints[0]["layers"]
    assert all(tuned["model"]["layers"][name] is each for name, each in base.items())
    full = made.tune(np.arange(20), LABELS[:20], 0, setting | {"adapt": "full"}, steps=2)
    assert "adapters" not in full
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), full["model"]["layers"], base)
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_each_method_has_its_cost():
    made = network()
    costs = {each["adapt"]: made.fit_flops(20, each) for each in made.grid()}
    assert 0 < costs["probe"] < costs["lora"] == pytest.approx(costs["full"] * 2 / 3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"adapt": ("magic",)}, "--adapt: 'magic' is not known; accepted are full, probe, lora"),
        ({"adapt": ()}, "--adapt=: takes at least one"),
        ({"adapt": ("full", "full")}, "none twice"),
        ({"adapt": ("prompt",), "arms": ("scratch", "in_domain")}, "scratch, self cannot follow"),
        ({"arms": ("published", "classical")}, "fruit has but classical"),
    ],
    ids=str,
)
def test_a_study_that_cannot_be_is_refused(changes, says):
    tasks = (config(without=("published",)),)
    with pytest.raises(UserError, match=says):
        StudyConfig(**{"experiment": "test", "tasks": tasks} | changes)


def test_the_arms_of_a_task():
    one, other = config("a", without=("published", "out_of_domain")), config("b")
    study = StudyConfig("test", (one, other))
    assert study.arms_of(one) == ("scratch", "in_domain", "classical")
    assert study.arms_of(other) == study.arms
