"""The arms of a study: one `ArmSpec` each. To add an arm, pass one more to `register_arm`.

An arm is a way to solve a task from labeled examples, named after what its model was pretrained
on. Everything else (labels, trials, test items) is the same for all arms.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from fm.adaptation.methods import METHODS
from fm.errors import UserError
from fm.evaluation.baselines import reads_unlabeled_beside
from fm.study.adaptation import (
    Arm,
    ClassicalOrNetworkArm,
    EnsembleArm,
    ModelArm,
    RecipeChoiceArm,
)
from fm.study.config import PublishedEncoderConfig, Recipe, StudyConfig
from fm.study.processing import Processor
from fm.study.published_arm import build_published_arm
from fm.study.published_encoder_arm import (
    PublishedEncoderTaskModel,
    build_published_encoder_arm,
    shrunk_inputs_line,
)
from fm.study.stages import StagePlan
from fm.study.task_types import HeadTaskType
from fm.study.tasks import Task
from fm.training.config import TrainResult

# The arm that label efficiency and compute cost are measured against.
REFERENCE_ARM = "scratch"
# Most networks of the compute-matched ensemble.
MAX_ENSEMBLE = 8
# Arms of fm 0.1, and what they are called now.
RENAMED_ARMS = {
    "self": "in_domain",
    "upstream": "out_of_domain",
    "imported": "published",
    "instructed": "instruction_tuned",
}
# What the model of a pretrained arm without a corpus was pretrained on, by others.
PUBLISHED_DATA = "published data"
# Task types with classical models that read a network's features and unlabeled examples.
HEAD_TASK_TYPES = ("classification", "regression", "multi_label")
# Pretraining corpora that `fm.study.tasks.prepare_task` decontaminates.
IN_DOMAIN, OUT_OF_DOMAIN, JOINT = "in_domain", "out_of_domain", "joint"


@dataclasses.dataclass(frozen=True, eq=False)
class InitialModel:
    """A model before adaptation: its processor and a pretraining run per seed (none if untrained).

    Attributes:
      processor: tokenizer and layouts.
      runs: pretraining runs, one per pretraining seed; empty for fresh parameters.
      given_params: pretrained parameters of which the runs are not known, instead of runs.
    """

    processor: Processor
    runs: Sequence[TrainResult] = ()
    given_params: Sequence[dict] = ()

    @property
    def checkpoints(self) -> list[dict]:
        """Pretrained parameters."""
        return [*self.given_params, *(run.params for run in self.runs)]


@dataclasses.dataclass(frozen=True)
class PretrainingCost:
    """FLOPs and CPU seconds of pretraining with one seed."""

    flops: float
    cpu_seconds: float


@dataclasses.dataclass(frozen=True, eq=False)
class BuiltArm:
    """An arm ready to adapt, with its pretraining runs, tokenizer and input layouts.

    Attributes:
      arm: see `fm.study.adaptation.Arm`.
      processor: tokenizer and layouts of its model, if it has one.
      runs: its pretraining runs, if any, one per pretraining seed; of several recipes those of the
        first.
      description: of a published model, JSON-able.
      other_runs: pretraining runs of each further recipe.
    """

    arm: Arm
    processor: Processor | None = None
    runs: Sequence[TrainResult] = ()
    description: dict[str, Any] | None = None
    other_runs: tuple[Sequence[TrainResult], ...] = ()

    @property
    def model_arm(self) -> ModelArm | None:
        """The arm that adapts its model, of several recipes that of the first; None without one."""
        arm = self.arm
        if isinstance(arm, RecipeChoiceArm):
            arm = next(iter(arm.arms.values()))
        return arm if isinstance(arm, ModelArm) else None

    def pretraining_costs(self) -> list[PretrainingCost]:
        """Returns what each pretraining seed cost, the sum over all recipes."""
        return [
            PretrainingCost(sum(run.flops for run in runs), sum(run.cpu_seconds for run in runs))
            for runs in zip(self.runs, *self.other_runs, strict=True)
        ]


class ArmContext(Protocol):
    """Protocol of what arms are built from: study config, output folder and initial models.

    Attributes:
      config: of the study.
      out_dir: folder of the study.
      loaded: by (task, arm), what `ArmSpec.load` returned.
      stages: of the study, with the number and time of each.
    """

    stages: StagePlan

    @property
    def config(self) -> StudyConfig: ...  # noqa: D102
    @property
    def out_dir(self) -> pathlib.Path: ...  # noqa: D102
    @property
    def loaded(self) -> dict[tuple[str, str], Any]: ...  # noqa: D102

    def initial_model(self, task: Task, corpus: str, *, pretrained: bool) -> InitialModel:
        """Returns the model of a corpus: pretrained on it, or fresh with its processor."""
        ...


@dataclasses.dataclass(frozen=True)
class CostAllocation:
    """How an arm's pretraining and tuning cost is shared among tasks.

    Attributes:
      pretraining: "none"; "per_modality" (shared by the tasks of a modality); "shared" (by all
        tasks); or "unknown" (paid by others).
      tuning: "per_task", or "shared" if one model is tuned for all tasks at once.
      is_network: whether its FLOPs and parameters are counted.
      no_break_even_reason: why there is no number of tasks from which pretraining pays off.
    """

    pretraining: str = "none"
    tuning: str = "per_task"
    is_network: bool = True
    no_break_even_reason: str = ""


@dataclasses.dataclass(frozen=True)
class PlotStyle:
    """Color, line style and marker of an arm in plots."""

    color: str = "#777777"
    linestyle: str | tuple[int, tuple[int, ...]] = ":"
    marker: str = "*"


@dataclasses.dataclass(frozen=True)
class ArmSpec:
    """Registry entry of a study arm: how it is named, built, compared, costed and plotted.

    Attributes:
      name: as in --arms and in results.
      title: the arm as the subject of a sentence; {data} stands for the task's kind of data.
      description: one sentence on what it learns from.
      build: builds the arm of a task.
      load: loads what is to be checked before anything is trained; the context keeps it.
      corpus: pretraining corpus, "in_domain", "out_of_domain" or "joint"; None if it has none.
      pretrained: whether its model learned anything before it sees labels.
      rivals: arms it is compared with; None for every arm without pretraining.
      cost: see `CostAllocation`.
      style: see `PlotStyle`; colors are Okabe and Ito's (2008), safe for color-blind readers.
      experiments: the experiments that offer it.
      task_types: names of the task types it can solve; empty for all.
      follows_prompts: whether it may support the adaptation method "prompt".
      needs_text: whether one of the study's tasks must be text, which gives its model a tokenizer.
      matches_pretraining_cost: whether it spends what pretraining costs another arm.
      trains_network: (recipe, number of labels) -> whether adapting it trains a network by
        gradient steps, for estimates of its time.
    """

    name: str
    title: str
    description: str
    build: Callable[[Task, Any], BuiltArm]
    load: Callable[[Task, StudyConfig], Any] | None = None
    corpus: str | None = None
    pretrained: bool = False
    rivals: tuple[str, ...] | None = None
    cost: CostAllocation = CostAllocation()
    style: PlotStyle = PlotStyle()
    experiments: tuple[str, ...] = ("compare",)
    task_types: tuple[str, ...] = ()
    follows_prompts: bool = True
    needs_text: bool = False
    matches_pretraining_cost: bool = False
    trains_network: Callable[[Recipe, int], bool] = lambda recipe, num_labels: False

    def to_dict(self) -> dict[str, Any]:
        """Returns what reports need to name, explain and draw the arm, JSON-able."""
        fields = {name: getattr(self, name) for name in ("name", "title", "description")}
        fields["rivals"] = rivals_of(self.name)
        corpus = (self.corpus or PUBLISHED_DATA) if self.pretrained else None
        return fields | {"pretrained_on": corpus} | dataclasses.asdict(self.style)

    @property
    def pretraining_corpus(self) -> str | None:
        """Returns the corpus that the study pretrains a model on for it, None if there is none."""
        if self.pretrained:
            return self.corpus
        return IN_DOMAIN if self.matches_pretraining_cost else None

    @property
    def is_published(self) -> bool:
        """Whether its model was pretrained by others, so that nobody has to pretrain for it."""
        return self.pretrained and self.corpus is None

    @property
    def depends_on_pretraining(self) -> bool:
        """Whether its results depend on how models are pretrained in the study."""
        return self.matches_pretraining_cost or (self.pretrained and not self.is_published)


ARMS: dict[str, ArmSpec] = {}


def register_arm(spec: ArmSpec) -> None:
    """Adds an arm to the registry, or replaces the one with the same name."""
    ARMS[spec.name] = spec


def arm_spec(name: str) -> ArmSpec:
    """Returns the registered `ArmSpec` with this name.

    Raises:
      UserError: there is none of that name.
    """
    if name not in ARMS:
        raise UserError(f"--arms: {name!r} is not an arm; must be some of {', '.join(ARMS)}")
    return ARMS[name]


def arm_names(experiment: str) -> tuple[str, ...]:
    """Returns the names of the arms available in an experiment, in display order."""
    return tuple(spec.name for spec in ARMS.values() if experiment in spec.experiments)


def check_arms(names: Sequence[str], experiment: str, methods: Sequence[str]) -> None:
    """Raises UserError if an arm is not in the experiment or supports none of the methods.

    Raises:
      UserError: an arm is unknown to the experiment, or supports none of the adaptation methods.
    """
    for name in names:
        if RENAMED_ARMS.get(name) in arm_names(experiment) and name not in ARMS:
            raise UserError(f"--arms: {name!r} is now called {RENAMED_ARMS[name]!r}")
        if name not in arm_names(experiment):
            raise UserError(
                f"--arms: {name!r} is not an arm of {experiment}; must be some of "
                f"{', '.join(arm_names(experiment))}"
            )
    own = [name for name in names if not ARMS[name].follows_prompts]
    if own and all(METHODS[method].published_models_only for method in methods):
        raise UserError(
            f"--adapt={','.join(methods)}: {', '.join(own)} cannot follow prompts; add probe, full "
            "or lora, or leave them out of --arms"
        )


def arms_without_text(names: Sequence[str], modalities: Collection[str]) -> list[str]:
    """Returns the arms that need a task of text, if none of the tasks' modalities is."""
    return [] if "text" in modalities else [name for name in names if arm_spec(name).needs_text]


