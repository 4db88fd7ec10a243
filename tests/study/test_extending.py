"""A task, task type, arm, method, recipe and ablation registered from outside, in one study."""

import dataclasses

import numpy as np
import pytest

from fm.adaptation.methods import METHODS, AdaptationMethod, LinearProbing, register_method
from fm.study import ablations, arms, presets, task_registry, task_types
from fm.study.ablations import Ablation, Variant, register_ablation
from fm.study.adaptation import Predictions
from fm.study.analysis import merge_studies
from fm.study.arm_spec import ArmSpec
from fm.study.arms import register_arm
from fm.study.built_arm import BuiltArm
from fm.study.config import StudyConfig
from fm.study.head_task_types import Classification
from fm.study.presets import register_recipe, task_recipe
from fm.study.runner import run_compare
from fm.study.task_registry import TaskSpec, register_task, task_spec_or_default
from fm.study.task_types import register_task_type
from tests.study.helpers_study import config, dataset, loads, recipe


class MajorityArm:
    """Predicts the most frequent label."""

    def __init__(self, num_test):
        self.num_test = num_test

    def prepare(self, seeds):
        return 0.0

    def search(self, train_idx, labels, seed):
        return [{"config": {"method": "majority"}, "validation": None}]

    def fit_predict(self, train_idx, labels, seed, hparams):
        return Predictions(np.full(self.num_test, np.bincount(labels).argmax()))

    def fit_flops(self, num_labels, hparams):
        return 0.0


class BinaryClassification(Classification):
    """Two classes, under another name and metric."""

    name, metric = "binary", "hit rate"

    def matches(self, dataset):
        return super().matches(dataset) and len(dataset.classes) == 2


class StrongProbe(LinearProbing):
    """A linear probe with one strong penalty."""

    name, description = "strong_probe", "linear probe, strongly regularized"

    search = AdaptationMethod.search

    def search_space(self, recipe, *, num_fewshot=(0,)):
        return [{"method": self.name, "scale": "standardise", "class_weight": None, "l2": 1e4}]


@pytest.fixture
def registries():
    """Restores every registry after a test."""
    every = (
        task_registry.TASKS,
        task_types.TASK_TYPES,
        arms.ARMS,
        ablations.ABLATIONS,
        presets.RECIPES,
        METHODS,
    )
    before = [dict(registry) for registry in every]
    yield
    for registry, content in zip(every, before, strict=True):
        registry.clear()
        registry.update(content)


def test_a_study_of_registered_parts(registries, monkeypatch, tmp_path):
    built_in = dict(task_types.TASK_TYPES)
    task_types.TASK_TYPES.clear()
    register_task_type(BinaryClassification())
    task_types.TASK_TYPES.update(built_in)
    register_method(StrongProbe())
    register_arm(
        ArmSpec(
            "majority",
            title="the majority class",
            description="Predicts the most frequent label.",
            build=lambda task, context: BuiltArm(MajorityArm(len(task.test))),
            rivals=("random_features",),
        )
    )
    register_arm(
        ArmSpec(
            "encoder",
            title="an encoder of others",
            description="Stands for a model that others pretrained.",
            build=lambda task, context: BuiltArm(MajorityArm(len(task.test))),
            pretrained=True,
            rivals=(),
        )
    )
    register_task(TaskSpec("ripeness", dataset="fruit", answers=("ripe", "green")))
    register_recipe("text", lambda profile: recipe("text"))
    loads(monkeypatch, dataset())

    spec = task_spec_or_default("ripeness")
    assert spec.instruction(("a", "b")).answers == ("ripe", "green")
    study = StudyConfig(
        tasks=(config(dataset=spec.dataset, name=spec.name, recipe=task_recipe("text", "binary")),),
        arms=("random_features", "majority", "encoder"),
        seeds=2,
        methods=("probe", "strong_probe"),
    )
    results = run_compare(study, tmp_path / "out")

    assert {row["arm"] for row in results["cells"]} == {"random_features", "majority", "encoder"}
    assert {row["metric"] for row in results["cells"]} == {"hit rate"}
    assert results["tasks"][0]["name"] == "ripeness"
    assert results["tasks"][0]["task_type"] == "binary"
    tried = {
        trial["config"]["method"]
        for row in results["cells"]
        if row["arm"] == "random_features"
        for trial in row["trials"]
    }
    assert tried == {"probe", "strong_probe"}
    pairs = {(row["arm"], row["baseline"]) for row in results["comparisons"]}
    assert pairs == {("majority", "random_features")}
    # Nobody has to pretrain for it: it is no pretraining of one's own.
    assert {row["best_pretrained"] for row in results["decisions"]} == {None}
    assert None not in {row["published_value"] for row in results["decisions"]}
    assert "majority" in [arm["name"] for arm in results["arms"]]
    assert "strong_probe" in [method["name"] for method in results["adaptation_methods"]]
    assert "strong_probe" in METHODS


@pytest.mark.slow
def test_a_registered_ablation_of_configs(registries, monkeypatch, tmp_path):
    loads(monkeypatch, dataset())

    def variants(base):
        task = base.tasks[0]
        return {
            name: Variant(
                config=dataclasses.replace(
                    base,
                    tasks=(
                        dataclasses.replace(
                            task, recipe=dataclasses.replace(task.recipe, l2_penalties=(penalty,))
                        ),
                    ),
                )
            )
            for name, penalty in (("weak", 1e-3), ("strong", 1e5))
        }

    register_ablation(Ablation("probe_penalty", "Penalty", variants, of_configs=True))
    assert ablations.ablation_names(of_configs=True)[-1] == "probe_penalty"
    base = StudyConfig(
        tasks=(config(),),
        arms=("random_features", "classical"),
        seeds=2,
        methods=("probe",),
    )
    folders, results = {}, {}
    for name, variant in ablations.ABLATIONS["probe_penalty"].variants(base).items():
        folders[name] = tmp_path / name
        results[name] = run_compare(variant.config, folders[name])
    merged = merge_studies("probe_penalty", results, folders)
    assert merged["experiment"] == "ablate probe_penalty"
    assert "classical" in {row["arm"] for row in merged["cells"]}
