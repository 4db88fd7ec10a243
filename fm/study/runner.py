"""The run loop of every study: config in, results.json and predictions.csv out, resumable."""

from __future__ import annotations

import abc
import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from fm.adaptation.methods import METHODS
from fm.data.media import get_modality
from fm.errors import UserError
from fm.evaluation.design import check_design
from fm.progress_lines import phase, say
from fm.study import analysis, artifacts, comparisons, run_dir, test_slices
from fm.study.adaptation import Arm
from fm.study.arm_spec import ArmContext
from fm.study.arms import ARMS, arm_spec, build_arms, check_arms, comparison_pairs, describe_arm
from fm.study.built_arm import BuiltArm, InitialModel
from fm.study.cells import Cell, CellExecutor, missing_cells, run_cells
from fm.study.config import Recipe, StudyConfig, TaskConfig, config_hash
from fm.study.group_scores import group_score_rows
from fm.study.method_costs import method_cost_rows
from fm.study.pretraining import describe_pretraining_attention, pretrain_seeds
from fm.study.processing import Processor, build_processor, corpus_digest
from fm.study.stages import Stage, StagePlan
from fm.study.task import Task
from fm.study.tasks import check_test_items, corpus_size, prepare_task
from fm.study.transfer import transferred_run

Sections = dict[str, Any]
_STATISTICS = Stage("statistics", "statistics of the whole study")


class Study(Protocol):
    """Protocol of an experiment for `run_study`: its config, its data and its results."""

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Returns the config as JSON; a folder holds one config."""
        ...

    def load(self) -> None:
        """Loads and checks all data, before anything is written or trained."""
        ...

    def run(self, out_dir: pathlib.Path) -> Sections:
        """Computes what `out_dir` lacks and returns the sections of results.json."""
        ...


def run_study(
    study: Study, out_dir: pathlib.Path, accepted: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Runs or resumes a study in `out_dir`, or reads its results if finished; returns the results.

    Args:
      study: what is run.
      out_dir: its folder; nothing is written there before the data are accepted.
      accepted: called once they are.

    Returns:
      The results but for the headline.

    Raises:
      UserError: bad data or settings; or `out_dir` holds another study (names what differs).
    """
    start = time.perf_counter()
    config = study.to_dict()
    resumes = run_dir.check_existing_run(config, out_dir)
    if (out_dir / run_dir.RESULTS_FILE).exists():
        accepted()
        run_dir.init(config, out_dir)
        print(f"{out_dir} is finished; choose another --out to run it again")
        return run_dir.read_results(out_dir)
    if resumes:
        say(f"{out_dir}: resuming")
    study.load()
    accepted()
    run_dir.init(config, out_dir)
    sections = study.run(out_dir)
    return {
        "schema": run_dir.SCHEMA,
        "experiment": study.experiment,
        "config": config,
        "config_hash": config_hash(config),
        **run_dir.provenance(),
        **sections,
        "seconds": time.perf_counter() - start,
    }


