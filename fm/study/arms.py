"""The arms of a task: each named for what it was fed, all else the same."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from fm.errors import UserError
from fm.evaluation import baselines
from fm.study.adaptation import Arm, Classical, Network
from fm.study.config import ADAPT
from fm.study.entities import TagClassical, TagNetwork, sentences
from fm.study.imported import Imported
from fm.study.pretraining import pretrain_seeds
from fm.study.reading import Reader, reader
from fm.study.tasks import Task
from fm.training.run import Trained
from fm.transfer import published, ragged
from fm.transfer.examples import Rows, continuous_rows, text_rows
from fm.transfer.features import Reading
from fm.transfer.tagging import EACH, word_rows

# Of weights that took long to train: a hundredth of what small fresh models bear.
PUBLISHED_RATES, PUBLISHED_ADAPTER_RATES = (1e-4,), (1e-3,)


@dataclasses.dataclass(frozen=True, eq=False)
class Fed:
    """A network arm and what made it.

    Attributes:
      arm: ready to adapt.
      reads: tokenizer or layout.
      runs: its pretraining runs, none for scratch.
    """

    arm: Network | TagNetwork
    reads: Reader
    runs: list[Trained]

    @property
    def network(self) -> Network:
        """What is adapted, whatever it answers."""
        return self.arm.network if isinstance(self.arm, TagNetwork) else self.arm


def networks(
    task: Task,
    arms: tuple[str, ...],
    seeds: int,
    out: pathlib.Path,
    adapt: tuple[str, ...] = ADAPT,
) -> dict[str, Fed]:
    """Pretrains what needs it, once per seed, and reads the task's examples for every arm.

    The task is one of classes or of entities.
    """
    fed = {}
    recipe = task.config.recipe
    entities = task.kind == "entities"
    shared: dict[str, tuple[Reader, Rows | None]] = {}
    for arm in (arm for arm in arms if arm not in ("imported", "classical")):
        # Scratch reads through the tokenizer of the task's own text, as self does.
        source = "upstream" if arm == "upstream" else "self"
        corpus = task.corpora.get(source, task.dataset.train)
        folder = out / f"{task.name}-{source}"
        if source not in shared:
            rate = task.dataset.info.get("rate")
            reads = reader(corpus, task.modality, recipe, folder, rate)
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
                out=folder,
                label=label,
            )
        params = [run.params for run in runs]
        if entities:
            ready = tagger(task, reads, params, adapt)
        else:
            ready = network(task, reads, params, rows, adapt)
        fed[arm] = Fed(ready, reads, runs)
    return fed


def network(
    task: Task,
    reads: Reader,
    checkpoints: list[dict],
    rows: Rows | None = None,
    adapt: tuple[str, ...] = ADAPT,
) -> Network:
    """A network ready to adapt to the task; fresh parameters where there are no checkpoints."""
    return Network(
        checkpoints=checkpoints,
        model=reads.model,
        recipe=task.config.recipe,
        rows=_rows(task, reads) if rows is None else rows,
        test_from=len(task.touched),
        classes=len(task.dataset.classes),
        capacity=max(task.config.budgets),
        adapt=adapt,
        trials=trials(task, adapt),
    )


def tagger(
    task: Task, reads: Reader, checkpoints: list[dict], adapt: tuple[str, ...] = ADAPT
) -> TagNetwork:
    """As `network`, of a task of named entities: it tags words."""
    assert reads.tokenizer is not None, "words are read through a tokenizer"
    words, tags = sentences(task)
    made = word_rows(reads.tokenizer, words, task.config.recipe.length)
    names = tuple(task.dataset.info["tags"])
    plain = network(task, reads, checkpoints, made.rows, adapt)
    tuning = dataclasses.replace(plain.recipe.finetune, keep=0, reading=EACH)
    recipe = dataclasses.replace(plain.recipe, finetune=tuning)
    return TagNetwork(
        dataclasses.replace(plain, classes=len(names), recipe=recipe), made, tags, names
    )


def trials(task: Task, adapt: tuple[str, ...]) -> int:
    """Settings every arm of a task tries, by the methods asked for."""
    shots = task.config.imported.shots if task.config.imported else (0,)
    return task.config.recipe.trials(adapt, prompts=2 * len(shots))


def imported(task: Task, adapt: tuple[str, ...] = ADAPT, *, tuned: bool = False) -> Imported:
    """A published model on the task.

    Args:
      task: of text.
      adapt: methods asked for.
      tuned: whether the methods that train the model itself are among those it can.

    Raises:
      UserError: there is no such model, it cannot be read, or it can do none of the methods.
    """
    asked = task.config.imported
    if not task.text:
        raise UserError(f"published models read text, but {task.name} is {task.modality}")
    if asked is None:
        raise UserError(f"the imported arm of {task.name} needs a published model: --imported=NAME")
    made = Imported(
        model=published.find(asked.model),
        config=asked,
        texts=_texts(task),
        test_from=len(task.touched),
        adapt=adapt,
        trials=trials(task, adapt),
        tuned=tuned,
    )
    return _with_network(made, task) if tuned else made


def _with_network(made: Imported, task: Task) -> Imported:
    """The same, able to train the model itself too: all of it, or adapters."""
    wanted = tuple(method for method in made.adapt if method in ("full", "lora"))
    if not wanted:
        return made
    model, recipe = made.model, task.config.recipe
    ids = model.encode(made.texts, made.length)
    read = Reading("mean", causal=model.causal)
    recipe = dataclasses.replace(
        recipe,
        finetune=dataclasses.replace(recipe.finetune, keep=0, reading=read),
        learning_rates=PUBLISHED_RATES,
        adapter_rates=PUBLISHED_ADAPTER_RATES,
    )
    network = Network(
        checkpoints=[model.params],
        model=model.config,
        recipe=recipe,
        rows=ragged.rows(ids, -(-max(map(len, ids)) // 16) * 16),
        test_from=made.test_from,
        classes=len(task.dataset.classes),
        capacity=max(task.config.budgets),
        adapt=wanted,
    )
    return dataclasses.replace(made, network=network)


def classical(task: Task, adapt: tuple[str, ...] = ADAPT) -> Arm:
    """What a user would otherwise do, on the whole of every input."""
    if task.kind == "entities":
        words, tags = sentences(task)
        return TagClassical(words, tags, len(task.touched), trials(task, adapt))
    inputs = _texts(task) if task.text else _arrays(task)
    inputs = baselines.prepare(task.modality, inputs, task.dataset.info.get("rate"))
    return Classical(task.modality, inputs, len(task.touched), trials(task, adapt))


def _rows(task: Task, reads: Reader) -> Rows:
    """Rows of the touched training examples, then of the test items."""
    recipe = task.config.recipe
    if not task.text:
        return continuous_rows(_arrays(task), reads.layouts[task.modality])
    assert reads.tokenizer is not None
    return text_rows(reads.tokenizer, _texts(task), recipe.length, recipe.windows)


def _texts(task: Task) -> list[str]:
    return task.dataset.train.texts(task.touched) + task.test.texts(range(len(task.test)))


def _arrays(task: Task) -> np.ndarray:
    """Images, sounds or clips."""
    test = np.asarray(task.test.inputs(range(len(task.test))))
    return np.concatenate([np.asarray(task.dataset.train.inputs(task.touched)), test])
