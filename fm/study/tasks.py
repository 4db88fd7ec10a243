"""A task made ready: data loaded and decontaminated, test items fixed, labeled examples drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from fm.data.datasets import Dataset, Split, development_dataset, subset, without
from fm.data.decontamination import DuplicateSearchResult, find_duplicates
from fm.data.file_counts import tell_files
from fm.errors import UserError
from fm.progress_lines import phase
from fm.study.config import TaskConfig
from fm.study.loading import load
from fm.study.task import Task, TaskType
from fm.study.task_types import task_type_of


def prepare_task(
    config: TaskConfig, corpora: Sequence[str], seeds: int, *, validated: bool = False
) -> Task:
    """Loads a task's data, removes near-duplicates of test items, and draws labeled examples.

    Args:
      config: of the task.
      corpora: pretraining corpora wanted, "in_domain" or "out_of_domain"; others are ignored.
      seeds: number of draws.
      validated: whether settings are chosen on some of the labels, so that a budget has to leave
        one to validate on.

    Raises:
      UserError: the data has no labels, a budget does not fit it, or the out-of-domain data is
        missing or of another modality or shape.
    """
    with phase(f"preparing {config.dataset}"):
        return _prepare_task(config, corpora, seeds, validated=validated)


def _prepare_task(
    config: TaskConfig, corpora: Sequence[str], seeds: int, *, validated: bool
) -> Task:
    dataset = load(config.dataset, **config.load_options())
    if config.split == "development":
        dataset = development_dataset(dataset)
    task_type = task_type_of(dataset)
    test = subset(dataset.test, np.sort(test_order(config, dataset)))
    drawn = dataset.train
    if config.max_corpus_items is not None:
        labeled = task_type.strata(dataset.train) >= 0
        drawn = draw_examples(dataset.train, config.max_corpus_items, labeled)
    train_search = _search_duplicates(drawn, dataset)
    tell_files(dataset, drawn, train_search.duplicate_idx)
    train = without(drawn, train_search.duplicate_idx)
    dataset = dataclasses.replace(dataset, train=train)
    strata = task_type.strata(train)
    check_label_budgets(config.label_budgets, config.name, dataset, task_type, validated=validated)
    found = {}
    if "in_domain" in corpora:
        found["in_domain"] = train, train_search
    if "out_of_domain" in corpora:
        found["out_of_domain"] = _out_of_domain(config, dataset)
    return Task(
        config.name,
        config,
        dataset,
        test,
        {name: corpus for name, (corpus, _) in found.items()},
        {name: search for name, (_, search) in found.items()},
        task_type,
        strata,
        tuple(task_type.draw(train, max(config.label_budgets), seed) for seed in range(seeds)),
    )


def test_order(config: TaskConfig, dataset: Dataset) -> np.ndarray:
    """Returns the indices of the test items that a task scores, in their fixed random order.

    Raises:
      UserError: the slice begins past the last items.
    """
    start, total = first_test_item(config), len(dataset.test)
    if start and start > total - 2:
        raise UserError(
            f"--test_slice={start}: {config.name} has {total:,} test items; takes 0 to "
            f"{max(total - 2, 0):,}"
        )
    return np.random.default_rng(0).permutation(total)[start:][: config.max_test_items]


def first_test_item(config: TaskConfig) -> int:
    """Returns where the slice of a task begins; a development part is scored from its beginning."""
    return config.test_slice if config.split == "test" else 0


def check_label_budgets(
    budgets: Sequence[int], name: str, dataset: Dataset, task_type: TaskType, *, validated: bool
) -> None:
    """Raises UserError if the training data has too few labels for a budget, or it is too small.

    The smallest budget is one label of each class, and one more if some are to be validated on: a
    class's only label always trains.
    """
    smallest, largest = task_type.min_labels(dataset), task_type.max_labels(dataset)
    for budget in budgets:
        if not smallest <= budget <= largest:
            raise UserError(
                f"--label_budgets={budget}: must be between {smallest:,} and {largest:,} for "
                f"{name}, which has {smallest:,} {task_type.strata_noun} and {largest:,} labeled "
                "training examples"
            )
        if validated and budget == smallest:
            raise UserError(
                f"--label_budgets={budget}: leaves no label to validate on for {name}, which has "
                f"{smallest:,} {task_type.strata_noun}; takes {smallest + 1:,} to {largest:,}"
            )


def fitting_budgets(
    budgets: Sequence[int], name: str, dataset: Dataset, task_type: TaskType, *, validated: bool
) -> tuple[int, ...]:
    """Returns the default budgets that fit the data.

    Raises:
      UserError: none does.
    """
    smallest, largest = task_type.min_labels(dataset) + validated, task_type.max_labels(dataset)
    fitting = tuple(n for n in budgets if smallest <= n <= largest)
    if not fitting:
        raise UserError(
            f"--label_budgets: none of {', '.join(map(str, budgets))} fits {name}, which has "
            f"{smallest - validated} {task_type.strata_noun} and {largest} labeled training "
            f"examples; give some from {smallest} to {largest}"
        )
    return fitting


def check_test_items(task: Task, seeds: int) -> None:
    """Raises UserError if a task has too few test items for the intervals of several seeds."""
    if seeds > 1 and len(task.test) < 2:
        raise UserError(
            f"{task.config.dataset} has {len(task.test)} test items; intervals need at least 2"
        )


def _decontaminated(
    corpus: Split, dataset: Dataset, limit: int | None
) -> tuple[Split, DuplicateSearchResult]:
    """Draws at most `limit` examples and removes near-duplicates of test items."""
    corpus = draw_examples(corpus, limit)
    search = _search_duplicates(corpus, dataset)
    return without(corpus, search.duplicate_idx), search


def _search_duplicates(corpus: Split, dataset: Dataset) -> DuplicateSearchResult:
    what = f"{dataset.name}: searching {len(corpus):,} examples for near-duplicates of test items"
    with phase(what, quiet=True):
        return find_duplicates(corpus, dataset.test, dataset.modality)


def draw_examples(corpus: Split, limit: int | None, labeled: np.ndarray | None = None) -> Split:
    """Returns at most `limit` examples, drawn at random, in their order.

    Args:
      corpus: to draw from.
      limit: largest number of examples; None for all.
      labeled: whether each is labeled, bool [N]; those come before unlabeled ones.
    """
    order = np.random.default_rng(1).permutation(len(corpus))
    if labeled is not None:
        order = order[np.argsort(~labeled[order], kind="stable")]
    return subset(corpus, np.sort(order[:limit]))


def _out_of_domain(config: TaskConfig, dataset: Dataset) -> tuple[Split, DuplicateSearchResult]:
    name = config.out_of_domain_dataset
    if name is None:
        raise UserError(
            f"the out_of_domain arm of {config.dataset} needs other {dataset.modality} data: give "
            "--out_of_domain_dataset=NAME, or leave out_of_domain out of --arms"
        )
    # Of its own data the task's training part, which has no development items.
    other = dataset if name == config.dataset else _load_unlabeled(name, config)
    own_form, other_form = (
        (each.modality, each.info.get("shape"), each.info.get("rate")) for each in (dataset, other)
    )
    if own_form != other_form:
        own, others = (
            f"{modality} {shape or ''}{f' at {rate:g}' if rate else ''}"
            for modality, shape, rate in (own_form, other_form)
        )
        raise UserError(
            f"--out_of_domain_dataset={name} is {others}, but {config.dataset} is {own}; both must "
            "have the same modality, shape and rate"
        )
    corpus = other.train
    if config.out_of_domain_size_of is not None:
        target = _load_unlabeled(config.out_of_domain_size_of, config).train
        corpus = _cut_to_size(corpus, target)
    return _decontaminated(corpus, dataset, config.max_corpus_items)


def _load_unlabeled(name: str, config: TaskConfig) -> Dataset:
    return load(
        name,
        data_dir=config.data_dir,
        text_column=config.text_column,
        label_column="",
        encoding=config.encoding,
        image_size=config.image_size,
    )


def corpus_size(corpus: Split) -> dict[str, int | None]:
    """Returns a corpus's number of examples and of characters, None where it is not of texts."""
    lengths = _text_lengths(corpus)
    return {
        "examples": len(corpus),
        "characters": None if lengths is None else int(lengths.sum()),
    }


def _text_lengths(corpus: Split) -> np.ndarray | None:
    """Returns the characters of each example, int [N]; None of examples that are not texts."""
    inputs = corpus.inputs(range(len(corpus)))
    return np.array([len(text) for text in inputs]) if isinstance(inputs, list) else None


def _cut_to_size(corpus: Split, target: Split) -> Split:
    """Returns a random part of a corpus with at most the characters (or examples) of another."""
    order = np.random.default_rng(2).permutation(len(corpus))
    lengths, size = _text_lengths(corpus), _text_lengths(target)
    if lengths is None or size is None:
        return subset(corpus, np.sort(order[: len(target)]))
    fitting = np.cumsum(lengths[order]) <= size.sum()
    return subset(corpus, np.sort(order[fitting]))