class BaseStudy(abc.ABC):
    """Abstract base class of studies that compare arms (ways to get a model) on several tasks.

    Attributes:
      config: of the study.
      executor: computes cells elsewhere, if given.
      tasks: set by `load`.
    """

    def __init__(self, config: StudyConfig, executor: CellExecutor | None = None):
        check_arms(config.arms, self.family, config.methods)
        self.config, self.executor = config, executor
        self.tasks: list[Task] = []
        self._loaded: dict[tuple[str, str], Any] = {}

    # The experiment whose arms and task types are offered; an ablation offers those of "compare".
    family: str = "compare"

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return self.config.experiment

    def to_dict(self) -> dict[str, Any]:
        """Returns the config as JSON."""
        return self.config.to_dict()

    def load(self) -> None:
        """Loads and checks the data of all tasks."""
        self.tasks = [self.prepare(task) for task in self.config.tasks]
        for task in self.tasks:
            self._load_arms(task)

    def prepare(self, config: TaskConfig) -> Task:
        """Loads one task, with the corpora that its arms are pretrained on."""
        corpora = [ARMS[arm].corpus for arm in self.config.arms_of(config)]
        task = prepare_task(
            config,
            [each for each in corpora if each],
            self.config.seeds,
            validated=True,
        )
        check_test_items(task, self.config.seeds)
        if self.family not in task.task_type.experiments:
            raise UserError(
                f"--tasks: {task.name} is a {task.task_type.name} task, which only "
                f"{' and '.join(task.task_type.experiments)} runs"
            )
        return task

    def _load_arms(self, task: Task) -> None:
        for arm in self.config.arms_of(task.config):
            load = arm_spec(arm).load
            if load is not None:
                self._loaded[task.name, arm] = load(task, self.config)

    @abc.abstractmethod
    def build_context(self, out_dir: pathlib.Path) -> ArmContext:
        """Returns what gives the arms their models."""

    def run(self, out_dir: pathlib.Path) -> Sections:
        """Computes what `out_dir` lacks and returns the sections of results.json."""
        context = self.build_context(out_dir)
        context.stages = plan = StagePlan(self.plan_stages(context))
        own_hash = config_hash(self.to_dict())
        names = ("cells", "comparisons", "label_efficiency", "compute_cost", "decontamination")
        names += ("tasks", "curves", "samples", "mistakes", "methods", "pretrained")
        names += ("group_scores",)
        sections: Sections = {"attention": {}, **{name: [] for name in names}}
        done, scored, slices = [], [], {}
        for task in self.tasks:
            arms = self.build_arms(task, context)
            # A study that is stopped before it scores anything has not used the test items.
            slices[task.name] = test_slices.record(task, own_hash)
            missing = missing_cells(task, arms, out_dir / "cells")
            kind = "adapting", task.modality, task.task_type.name, tuple(arms)
            with plan.stage(_adapting(task, len(arms)), kind=kind, work=missing):
                cells = self.compute_cells(task, arms, out_dir)
            with plan.stage(_scoring(task)), phase(_scoring(task).title, quiet=True):
                scored.append(self._add_task(sections, task, arms, cells, context))
            done.append((task, cells, scored[-1][0]))
        self.add_study_sections(sections, context)
        pairs = {scores.task: own for scores, own in scored}
        with plan.stage(_STATISTICS), phase(_STATISTICS.title, quiet=True):
            sections |= comparisons.study_sections(
                [scores for scores, _ in scored],
                pairs,
                sections["label_efficiency"],
                still_improving={
                    task.name: {
                        (cell.arm, cell.num_labels) for cell in cells if cell.still_improving
                    }
                    for task, cells, _ in done
                },
                published=[name for name in self.config.arms if ARMS[name].is_published],
                primary=self.config.primary,
                margin=self.config.equivalence_margin,
            )
        sections["arms"] = [describe_arm(name) for name in ARMS if name in self.config.arms]
        sections["adaptation_methods"] = [
            {"name": method.name, "description": method.description} for method in METHODS.values()
        ]
        for row in sections["tasks"]:
            row["test_slice"] = slices[row["name"]]
        analysis.write_predictions(done, out_dir / run_dir.PREDICTIONS_FILE)
        return sections

    def plan_stages(self, context: Any) -> list[Stage]:
        """Returns the stages of the study in order; the tasks must be loaded."""
        stages = []
        for task in self.tasks:
            arms = self.config.arms_of(task.config)
            corpora = dict.fromkeys(arm_spec(arm).pretraining_corpus for arm in arms)
            stages += [
                context.pretraining_stage(variant, corpus)
                for corpus in corpora
                for variant in task.by_recipe.values()
                if corpus is not None
            ]
            stages += [_adapting(task, len(arms)), _scoring(task)]
        return [*stages, *self.study_stages(), _STATISTICS]

    def study_stages(self) -> list[Stage]:
        """Returns the stages of `add_study_sections`."""
        return []

    def build_arms(self, task: Task, context: ArmContext) -> dict[str, BuiltArm]:
        """Builds a task's arms by name; pretrains or loads their models."""
        return build_arms(task, context, self.config.arms_of(task.config))

    def compute_cells(
        self, task: Task, arms: Mapping[str, BuiltArm], out_dir: pathlib.Path
    ) -> list[Cell]:
        """Returns a task's cells; computes those that `out_dir` lacks."""
        return run_cells(
            task,
            {name: built.arm for name, built in arms.items()},
            out_dir / "cells",
            self.executor,
        )

    def _add_task(
        self,
        sections: Sections,
        task: Task,
        arms: dict[str, BuiltArm],
        cells: list[Cell],
        context: ArmContext,
    ) -> tuple[comparisons.TaskScores, list[tuple[str, str]]]:
        """Adds a task's sections; returns its scores and the (arm, rival) pairs to compare."""
        runs = {name: built.pretraining_costs() for name, built in arms.items() if built.runs}
        self.add_artifacts(sections, task, arms, cells, context)
        groups = interval_groups(task, self.config.seeds)
        scores = analysis.task_scores(cells, task, runs, groups)
        pairs = self.comparison_pairs(list(arms))
        steps_to_quality = analysis.steps_to_scratch_quality(cells, task)
        efficiency = comparisons.label_multiplier_rows(scores, steps_to_quality)
        sections["cells"] += analysis.cell_rows(cells, task, runs)
        sections["label_efficiency"] += efficiency
        sections["group_scores"] += group_score_rows(cells, task)
        sections["compute_cost"] += analysis.compute_cost_rows(
            cells, task, runs, efficiency, self.config.label_cost
        )
        descriptions = {
            name: built.description for name, built in arms.items() if built.description
        }
        sections["tasks"].append(task_row(task) | descriptions)
        return scores, pairs

    def comparison_pairs(self, arms: list[str]) -> list[tuple[str, str]]:
        """Returns the (arm, rival) pairs of the comparison table."""
        return comparison_pairs(arms)

    @abc.abstractmethod
    def add_artifacts(
        self,
        sections: Sections,
        task: Task,
        arms: dict[str, BuiltArm],
        cells: list[Cell],
        context: Any,
    ) -> None:
        """Adds curves, samples and the like of a task."""

    def add_study_sections(self, sections: Sections, context: Any) -> None:  # noqa: B027
        """Adds what is known only after all tasks."""

    def load_task_and_arms(self, out_dir: pathlib.Path, name: str) -> tuple[Task, dict[str, Arm]]:
        """Returns a task of a study under way and its arms, from the pretraining in `out_dir`."""
        task, arms = self.load_task_and_built_arms(out_dir, name)
        return task, {arm: built.arm for arm, built in arms.items()}

    def load_task_and_built_arms(
        self, out_dir: pathlib.Path, name: str
    ) -> tuple[Task, dict[str, BuiltArm]]:
        """Returns a task and its arms with their processors, see `load_task_and_arms`."""
        (config,) = (each for each in self.config.tasks if each.name == name)
        task = self.prepare(config)
        self._load_arms(task)
        return task, self.build_arms(task, self.build_context(out_dir))


