"""Arms: the registry, the pairs compared, and the methods each may use."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from fm.adaptation.methods.finetuning import SELF_TRAINING_ROUNDS
from fm.adaptation.targets import ClassTarget
from fm.errors import UserError
from fm.evaluation.model_selection import select_trial
from fm.report.schema import Arm
from fm.study.adaptation import ClassicalOrNetworkArm
from fm.study.arms import (
    ARMS,
    arm_names,
    build_arms,
    check_arms,
    comparison_pairs,
    describe_arm,
    rivals_of,
)
from fm.study.config import StudyConfig
from fm.study.runner import CompareContext
from fm.study.tasks import prepare_task
from tests.study.helpers_multitask import datasets
from tests.study.helpers_study import config, loads, recipe


@pytest.fixture
def task(monkeypatch):
    loads(monkeypatch, *datasets())
    return prepare_task(config("names", label_budgets=(8,)), (), 1)


def build(task, tmp_path, names=("scratch", "classical"), methods=("probe", "full")):
    study = StudyConfig(tasks=(task.config,), arms=("scratch", "classical"), methods=methods)
    return build_arms(task, CompareContext(study, tmp_path), names)


@pytest.mark.parametrize(
    ("methods", "trained", "frozen"),
    [
        (("probe", "full", "lora"), ("full", "lora"), ("probe",)),
        (("probe",), ("full",), ("probe",)),
        (("full",), ("full",), ("probe",)),
    ],
)
def test_scratch_trains_its_network_and_random_features_do_not(
    task, tmp_path, methods, trained, frozen
):
    arms = build(task, tmp_path, ("scratch", "random_features"), methods)
    assert arms["scratch"].arm.methods == trained
    assert arms["random_features"].arm.methods == frozen


@pytest.mark.slow
def test_self_training_reads_what_other_seeds_label_where_nothing_else_is_left(
    monkeypatch, tmp_path
):
    loads(monkeypatch, *datasets())
    monkeypatch.setattr("fm.study.task.MAX_UNLABELED", 1)
    task = prepare_task(config("halves", label_budgets=(8,), recipe=recipe("image")), (), 2)
    assert len(task.labeled_pool) > 8 and not len(task.unlabeled_idx)
    arm = build(task, tmp_path, ("self_training",))["self_training"].arm
    rows, labels = task.pool_rows(task.train_idx[0]), task.strata[task.train_idx[0]]
    rounds = {trial["config"]["rounds"] for trial in arm.search(rows, labels, 0)}
    assert rounds == set(range(SELF_TRAINING_ROUNDS + 1))


@pytest.mark.parametrize(("name", "modality"), [("fruit", "text"), ("halves", "image")])
@pytest.mark.slow
def test_the_network_beside_classical_models_is_given_unlabeled_examples_they_ask_for(
    monkeypatch, tmp_path, name, modality
):
    seen = []
    monkeypatch.setattr(
        "fm.study.head_task_types.build_network_beside_classical_arm",
        lambda *about: seen.append(about[-2]) or about[-2],
    )
    loads(monkeypatch, *datasets())
    task = prepare_task(config(name, label_budgets=(8,), recipe=recipe(modality)), (), 1)
    build(task, tmp_path, ("in_domain_with_classical",))
    assert len(task.unlabeled_idx) and bool(len(seen[0].unlabeled_idx)) == (modality == "image")


class Fixed:
    """An arm of one setting with a fixed validation score, which predicts its own number."""

    def __init__(self, number, validation, **config):
        self.number, self.trial = number, {"config": config, "validation": validation}
        # The network's model gives the standard error of a share.
        self.model = SimpleNamespace(standard_error=ClassTarget(2).standard_error)

    def search(self, train_idx, labels, seed):
        return [self.trial]

    def fit_predict(self, train_idx, labels, seed, hparams):
        return self.number

    def fit_flops(self, num_labels, hparams):
        return float(self.number)


@pytest.mark.parametrize(
    ("labels", "network", "chosen"),
    [
        (20, 1.0, 1),
        # Of 25 held-out examples, 0.8 has a standard error of 0.08.
        (100, 0.79, 1),
        (100, 0.8, 1),
        (100, 0.9, 2),
    ],
)
def test_network_is_taken_in_place_of_a_classical_model_where_it_is_clearly_better(
    labels, network, chosen
):
    arm = ClassicalOrNetworkArm(
        Fixed(1, 0.75, member="words"), Fixed(2, network, method="full"), min_labels=100
    )
    classes, idx = np.arange(labels) % 2, np.arange(labels)
    trials = arm.search(idx, classes, 0)
    assert len(trials) == (1 if labels < 100 else 2)
    hparams = select_trial(trials)["config"]
    assert hparams["method"] == ("classical" if chosen == 1 else "full")
    assert arm.fit_predict(idx, classes, 0, hparams) == arm.fit_flops(labels, hparams) == chosen


@pytest.mark.parametrize(
    ("min_labels", "methods", "training"),
    [
        (20, ("probe", "full", "lora"), ("full", "lora")),
        (20, ("probe",), ()),
        (None, ("probe", "full"), ()),
    ],
)
def test_network_beside_classical_models_is_trained_where_recipe_and_methods_say_so(
    monkeypatch, tmp_path, min_labels, methods, training
):
    loads(monkeypatch, *datasets())
    own = dataclasses.replace(recipe("image"), finetune_beside_classical_from=min_labels)
    task = prepare_task(config("halves", label_budgets=(8,), recipe=own), (), 1)
    built = build(task, tmp_path, ("in_domain_with_classical",), methods)
    arm = built["in_domain_with_classical"].arm
    assert isinstance(arm, ClassicalOrNetworkArm) == bool(training)
    if training:
        assert arm.network.methods == training and arm.min_labels == min_labels


def test_ner_arm_predicts_the_counts_of_each_sentence(task, tmp_path):
    built = build(task, tmp_path)["scratch"]
    model = built.arm.model
    assert model.num_classes == 3 and model.recipe.finetune.feature_config.pooling == "each"
    assert model.test_from == len(task.labeled_pool) == 8
    train_idx = task.train_idx[0]
    rows, strata = task.pool_rows(train_idx), task.strata[train_idx]
    for trial in built.arm.search(rows, strata, 0):
        predictions = built.arm.fit_predict(rows, strata, 0, trial["config"]).values
        assert predictions.shape == (len(task.test), 3)
        np.testing.assert_array_equal(predictions[:, 2], np.ones(len(task.test)))
        assert np.all(predictions[:, 0] <= predictions[:, 1:].min(axis=1))
    assert not built.runs


def test_arms_of_published_models_are_those_that_others_pretrained():
    assert [name for name, spec in ARMS.items() if spec.is_published] == ["published"]
    for name, spec in ARMS.items():
        shown = Arm(name, pretrained_on=describe_arm(name)["pretrained_on"])
        assert shown.is_published == spec.is_published


def test_experiments_offer_their_arms_in_order():
    compare = (
        *("scratch", "random_features", "self_training", "scratch_compute_matched"),
        *("in_domain", "in_domain_with_classical", "out_of_domain", "published"),
        *("classical", "classical_unlabeled"),
    )
    assert arm_names("compare") == compare
    multitask = "scratch", "in_domain", "joint", "instruction_tuned", "classical"
    assert arm_names("multitask") == multitask


def test_pairs_are_those_of_the_specs():
    pairs = comparison_pairs(["scratch", "in_domain", "classical"])
    assert pairs == [
        ("in_domain", "scratch"),
        ("classical", "scratch"),
        ("in_domain", "classical"),
    ]
    assert ("joint", "in_domain") in comparison_pairs(["in_domain", "joint"])
    assert set(rivals_of("joint")) <= set(ARMS)
    rivals = {name for name in ARMS if not ARMS[name].pretrained}
    assert set(rivals_of("in_domain")) == rivals > {"scratch", "classical_unlabeled"}


def test_unknown_arms_and_arms_without_a_method_are_refused():
    with pytest.raises(UserError, match="'magic' is not an arm of compare; must be some of scra"):
        check_arms(("scratch", "magic"), "compare", ("probe",))
    with pytest.raises(UserError, match="'out_of_domain' is not an arm of multitask"):
        check_arms(("scratch", "out_of_domain"), "multitask", ("probe",))
    with pytest.raises(UserError, match="scratch cannot follow prompts"):
        check_arms(("scratch", "published"), "compare", ("prompt",))


def test_which_arms_depend_on_how_models_are_pretrained():
    assert {name for name, spec in ARMS.items() if spec.depends_on_pretraining} == {
        *("scratch_compute_matched", "in_domain", "in_domain_with_classical", "out_of_domain"),
        *("joint", "instruction_tuned"),
    }
