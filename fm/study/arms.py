"""The arms of a task: each named for what it was fed, all else the same."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from fm.adaptation import batching
from fm.adaptation.batching import TokenizedExamples, continuous_examples, text_examples
from fm.adaptation.features import FeatureConfig
from fm.adaptation.token_classification import PER_TOKEN, tokenize_words
from fm.errors import UserError
from fm.evaluation import baselines
from fm.hf import model_zoo
from fm.study.adaptation import Arm, ClassicalArm, NetworkArm
from fm.study.config import DEFAULT_METHODS
from fm.study.ner_arms import ClassicalNerArm, TokenClassificationArm, words_and_tags
from fm.study.pretraining import pretrain_seeds
from fm.study.processing import Processor, build_processor
from fm.study.published_arm import PublishedArm
from fm.study.tasks import Task
from fm.training.config import TrainResult

# Of weights that took long to train: a hundredth of what small fresh models bear.
PUBLISHED_LEARNING_RATES, PUBLISHED_LORA_LEARNING_RATES = (1e-4,), (1e-3,)


@dataclasses.dataclass(frozen=True, eq=False)
class PretrainedArm:
    """A network arm and what made it.

    Attributes:
      arm: ready to adapt.
      processor: tokenizer or layout.
      runs: its pretraining runs, none for scratch.
    """

    arm: NetworkArm | TokenClassificationArm
    processor: Processor
    runs: list[TrainResult]

    @property
    def network(self) -> NetworkArm:
        """What is adapted, whatever it answers."""
        return self.arm.network if isinstance(self.arm, TokenClassificationArm) else self.arm


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
            shared[source] = reads, None if entities else _rows(task, reads)
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
) -> NetworkArm:
    """A network ready to adapt to the task; fresh parameters where there are no checkpoints."""
    return NetworkArm(
        checkpoints=checkpoints,
        model=processor.model,
        recipe=task.config.recipe,
        examples=_rows(task, processor) if examples is None else examples,
        test_from=len(task.labeled_pool),
        num_classes=len(task.dataset.classes),
        capacity=max(task.config.label_budgets),
        methods=methods,
        num_trials=num_trials(task, methods),
    )


def build_token_classification_arm(
    task: Task,
    processor: Processor,
    checkpoints: list[dict],
    methods: tuple[str, ...] = DEFAULT_METHODS,
) -> TokenClassificationArm:
    """As `network`, of a task of named entities: it tags words."""
    assert processor.tokenizer is not None, "words are read through a tokenizer"
    words, tags = words_and_tags(task)
    made = tokenize_words(processor.tokenizer, words, task.config.recipe.seq_len)
    names = tuple(task.dataset.info["tags"])
    plain = build_network_arm(task, processor, checkpoints, made.examples, methods)
    tuning = dataclasses.replace(plain.recipe.finetune, tokens_kept=0, feature_config=PER_TOKEN)
    recipe = dataclasses.replace(plain.recipe, finetune=tuning)
    return TokenClassificationArm(
        dataclasses.replace(plain, num_classes=len(names), recipe=recipe), made, tags, names
    )


def num_trials(task: Task, methods: tuple[str, ...]) -> int:
    """Settings every arm of a task tries, by the methods asked for."""
    shots = task.config.published.num_fewshot if task.config.published else (0,)
    return task.config.recipe.num_trials(methods, num_prompts=2 * len(shots))


def build_published_arm(
    task: Task, methods: tuple[str, ...] = DEFAULT_METHODS, *, trainable: bool = False
) -> PublishedArm:
    """A published model on the task.

    Args:
      task: of text.
      methods: methods asked for.
      trainable: whether the methods that train the model itself are among those it can.

    Raises:
      UserError: there is no such model, it cannot be read, or it can do none of the methods.
    """
    asked = task.config.published
    if not task.is_text:
        raise UserError(f"published models read text, but {task.name} is {task.modality}")
    if asked is None:
        raise UserError(f"the imported arm of {task.name} needs a published model: --imported=NAME")
    made = PublishedArm(
        model=model_zoo.load_published(asked.model),
        config=asked,
        texts=_texts(task),
        test_from=len(task.labeled_pool),
        adapt=methods,
        trials=num_trials(task, methods),
        tuned=trainable,
    )
    return _with_network(made, task) if trainable else made


def _with_network(made: PublishedArm, task: Task) -> PublishedArm:
    """The same, able to train the model itself too: all of it, or adapters."""
    wanted = tuple(method for method in made.adapt if method in ("full", "lora"))
    if not wanted:
        return made
    model, recipe = made.model, task.config.recipe
    ids = model.encode(made.texts, made.length)
    read = FeatureConfig("mean", causal=model.causal)
    recipe = dataclasses.replace(
        recipe,
        finetune=dataclasses.replace(recipe.finetune, tokens_kept=0, feature_config=read),
        learning_rates=PUBLISHED_LEARNING_RATES,
        lora_learning_rates=PUBLISHED_LORA_LEARNING_RATES,
    )
    network = NetworkArm(
        checkpoints=[model.params],
        model=model.config,
        recipe=recipe,
        examples=batching.pad_sequences(ids, -(-max(map(len, ids)) // 16) * 16),
        test_from=made.test_from,
        num_classes=len(task.dataset.classes),
        capacity=max(task.config.label_budgets),
        methods=wanted,
    )
    return dataclasses.replace(made, network=network)


def build_classical_arm(task: Task, methods: tuple[str, ...] = DEFAULT_METHODS) -> Arm:
    """What a user would otherwise do, on the whole of every input."""
    if task.task_type == "entities":
        words, tags = words_and_tags(task)
        return ClassicalNerArm(words, tags, len(task.labeled_pool), num_trials(task, methods))
    inputs = _texts(task) if task.is_text else _arrays(task)
    inputs = baselines.prepare_inputs(task.modality, inputs, task.dataset.info.get("rate"))
    return ClassicalArm(task.modality, inputs, len(task.labeled_pool), num_trials(task, methods))


def _rows(task: Task, reads: Processor) -> TokenizedExamples:
    """Rows of the touched training examples, then of the test items."""
    recipe = task.config.recipe
    if not task.is_text:
        return continuous_examples(_arrays(task), reads.layouts[task.modality])
    assert reads.tokenizer is not None
    return text_examples(reads.tokenizer, _texts(task), recipe.seq_len, recipe.num_windows)


def _texts(task: Task) -> list[str]:
    return task.dataset.train.texts(task.labeled_pool) + task.test.texts(range(len(task.test)))


def _arrays(task: Task) -> np.ndarray:
    """Images, sounds or clips."""
    test = np.asarray(task.test.inputs(range(len(task.test))))
    return np.concatenate([np.asarray(task.dataset.train.inputs(task.labeled_pool)), test])
