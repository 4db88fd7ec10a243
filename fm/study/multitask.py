"""The study of one model for many tasks of several modalities, against a network for each task."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fm.adaptation.finetune import FinetuneConfig
from fm.adaptation.instruction_tuning import InstructionEncoder
from fm.data.datasets import Split, without
from fm.data.decontamination import DuplicateSearchResult, find_duplicates
from fm.data.media import layout_of
from fm.progress_lines import phase
from fm.study import ablations, analysis, artifacts, multitask_cost, run_dir
from fm.study.ablations import AblationContext
from fm.study.adaptation import Arm
from fm.study.arm_spec import IN_DOMAIN, JOINT
from fm.study.arms import arm_spec, build_arms, check_arms_have_text
from fm.study.built_arm import InitialModel
from fm.study.cells import CellExecutor
from fm.study.config import MultitaskConfig, TaskConfig
from fm.study.joint_pretraining import (
    Source,
    build_joint_processor,
    layouts_by_modality,
    modality_batch_sizes,
    pretrain_joint,
)
from fm.study.multitask_instructions import (
    InstructionTunedArm,
    InstructionTunedModels,
    build_instructed_task,
    changed_instruction_rows,
)
from fm.study.pretraining import describe_pretraining_attention
from fm.study.processing import Processor
from fm.study.runner import BaseStudy, run_study
from fm.study.stages import Stage, StagePlan
from fm.study.task import Task
from fm.study.task_registry import task_spec_or_default
from fm.study.tasks import check_test_items, prepare_task

# The claims of the study: arm, baseline, in words, and points behind that count as level.
CLAIMS = (
    ("joint", "scratch", "joint pretraining against distinct networks from scratch", None),
    ("joint", "in_domain", "joint pretraining against pretraining on one modality", 1.0),
    ("instruction_tuned", "joint", "one instruction-tuned model against a head per task", 2.0),
    (
        *("instruction_tuned", "scratch"),
        *("one instruction-tuned model against networks from scratch", None),
    ),
    ("joint", "classical", "joint pretraining against the classical baselines", None),
)
_SINGLE_TASK_ROWS = 16
_FOLLOWING = Stage("following", "instruction following: answers to changed instructions")


class MultitaskContext:
    """Pretrains and keeps the models that arms start from: one per modality, and one joint model.

    Models are pretrained when they are first asked for. The model of one modality is trained on
    exactly as many rows per step as that modality has in the joint mixture, for as many steps, so
    that both have seen the same amount of it.

    Attributes:
      config: of the study.
      out_dir: folder of the study.
      loaded: see `ArmContext`.
      tasks: all tasks.
      sources: their decontaminated training inputs.
      searches: by task, what decontamination found: in its own test items, then in others'.
      stages: of the study.
    """

    def __init__(
        self,
        config: MultitaskConfig,
        out_dir: pathlib.Path,
        loaded: dict[tuple[str, str], Any],
        tasks: Sequence[Task],
        sources: list[Source],
        searches: dict[str, list[DuplicateSearchResult]],
    ):
        self.config, self.out_dir, self.loaded, self.tasks = config, out_dir, loaded, tasks
        self.sources, self.searches = sources, searches
        self.stages = StagePlan()
        self._modality_models: dict[str, InitialModel] = {}
        self._processors: dict[str, Processor] = {}

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of the tasks."""
        return tuple(dict.fromkeys(source.modality for source in self.sources))

    def initial_model(self, task: Task, corpus: str, *, pretrained: bool) -> InitialModel:
        """Returns the joint model, or a modality's own model: pretrained, or fresh."""
        if corpus == JOINT:
            return self.joint_model
        if not pretrained:
            return InitialModel(self._processor(task.modality))
        return self.modality_model(task.modality)

    def pretraining_stage(self, task: Task, corpus: str) -> Stage:
        """Returns the stage that pretrains the model of a corpus."""
        return _pretraining(JOINT if corpus == JOINT else task.modality)

    def modality_model(self, modality: str) -> InitialModel:
        """Returns the model pretrained on one modality."""
        if modality not in self._modality_models:
            sources, recipe = self._single_modality(modality)
            processor = self._processor(modality)
            with self.stages.stage(_pretraining(modality)):
                run = pretrain_joint(
                    sources,
                    recipe,
                    processor,
                    seed=0,
                    out_dir=self.out_dir / "pretrained" / modality,
                    run_name=f"pretraining {modality}",
                )
            self._modality_models[modality] = InitialModel(processor, [run])
        return self._modality_models[modality]

    @functools.cached_property
    def joint_model(self) -> InitialModel:
        """The model pretrained on all modalities."""
        folder = self.out_dir / "pretrained" / JOINT
        processor = build_joint_processor(self.sources, self.config.joint, folder)
        with self.stages.stage(_pretraining(JOINT)):
            run = pretrain_joint(
                self.sources,
                self.config.joint,
                processor,
                seed=0,
                out_dir=folder,
                run_name="pretraining all",
            )
        return InitialModel(processor, [run])

    @functools.cached_property
    def instruction_models(self) -> InstructionTunedModels:
        """The models tuned on all tasks."""
        return self._instruction_models(
            self.joint_model, self.tasks, self.config.instruction_tuning, keeps_params=True
        )

    def shared_instruction_arm(self, task: Task) -> Arm:
        """Returns the arm of the models tuned on all tasks."""
        return InstructionTunedArm(self.instruction_models, task.name)

    def own_instruction_arm(self, task: Task, initial: InitialModel) -> Arm:
        """Returns the arm of a model tuned on one task, on its share of the joint examples."""
        shared = self.config.instruction_tuning
        num_examples = shared.min_steps * shared.batch_size / len(self.tasks)
        config = dataclasses.replace(
            shared,
            batch_size=_SINGLE_TASK_ROWS,
            min_steps=math.ceil(num_examples / _SINGLE_TASK_ROWS),
        )
        return InstructionTunedArm(self._instruction_models(initial, [task], config), task.name)

    def pretraining_runs(self) -> dict[tuple[str, str], InitialModel]:
        """Returns the pretrained models by arm and modality, the joint one for every modality."""
        models = {(IN_DOMAIN, name): model for name, model in self._modality_models.items()}
        if "joint_model" in self.__dict__:
            models |= {(JOINT, name): self.joint_model for name in self.modalities}
        return models

    def _processor(self, modality: str) -> Processor:
        if modality not in self._processors:
            sources, recipe = self._single_modality(modality)
            folder = self.out_dir / "pretrained" / modality
            self._processors[modality] = build_joint_processor(sources, recipe, folder)
        return self._processors[modality]

    def _single_modality(self, modality: str) -> tuple[list[Source], Any]:
        batch_sizes = modality_batch_sizes(self.sources, self.config.joint.batch_size)
        recipe = dataclasses.replace(self.config.joint, batch_size=batch_sizes[modality])
        return [source for source in self.sources if source.modality == modality], recipe

    def _instruction_models(
        self,
        initial: InitialModel,
        tasks: Sequence[Task],
        config: FinetuneConfig,
        *,
        keeps_params: bool = False,
    ) -> InstructionTunedModels:
        processor = initial.processor
        assert processor.tokenizer is not None, "instructions are text: they take a tokenizer"
        return InstructionTunedModels(
            checkpoint=initial.checkpoints[0] if initial.checkpoints else None,
            encoder=InstructionEncoder(
                processor.tokenizer, processor.model, self.config.max_instruction_length
            ),
            config=config,
            learning_rates=self.config.instruction_learning_rates,
            tasks={task.name: build_instructed_task(task, processor) for task in tasks},
            keeps_params=keeps_params,
        )