@dataclasses.dataclass(eq=False)
class CompareContext:
    """Context for building a comparison's arms; pretrains one model per task, corpus and seed.

    Attributes:
      config: of the study.
      out_dir: folder of the study.
      loaded: see `ArmContext`.
      shared_dir: folder of pretraining runs that several studies share where recipe and corpus are
        equal; None for `out_dir`/pretrained.
      stages: of the study.
    """

    config: StudyConfig
    out_dir: pathlib.Path
    loaded: dict[tuple[str, str], Any] = dataclasses.field(default_factory=dict)
    shared_dir: pathlib.Path | None = None
    stages: StagePlan = dataclasses.field(default_factory=StagePlan)
    # Of the last task, by folder and recipe: arms share models, other tasks do not need them.
    _models: tuple[str, dict[tuple[pathlib.Path, Recipe], InitialModel]] = ("", {})

    def initial_model(self, task: Task, corpus: str, *, pretrained: bool) -> InitialModel:
        """Returns a corpus's model: pretrained on it once per seed, or fresh with its processor."""
        folder = self._folder(task, corpus)
        processor = self._processor(task, corpus, folder)
        if not pretrained:
            return InitialModel(processor)
        if self._models[0] != task.name:
            self._models = task.name, {}
        # Recipes that differ in what they take over from a pretraining run share its folder.
        key = folder, task.config.recipe
        if key not in self._models[1]:
            self._models[1][key] = self._pretrain(task, corpus, folder, processor)
        return self._models[1][key]

    def pretraining_stage(self, task: Task, corpus: str) -> Stage:
        """Returns the stage that pretrains the model of a corpus."""
        name = task.config.recipe.name
        title = f"{task.name}: pretraining {corpus} {name}".rstrip()
        if self.config.pretrain_seeds > 1:
            title += f", {self.config.pretrain_seeds} seeds"
        return Stage(("pretraining", task.name, corpus, name), title)

    def _pretrain(
        self, task: Task, corpus: str, folder: pathlib.Path, processor: Processor
    ) -> InitialModel:
        recipe, seeds = task.config.recipe, self.config.pretrain_seeds
        shapes = processor.model, processor.layouts, recipe.batch_size, recipe.seq_len
        begun = any((folder / name / "checkpoints").exists() for name in ("seed-0", "grid"))
        with self.stages.stage(
            self.pretraining_stage(task, corpus),
            kind=("pretraining", str((*shapes, recipe.objective))),
            work=0 if begun else seeds * recipe.steps,
        ):
            runs = pretrain_seeds(
                task.corpora.get(corpus, task.dataset.train),
                task.modality,
                recipe,
                processor,
                seeds=seeds,
                out_dir=folder,
                run_name=f"{task.name}: pretraining {corpus} {recipe.name}".rstrip(),
            )
        runs = [
            transferred_run(
                run,
                processor.model,
                folder / f"seed-{seed}",
                how=recipe.transfer,
                step=recipe.transfer_step,
                seed=seed,
            )
            for seed, run in enumerate(runs)
        ]
        return InitialModel(processor, runs)

    def _folder(self, task: Task, corpus: str) -> pathlib.Path:
        recipe = task.config.recipe
        if self.shared_dir is None:
            name = f"{task.name}-{corpus}" + (f"-{recipe.name}" if recipe.name else "")
            return self.out_dir / "pretrained" / name
        split = task.corpora.get(corpus, task.dataset.train)
        identity = {"corpus": corpus_digest(split), "seeds": self.config.pretrain_seeds}
        key = config_hash(recipe.pretraining_fields() | identity)
        return self.shared_dir / f"{task.name}-{key}"

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def _processor(self, task: Task, corpus: str, folder: pathlib.Path) -> Processor:
        split = task.corpora.get(corpus, task.dataset.train)
        rate = task.dataset.info.get("rate")
        return build_processor(split, task.modality, task.config.recipe, folder, rate)