def check_arms_have_text(names: Sequence[str], modalities: Collection[str]) -> None:
    """Raises UserError if an arm needs a task of text and there is none."""
    if lacking := arms_without_text(names, modalities):
        raise UserError(
            f"--arms: {', '.join(lacking)} reads instructions, which are text, and no task is; add "
            f"a task of text, or leave {', '.join(lacking)} out"
        )


def rivals_of(name: str) -> tuple[str, ...]:
    """Returns the arms that an arm is compared with, by default all without pretraining."""
    rivals = ARMS[name].rivals
    if rivals is not None:
        return rivals
    return tuple(spec.name for spec in ARMS.values() if not spec.pretrained and spec.name != name)


def comparison_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns (arm, rival) pairs: each named arm with each of its rivals named."""
    return [
        (name, rival)
        for rival in ARMS
        for name in names
        if rival in names and rival in rivals_of(name)
    ]


def build_arms(task: Task, context: ArmContext, names: Sequence[str]) -> dict[str, BuiltArm]:
    """Builds the named arms of a task by name; pretrains or loads their models."""
    return {name: arm_spec(name).build(task, context) for name in names}


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


def load_published_arm(task: Task, methods: Sequence[str], *, trainable: bool = False) -> ModelArm:
    """Returns an arm with the published pretrained model that a task's config names.

    Args:
      task: the task.
      methods: adaptation methods asked for.
      trainable: whether methods may train the model itself.

    Raises:
      UserError: there is no such model, it cannot be read, or it supports none of the methods.
    """
    config = task.config.published
    if config is None:
        raise UserError(f"the published arm of {task.name} needs a published model: --model=NAME")
    task_type = task.task_type
    assert isinstance(task_type, HeadTaskType), f"{task_type.name} has no label per example"
    target = task_type.target(len(task.dataset.classes))
    options: dict[str, Any] = {
        "methods": methods,
        "test_from": len(task.labeled_pool),
        "num_classes": target.num_outputs,
        "target": target,
        "truths": task_type.task_truths(task),
        "pad_to": max(task.config.label_budgets),
    }
    recipe = task.config.recipe
    if isinstance(config, PublishedEncoderConfig):
        rate = task.dataset.info.get("rate") if task.modality == "audio" else None
        options |= {"rate": rate, "trainable": trainable or config.finetuned}
        arm = build_published_encoder_arm(config, recipe, task.arrays(), **options)
        model, info = arm.model, task.dataset.info
        assert isinstance(model, PublishedEncoderTaskModel)
        line = shrunk_inputs_line(model.published, info["shape"], info.get("shrunk"))
        if task.modality != "audio" and line is not None:
            print(f"{task.name}: {line}", file=sys.stderr, flush=True)
        return arm
    return build_published_arm(config, recipe, task.texts(), trainable=trainable, **options)


def _build_instruction_tuned_arm(task: Task, context: Any) -> BuiltArm:
    initial = context.initial_model(task, JOINT, pretrained=True)
    return BuiltArm(context.shared_instruction_arm(task), initial.processor, initial.runs)


_BUILT_IN = (
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
for _spec in _BUILT_IN:
    register_arm(_spec)