class MultitaskStudy(BaseStudy):
    """Study that compares one model trained jointly on many tasks with single-task networks."""

    family = "multitask"
    config: MultitaskConfig

    def __init__(self, config: MultitaskConfig, executor: CellExecutor | None = None):
        super().__init__(config, executor and _without_shared_models(executor))
        ablations.check_ablations(config.ablations, config.arms)

    def load(self):
        """Loads and checks all tasks, and what the joint model is pretrained on."""
        super().load()
        config = self.config
        check_arms_have_text(config.arms, {task.modality for task in self.tasks})
        if any(arm_spec(arm).needs_text for arm in config.arms):
            for task in self.tasks:
                classes = task.dataset.classes if task.task_type.predicts_classes else None
                task_spec_or_default(task.name).instruction(classes)
        self._sources, self._searches = build_sources(config, self.tasks)
        layouts_by_modality(self._sources)
        modality_batch_sizes(self._sources, config.joint.batch_size)

    def prepare(self, config: TaskConfig) -> Task:
        """Loads one task; pretraining sources are built from all tasks."""
        task = prepare_task(config, (IN_DOMAIN,), self.config.seeds, validated=True)
        check_test_items(task, self.config.seeds)
        return task

    def build_context(self, out_dir):
        """Returns the `MultitaskContext` that gives the arms their models."""
        return MultitaskContext(
            self.config, out_dir, self._loaded, self.tasks, self._sources, self._searches
        )

    def comparison_pairs(self, arms):
        """Returns the (arm, rival) pairs of the comparison table whose arm is pretrained."""
        return [pair for pair in super().comparison_pairs(arms) if arm_spec(pair[0]).pretrained]

    def add_artifacts(self, sections, task, arms, cells, context):
        """Adds a task's decontamination counts, model sizes and samples."""
        sections["decontamination"].append(
            analysis.duplicate_count_row(task.name, JOINT, *context.searches[task.name])
        )
        own = [
            built.arm
            for name, built in arms.items()
            if arm_spec(name).cost.is_network and arm_spec(name).cost.tuning == "per_task"
        ]
        sections.setdefault("sizes", [])
        if own:
            sections["sizes"].append(multitask_cost.size_row(task, own))
        if JOINT in arms:
            sections["samples"] += artifacts.continuation_sample_rows(
                task, context.joint_model, self.config.joint
            )

    def study_stages(self):
        """Returns the stages of instruction following and of the ablations."""
        arms = self.config.arms
        follows = [_FOLLOWING] if any(arm_spec(a).cost.tuning == "shared" for a in arms) else []
        return follows + [_ablation(name) for name in self.config.ablations]

    def add_study_sections(self, sections, context):
        """Adds instruction following, ablations, curves, pretraining runs, costs and claims."""
        config = self.config
        models = context.pretraining_runs()
        if any(arm_spec(arm).cost.tuning == "shared" for arm in config.arms):
            with context.stages.stage(_FOLLOWING), phase(_FOLLOWING.title, quiet=True):
                sections["instruction_following"] = changed_instruction_rows(
                    context.instruction_models, max(config.tasks[0].label_budgets), config.seeds
                )
        ablation_rows = []
        if config.ablations:
            shared = AblationContext.of_study(context)
            for name in config.ablations:
                with context.stages.stage(_ablation(name)):
                    sections[name] = ablations.run_ablation(ablations.ABLATIONS[name], shared)
            sections["ablations"] = [
                ablations.ABLATIONS[name].to_dict() for name in config.ablations
            ]
            ablation_rows = shared.pretrained_rows
        if (JOINT, context.modalities[0]) in models:
            processor = context.joint_model.processor
            sections["sizes"].append(multitask_cost.shared_model_size_row(processor.model))
            sections["attention"] = {
                modality: describe_pretraining_attention(
                    processor, modality, objective, config.joint
                )
                for modality, objective in config.joint.objectives
                if modality in context.modalities
            }
        sections["curves"] = artifacts.modality_curve_rows(models, dict(config.joint.objectives))
        runs = {
            JOINT if arm == JOINT else f"{arm}/{modality}": model.runs[0]
            for (arm, modality), model in models.items()
        }
        sections["pretrained"] = ablation_rows + [
            run_dir.pretrained_model_row(name, run) for name, run in runs.items()
        ]
        costs = multitask_cost.CostCalculator(sections, config.instruction_tuning)
        sections["amortized_cost"] = costs.amortized_cost_rows()
        sections["break_even"] = costs.break_even_rows()
        sections["claims"] = [
            {"arm": arm, "baseline": baseline, "text": text, "margin": margin}
            for arm, baseline, text, margin in CLAIMS
            if {arm, baseline} <= set(config.arms)
        ]

    def load_task_and_arms(self, out_dir, name):
        """Returns a task and its arms, except arms sharing a model, which no worker computes."""
        self.load()
        (task,) = (each for each in self.tasks if each.name == name)
        names = [arm for arm in self.config.arms if arm_spec(arm).cost.tuning != "shared"]
        arms = build_arms(task, self.build_context(out_dir), names)
        return task, {arm: built.arm for arm, built in arms.items()}


