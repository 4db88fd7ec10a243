"""The arms of a task: each named for what it was fed, all else the same."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from fm.adaptation import methods as adaptation_methods
from fm.adaptation.batching import TokenizedExamples, continuous_examples, text_examples
from fm.adaptation.task_model import TaskModel
from fm.adaptation.token_classification import PER_TOKEN, TaggingModel, tokenize_words
from fm.errors import UserError
from fm.evaluation import baselines
from fm.study.adaptation import Arm, ClassicalArm, ModelArm
from fm.study.config import DEFAULT_METHODS
from fm.study.ner_arms import ClassicalNerArm, words_and_tags
from fm.study.pretraining import pretrain_seeds
from fm.study.processing import Processor, build_processor
from fm.study.published_arm import build_published_model
from fm.study.tasks import Task
from fm.training.config import TrainResult


@dataclasses.dataclass(frozen=True, eq=False)
class PretrainedArm:
    """A network arm and what made it.

    Attributes:
      arm: ready to adapt.
      processor: tokenizer or layout.
      runs: its pretraining runs, none for scratch.
    """

    arm: ModelArm
    processor: Processor
    runs: list[TrainResult]


def build_network_arms(
    task: Task,
    arms: tuple[str, ...],
    seeds: int,
    out_dir: pathlib.Path,
    methods: tuple[str, ...] = DEFAULT_METHODS,
) -> dict[str, PretrainedArm]:
    """Pretrains what needs it, once per seed, and reads the task's examples for every arm.

    The task is one of classes or of entities.
    """
    fed = {}
    recipe = task.config.recipe
    entities = task.task_type == "entities"
    shared: dict[str, tuple[Processor, TokenizedExamples | None]] = {}
    for arm in (arm for arm in arms if arm not in ("published", "classical")):
        # Scratch reads through the tokenizer of the task's own text, as self does.
        source = "out_of_domain" if arm == "out_of_domain" else "in_domain"
        corpus = task.corpora.get(source, task.dataset.train)
        folder = out_dir / f"{task.name}-{source}"
        if source not in shared:
            rate = task.dataset.info.get("rate")
            reads = build_processor(corpus, task.modality, recipe, folder, rate)
            shared[source] = reads, None if entities else _examples(task, reads)
        reads, rows = shared[source]
        runs = []
        if arm != "scratch":
            label = f"{task.name}: pretraining {arm}"
            runs = pretrain_seeds(
                corpus,
                task.modality,
                recipe,
                reads,
                seeds=seeds,
                out_dir=folder,
                run_name=label,
            )
        params = [run.params for run in runs]
        if entities:
            ready = build_token_classification_arm(task, reads, params, methods)
        else:
            ready = build_network_arm(task, reads, params, rows, methods)
        fed[arm] = PretrainedArm(ready, reads, runs)
    return fed


def build_network_arm(
    task: Task,
    processor: Processor,
    checkpoints: list[dict],
    examples: TokenizedExamples | None = None,
    methods: tuple[str, ...] = DEFAULT_METHODS,
) -> ModelArm:
    """Arm of a model on a classification task; fresh parameters if there are no checkpoints."""
    model = TaskModel(
        checkpoints=checkpoints,
        model_config=processor.model,
        recipe=task.config.recipe,
        examples=_examples(task, processor) if examples is None else examples,
        test_from=len(task.labeled_pool),
        num_classes=len(task.dataset.classes),
        pad_to=max(task.config.label_budgets),
    )
    return ModelArm(model, methods, num_trials(task, methods))


def build_token_classification_arm(
    task: Task,
    processor: Processor,
    checkpoints: list[dict],
    methods: tuple[str, ...] = DEFAULT_METHODS,
) -> ModelArm:
    """Arm of a model on a NER task; fresh parameters if there are no checkpoints."""
    assert processor.tokenizer is not None, "NER reads words through a tokenizer"
    words, tags = words_and_tags(task)
    sentences = tokenize_words(processor.tokenizer, words, task.config.recipe.seq_len)
    tag_names = tuple(task.dataset.info["tags"])
    recipe = task.config.recipe
    finetune = dataclasses.replace(recipe.finetune, tokens_kept=0, feature_config=PER_TOKEN)
    model = TaggingModel(
        checkpoints=checkpoints,
        model_config=processor.model,
        recipe=dataclasses.replace(recipe, finetune=finetune),
        examples=sentences.examples,
        test_from=len(task.labeled_pool),
        num_classes=len(tag_names),
        pad_to=max(task.config.label_budgets),
        sentences=sentences,
        tags=tags,
        tag_names=tag_names,
    )
    return ModelArm(model, methods, num_trials(task, methods))


def num_trials(task: Task, methods: tuple[str, ...]) -> int:
    """Size of the grid of every arm of a task, by the methods asked for."""
    num_fewshot = task.config.published.num_fewshot if task.config.published else (0,)
    recipe = task.config.recipe
    return adaptation_methods.num_trials(recipe, methods, num_fewshot=num_fewshot)


def build_published_arm(
    task: Task, methods: tuple[str, ...] = DEFAULT_METHODS, *, trainable: bool = False
) -> ModelArm:
    """Arm of a published model on a text task.

    Args:
      task: the task.
      methods: adaptation methods asked for.
      trainable: whether methods may train the model itself.

    Raises:
      UserError: there is no such model, it cannot be read, or it supports none of the methods.
    """
    config = task.config.published
    if not task.is_text:
        raise UserError(f"published models read text, but {task.name} is {task.modality}")
    if config is None:
        raise UserError(
            f"the published arm of {task.name} needs a published model: --published_model=NAME"
        )
    model = build_published_model(
        config,
        task.config.recipe,
        _texts(task),
        methods=methods,
        test_from=len(task.labeled_pool),
        num_classes=len(task.dataset.classes),
        pad_to=max(task.config.label_budgets),
        trainable=trainable,
    )
    arm = ModelArm(model, methods)
    if not arm.supported_methods():
        limits = "" if model.published.causal else ", which does not follow prompts,"
        raise UserError(
            f"--adapt={','.join(methods)}: the published model {config.model}{limits} supports "
            "none of these here; add probe, or leave published out of --arms"
        )
    # One penalty stands for the probe: its grid gets the trials that the other methods leave.
    size = max(1, num_trials(task, methods) - len(arm.grid()) + 1)
    return dataclasses.replace(arm, model=model.with_probe_grid(size))


def build_classical_arm(task: Task, methods: tuple[str, ...] = DEFAULT_METHODS) -> Arm:
    """What a user would otherwise do, on the whole of every input."""
    if task.task_type == "entities":
        words, tags = words_and_tags(task)
        return ClassicalNerArm(words, tags, len(task.labeled_pool), num_trials(task, methods))
    inputs = _texts(task) if task.is_text else _arrays(task)
    inputs = baselines.prepare_inputs(task.modality, inputs, task.dataset.info.get("rate"))
    return ClassicalArm(task.modality, inputs, len(task.labeled_pool), num_trials(task, methods))


def _examples(task: Task, processor: Processor) -> TokenizedExamples:
    """The labeled training examples, then the test items."""
    recipe = task.config.recipe
    if not task.is_text:
        return continuous_examples(_arrays(task), processor.layouts[task.modality])
    assert processor.tokenizer is not None
    return text_examples(processor.tokenizer, _texts(task), recipe.seq_len, recipe.num_windows)


def _texts(task: Task) -> list[str]:
    return task.dataset.train.texts(task.labeled_pool) + task.test.texts(range(len(task.test)))


def _arrays(task: Task) -> np.ndarray:
    """Images, sounds or clips."""
    test = np.asarray(task.test.inputs(range(len(task.test))))
    return np.concatenate([np.asarray(task.dataset.train.inputs(task.labeled_pool)), test])
