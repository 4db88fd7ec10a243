"""The arms that come with fm, an `ArmSpec` each, and how each is built for a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from fm.adaptation.methods import METHODS
from fm.evaluation.baselines import reads_unlabeled_beside
from fm.study.adaptation import Arm, ClassicalOrNetworkArm, EnsembleArm, ModelArm, RecipeChoiceArm
from fm.study.arm_spec import (
    IN_DOMAIN,
    JOINT,
    OUT_OF_DOMAIN,
    ArmContext,
    ArmSpec,
    CostAllocation,
    PlotStyle,
)
from fm.study.built_arm import BuiltArm
from fm.study.config import Recipe
from fm.study.load_published import load_published_arm
from fm.study.task import Task

# Most networks of the compute-matched ensemble.
MAX_ENSEMBLE = 8
# Task types with classical models that read a network's features and unlabeled examples.
HEAD_TASK_TYPES = ("classification", "regression", "multi_label")


def all_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """Returns all of the adaptation methods asked for."""
    return tuple(methods)


def training_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """Returns those of the methods that train the network; full fine-tuning if none does."""
    return tuple(name for name in methods if METHODS[name].updates_model) or ("full",)


def feature_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """Returns those of the methods that read frozen features; the linear probe if none does."""
    return tuple(name for name in methods if METHODS[name].reads_features) or ("probe",)


def _build_model_arm(
    corpus: str,
    *,
    pretrained: bool,
    choose_methods: Callable[[Sequence[str]], tuple[str, ...]] = all_methods,
) -> Callable[[Task, ArmContext], BuiltArm]:
    def build(task: Task, context: ArmContext) -> BuiltArm:
        methods, initial, arms = choose_methods(context.config.methods), {}, {}
        for name, variant in task.by_recipe.items():
            initial[name] = context.initial_model(variant, corpus, pretrained=pretrained)
            arms[name] = task.task_type.build_head(variant, initial[name], context, methods)
        first, *others = initial.values()
        arm = next(iter(arms.values())) if not others else RecipeChoiceArm(arms)
        return BuiltArm(
            arm, first.processor, first.runs, other_runs=tuple(each.runs for each in others)
        )

    return build


def _build_compute_matched_arm(task: Task, context: ArmContext) -> BuiltArm:
    """Builds an ensemble from scratch that costs as many FLOPs as pretraining in domain did."""
    pretrained = _build_model_arm(IN_DOMAIN, pretrained=True)(task, context)
    scratch = _build_model_arm(IN_DOMAIN, pretrained=False, choose_methods=training_methods)
    member = scratch(task, context).model_arm
    assert member is not None
    costs = pretrained.pretraining_costs()
    flops = sum(cost.flops for cost in costs) / len(costs)
    return BuiltArm(EnsembleArm(member, flops, MAX_ENSEMBLE), pretrained.processor)


def _build_classical_arm(task: Task, context: ArmContext) -> BuiltArm:
    return BuiltArm(task.task_type.build_baseline(task))


def _build_classical_unlabeled_arm(task: Task, context: ArmContext) -> BuiltArm:
    arm = task.task_type.build_unlabeled_baseline(task)
    assert arm is not None, f"no classical model of {task.task_type.name} reads unlabeled data"
    return BuiltArm(arm)


def _build_pretrained_with_classical_arm(task: Task, context: ArmContext) -> BuiltArm:
    """Builds the classical models that see the pretrained network's features beside their own.

    With as many labels as the recipe says, the network is fine-tuned as well, by the methods asked
    for that do so.
    """
    min_labels = task.config.recipe.finetune_beside_classical_from
    training = tuple(name for name in context.config.methods if METHODS[name].updates_model)
    # The method says which examples the network is given; it is not used to adapt it.
    method = "self_training" if reads_unlabeled_beside(task.modality) else "probe"
    build = _build_model_arm(IN_DOMAIN, pretrained=True, choose_methods=lambda methods: (method,))
    pretrained = build(task, context)

    def beside(network: Arm) -> Arm:
        assert isinstance(network, ModelArm)
        arm = task.task_type.build_unlabeled_baseline(task, network.model)
        assert arm is not None, f"no classical model of {task.task_type.name} reads unlabeled data"
        if not training or min_labels is None:
            return arm
        return ClassicalOrNetworkArm(arm, ModelArm(network.model, training), min_labels)

    arm = pretrained.arm
    if isinstance(arm, RecipeChoiceArm):
        arm = RecipeChoiceArm({name: beside(each) for name, each in arm.arms.items()})
    else:
        arm = beside(arm)
    return dataclasses.replace(pretrained, arm=arm)


def _trains_beside_classical(recipe: Recipe, num_labels: int) -> bool:
    min_labels = recipe.finetune_beside_classical_from
    return min_labels is not None and num_labels >= min_labels


def _build_published_arm(task: Task, context: ArmContext) -> BuiltArm:
    arm = context.loaded[task.name, "published"]
    return BuiltArm(arm, description=arm.model.description())


def _build_instruction_tuned_arm(task: Task, context: Any) -> BuiltArm:
    initial = context.initial_model(task, JOINT, pretrained=True)
    return BuiltArm(context.shared_instruction_arm(task), initial.processor, initial.runs)


BUILT_IN: tuple[ArmSpec, ...] = (
    ArmSpec(
        "scratch",
        title="training from scratch",
        description="Random initial weights, trained on the labeled examples only.",
        build=_build_model_arm(IN_DOMAIN, pretrained=False, choose_methods=training_methods),
        rivals=(),
        cost=CostAllocation(no_break_even_reason="the reference that other arms are compared with"),
        style=PlotStyle("#000000", (0, (5, 2)), "s"),
        experiments=("compare", "multitask"),
        follows_prompts=False,
        trains_network=lambda recipe, num_labels: True,
    ),
    ArmSpec(
        "random_features",
        title="a probe of random features",
        description="A network that is not trained at all: its random features are read by a "
        "simple classifier.",
        build=_build_model_arm(IN_DOMAIN, pretrained=False, choose_methods=feature_methods),
        rivals=(),
        cost=CostAllocation(no_break_even_reason="not pretrained"),
        style=PlotStyle("#888888", (0, (3, 1, 1, 1)), "d"),
        follows_prompts=False,
    ),
    ArmSpec(
        "self_training",
        title="self-training from scratch",
        description="Random initial weights, trained on the labeled examples and then on its own "
        "confident answers to the unlabeled ones.",
        build=_build_model_arm(
            IN_DOMAIN, pretrained=False, choose_methods=lambda methods: ("self_training",)
        ),
        corpus=IN_DOMAIN,
        rivals=(),
        cost=CostAllocation(no_break_even_reason="not pretrained"),
        style=PlotStyle("#7F3C8D", (0, (4, 1, 1, 1)), "p"),
        task_types=("classification",),
        follows_prompts=False,
        trains_network=lambda recipe, num_labels: True,
    ),
    ArmSpec(
        "scratch_compute_matched",
        title="an ensemble trained from scratch",
        description=f"As many networks trained from scratch as the FLOPs of pretraining pay for, "
        f"at most {MAX_ENSEMBLE}; their probabilities are averaged.",
        build=_build_compute_matched_arm,
        rivals=(),
        cost=CostAllocation(no_break_even_reason="not pretrained"),
        style=PlotStyle("#444444", (0, (1, 1)), "h"),
        task_types=("classification",),
        follows_prompts=False,
        matches_pretraining_cost=True,
        trains_network=lambda recipe, num_labels: True,
    ),
    ArmSpec(
        "in_domain",
        title="pretraining on your own unlabeled {data}",
        description="Pretrained on the task's own data without its labels, then trained on the "
        "same labeled examples.",
        build=_build_model_arm(IN_DOMAIN, pretrained=True),
        corpus=IN_DOMAIN,
        pretrained=True,
        cost=CostAllocation("per_modality"),
        style=PlotStyle("#0072B2", "-", "o"),
        experiments=("compare", "multitask"),
        follows_prompts=False,
        trains_network=lambda recipe, num_labels: True,
    ),
    ArmSpec(
        "in_domain_with_classical",
        title="pretraining together with a classical model",
        description="Features of the network pretrained on the task's own data, beside those of a "
        "classical model of the same unlabeled data, read by a simple classifier; or the network "
        "fine-tuned, where there are labels enough to see that it is better.",
        build=_build_pretrained_with_classical_arm,
        corpus=IN_DOMAIN,
        pretrained=True,
        cost=CostAllocation("per_modality"),
        style=PlotStyle("#004C7A", (0, (8, 1)), "H"),
        task_types=HEAD_TASK_TYPES,
        follows_prompts=False,
        trains_network=_trains_beside_classical,
    ),
    ArmSpec(
        "out_of_domain",
        title="pretraining on other {data}",
        description="Pretrained on other data of the same modality, then trained on the same "
        "labeled examples.",
        build=_build_model_arm(OUT_OF_DOMAIN, pretrained=True),
        corpus=OUT_OF_DOMAIN,
        pretrained=True,
        cost=CostAllocation("per_modality"),
        style=PlotStyle("#009E73", "-", "^"),
        follows_prompts=False,
        trains_network=lambda recipe, num_labels: True,
    ),
    ArmSpec(
        "joint",
        title="pretraining on all modalities together",
        description="Pretrained on the data of every modality at once, then trained on the same "
        "labeled examples.",
        build=_build_model_arm(JOINT, pretrained=True),
        corpus=JOINT,
        pretrained=True,
        rivals=("scratch", "in_domain", "classical"),
        cost=CostAllocation("shared"),
        style=PlotStyle("#CC79A7", "-", "D"),
        experiments=("multitask",),
        follows_prompts=False,
        trains_network=lambda recipe, num_labels: True,
    ),
    ArmSpec(
        "instruction_tuned",
        title="instruction tuning",
        description="One model tuned to follow written instructions on all tasks, then given the "
        "instruction of this one.",
        build=_build_instruction_tuned_arm,
        corpus=JOINT,
        pretrained=True,
        rivals=("scratch", "joint", "classical"),
        cost=CostAllocation("shared", tuning="shared"),
        style=PlotStyle("#56B4E9", (0, (7, 1, 1, 1)), "v"),
        experiments=("multitask",),
        needs_text=True,
    ),
    ArmSpec(
        "published",
        title="starting from published weights",
        description="Published weights, pretrained elsewhere, then trained on the same labeled "
        "examples; they may have seen these test items before.",
        build=_build_published_arm,
        load=lambda task, config: load_published_arm(task, config.methods),
        pretrained=True,
        cost=CostAllocation(
            "unknown", no_break_even_reason="pretrained by others, at a cost that is not known"
        ),
        style=PlotStyle("#8A7700", "-", "P"),
    ),
    ArmSpec(
        "classical",
        title="a classical model",
        description="No neural network: the best of a family, such as word and character counts or "
        "histograms of gradients with logistic regression or a support-vector classifier.",
        build=_build_classical_arm,
        rivals=("scratch",),
        cost=CostAllocation(
            is_network=False,
            no_break_even_reason="not a neural network: its FLOPs are not counted",
        ),
        style=PlotStyle("#E69F00", (0, (1, 1)), "X"),
        experiments=("compare", "multitask"),
    ),
    ArmSpec(
        "classical_unlabeled",
        title="a classical model with unlabeled {data}",
        description="No neural network: the same family and members that also learn from the "
        "unlabeled data, such as latent semantic analysis and label spreading.",
        build=_build_classical_unlabeled_arm,
        corpus=IN_DOMAIN,
        rivals=("scratch",),
        cost=CostAllocation(
            is_network=False,
            no_break_even_reason="not a neural network: its FLOPs are not counted",
        ),
        style=PlotStyle("#D55E00", (0, (5, 1, 1, 1)), "*"),
        task_types=HEAD_TASK_TYPES,
    ),
)