def _pretraining(model: str) -> Stage:
    title = "all modalities together" if model == JOINT else f"{model} alone"
    return Stage(("pretraining", model), f"pretraining on {title}")


def _ablation(name: str) -> Stage:
    return Stage(("ablation", name), f"ablation {name}")


def run_multitask(
    config: MultitaskConfig, out_dir: pathlib.Path, executor: CellExecutor | None = None
) -> dict[str, Any]:
    """Runs or resumes the multitask study in `out_dir`; returns its results.

    Cells are computed by `executor` but for those of arms that share one model over all tasks.
    """
    return run_study(MultitaskStudy(config, executor), out_dir)


def build_sources(
    config: MultitaskConfig, tasks: Sequence[Task]
) -> tuple[list[Source], dict[str, list[DuplicateSearchResult]]]:
    """Returns decontaminated pretraining sources, and near-duplicate searches by task.

    A source holds no near-duplicate of a test item of any task of its modality. Those of its own
    task's are gone already, so only those of others' are searched for.
    """
    weights = dict(config.weights)
    sources, searches = [], {}
    for task in tasks:
        others = [
            other.test for other in tasks if other.modality == task.modality and other is not task
        ]
        corpus, searches[task.name] = task.dataset.train, [task.decontamination[IN_DOMAIN]]
        if others:
            what = f"{task.name}: searching {len(corpus):,} examples for near-duplicates of others'"
            with phase(f"{what} test items"):
                search = find_duplicates(corpus, concatenate_inputs(others), task.modality)
            corpus = without(corpus, search.duplicate_idx)
            searches[task.name].append(search)
        layout = None
        if not task.is_text:
            info = task.dataset.info
            layout = layout_of(task.modality, info["shape"], info["rate"])
        weight = weights.get(task.name, 1.0)
        sources.append(Source(task.name, task.modality, corpus, weight, layout))
    return sources, searches


def concatenate_inputs(splits: Sequence[Split]) -> Split:
    """Returns one unlabeled split with the inputs and ids of all given splits, in order."""
    starts = np.cumsum([0, *map(len, splits)])

    def read(idx: np.ndarray) -> list[str] | np.ndarray:
        order = np.argsort(idx, kind="stable")
        inverse = np.argsort(order, kind="stable")
        per_split = np.split(idx[order], np.searchsorted(idx[order], starts[1:-1]))
        parts = [
            split.inputs(own - start)
            for split, own, start in zip(splits, per_split, starts, strict=False)
        ]
        if isinstance(parts[0], list):
            texts = [text for part in parts for text in part]
            return [texts[n] for n in inverse]
        return np.concatenate([np.asarray(part) for part in parts])[inverse]

    ids = tuple(each for split in splits for each in split.ids)
    return Split(None, ids, np.arange(len(ids)), read)


def _without_shared_models(executor: CellExecutor) -> CellExecutor:
    """Returns the executor without the cells of arms whose model is tuned on all tasks at once."""
    return lambda task, cells: executor(
        task, [cell for cell in cells if arm_spec(cell[0]).cost.tuning != "shared"]
    )