class CompareStudy(BaseStudy):
    """The main study: compares pretraining with training from scratch, task by task."""

    def __init__(
        self,
        config: StudyConfig,
        executor: CellExecutor | None = None,
        shared_dir: pathlib.Path | None = None,
    ):
        super().__init__(config, executor)
        self._shared_dir = shared_dir

    def build_context(self, out_dir):
        """Returns the `CompareContext` that gives the arms their models."""
        return CompareContext(self.config, out_dir, self._loaded, self._shared_dir)

    def add_artifacts(self, sections, task, arms, cells, context):
        """Adds a task's curves, samples, mistakes, pretraining runs and costs of methods."""
        sections["curves"] += artifacts.pretraining_curves(task, arms)
        sections["decontamination"] += analysis.duplicate_count_rows(task, list(arms))
        sections["samples"] += artifacts.generated_sample_rows(task, arms)
        sections["mistakes"] += artifacts.mistake_rows(task, cells)
        sections["pretrained"] += [
            run_dir.pretrained_model_row(
                "/".join(filter(None, (task.name, arm, recipe, seed))), run
            )
            for arm, built in arms.items()
            for recipe, runs in zip(task.by_recipe, (built.runs, *built.other_runs), strict=False)
            for seed, run in zip(map(str, itertools.count()), runs, strict=False)
        ]
        sections["methods"] += method_cost_rows(task, arms, self.config.methods)
        for built in arms.values():
            if built.processor is not None and built.model_arm is not None:
                recipe = task.config.recipe
                sections["attention"][task.name] = describe_pretraining_attention(
                    built.processor, task.modality, recipe.objective, recipe
                )


def run_compare(
    config: StudyConfig,
    out_dir: pathlib.Path,
    executor: CellExecutor | None = None,
    shared_dir: pathlib.Path | None = None,
    accepted: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Runs or resumes a comparison of arms in `out_dir`; returns its results.

    Args:
      config: of the study.
      out_dir: its folder.
      executor: computes cells elsewhere, if given.
      shared_dir: see `CompareContext`.
      accepted: called once the data are accepted, before anything is written.
    """
    return run_study(CompareStudy(config, executor, shared_dir), out_dir, accepted)


def _adapting(task: Task, arms: int) -> Stage:
    budgets = ", ".join(f"{budget:,}" for budget in task.config.label_budgets)
    return Stage(("adapting", task.name), f"{task.name}: adapting {arms} arms at {budgets} labels")


def _scoring(task: Task) -> Stage:
    return Stage(("scoring", task.name), f"{task.name}: scores, intervals and samples")


def _majority_rate(task: Task) -> float | None:
    """Returns the share of the test items of the most frequent class; None without classes."""
    if not task.task_type.predicts_classes:
        return None
    return float(np.bincount(np.asarray(task.test.labels)).max() / len(task.test))


def interval_groups(task: Task, seeds: int) -> list[str] | None:
    """Returns the group of each test item, for intervals over groups; None if items stand alone.

    Too few or too unequal groups give no intervals that hold; a line says so.
    """
    if task.item_groups is None:
        return None
    groups = task.item_groups.tolist()
    try:
        check_design(seeds, groups=groups)
    except UserError as error:
        reason = str(error)
        if not task.config.item_group:  # the data's own groups: nobody gave the flag
            reason = reason.removeprefix("--item_group: ").partition("; takes a column")[0]
        say(f"{task.name}: intervals take items as independent: {reason}")
        return None
    return groups


def task_row(task: Task) -> dict[str, Any]:
    """Returns a task's row of results.json: data set, metric and sizes."""
    info, noun = task.dataset.info, get_modality(task.modality).noun
    return {
        "name": task.name,
        "title": task.name.replace("_", " ").capitalize(),
        "modality": task.modality,
        "data_noun": noun if task.is_text else f"{noun}s",
        "task_type": task.task_type.name,
        "classes": list(task.dataset.classes),
        "majority_rate": _majority_rate(task),
        "metric": task.task_type.metric,
        "train": len(task.dataset.train),
        "test": len(task.test),
        "test_available": len(task.dataset.test),
        "out_of_domain_dataset": task.config.out_of_domain_dataset,
        "item_group": info.get("item_group"),
        "corpora": {name: corpus_size(corpus) for name, corpus in task.corpora.items()},
        "shrunk": info.get("shrunk"),
        **{key: info[key] for key in ("description", "licence", "fingerprint", "split")},
        **_target_field(task),
    }


def _target_field(task: Task) -> dict[str, str]:
    """Returns what a label is, where it is not one class."""
    target = task.task_type.target(len(task.dataset.classes))
    return {} if target is None or target.predicts_classes else {"target": target.kind}
