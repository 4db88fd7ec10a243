"""A task made ready: data loaded, leaks removed, test items fixed, labels drawn."""

from __future__ import annotations

import dataclasses
import re
import sys

import numpy as np

from fm.data.datasets import Dataset, Split, subset, without
from fm.data.decontamination import DuplicateSearch, find_duplicates
from fm.data.load import load
from fm.errors import UserError
from fm.evaluation.model_selection import draw_labels
from fm.study import task_types
from fm.study.config import TaskConfig
from fm.study.task_types import task_type_of


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A task and everything its arms share.

    Attributes:
      name: of the data set, short.
      config: as asked for.
      dataset: the labelled data, near-duplicates of test items taken out of `train`.
      test: the test items scored.
      corpora: per pretrained arm, what it is pretrained on, near-duplicates of test taken out.
      decontamination: per pretrained arm, what the search found.
      task_type: what is asked for, one of `fm.study.task_types.METRICS`.
      strata: of `dataset.train`, by which labels are drawn and folded, int [N].
      train_idx: per seed, indices into `dataset.train`; the first n are a budget of n labels.
    """

    name: str
    config: TaskConfig
    dataset: Dataset
    test: Split
    corpora: dict[str, Split]
    decontamination: dict[str, DuplicateSearch]
    task_type: str
    strata: np.ndarray
    train_idx: tuple[np.ndarray, ...]

    @property
    def labeled_pool(self) -> np.ndarray:
        """Training examples any seed draws, ascending; the labelled rows arms hold."""
        return np.unique(np.concatenate(self.train_idx))

    def pool_rows(self, drawn: np.ndarray) -> np.ndarray:
        """Places of drawn examples among the touched ones."""
        return np.searchsorted(self.labeled_pool, drawn)

    @property
    def is_text(self) -> bool:
        """Whether the inputs are text."""
        return self.modality == "text"

    @property
    def modality(self) -> str:
        """Format of the data."""
        return self.dataset.modality


def prepare_task(config: TaskConfig, arms: tuple[str, ...], seeds: int) -> Task:
    """Loads and checks everything a task needs, before anything is trained.

    Raises:
      UserError: the data has no labels, a budget does not fit it, or the upstream data is
        missing or of another format.
    """
    print(f"preparing {config.dataset} …", file=sys.stderr, flush=True)
    dataset = load(
        config.dataset,
        data_dir=config.data_dir,
        text_column=config.text_column,
        label_column=config.label_column,
        target_column=config.target_column,
        label_field=config.label_field,
        speaker_field=config.speaker_field,
    )
    kind = task_type_of(dataset)
    name = short_name(config.dataset)
    chosen = np.random.default_rng(0).permutation(len(dataset.test))[: config.max_test_items]
    test = subset(dataset.test, np.sort(chosen))
    train, own = _cleaned(dataset.train, dataset, config.max_corpus_items)
    dataset = dataclasses.replace(dataset, train=train)
    strata = task_types.strata(train, kind)
    least = task_types.min_labels(dataset, kind)
    for budget in config.label_budgets:
        if not least <= budget <= len(dataset.train):
            raise UserError(
                f"--budgets: {budget} labels do not fit {name}, which has {least} "
                f"{task_types.STRATA_NAMES[kind]} and {len(dataset.train)} training examples; accepted are "
                "numbers between"
            )
    corpora, leakage = {}, {}
    if "in_domain" in arms:
        corpora["in_domain"], leakage["in_domain"] = dataset.train, own
    if "out_of_domain" in arms:
        corpora["out_of_domain"], leakage["out_of_domain"] = _upstream(config, dataset)
    drawn = tuple(draw_labels(strata, max(config.label_budgets), s) for s in range(seeds))
    return Task(name, config, dataset, test, corpora, leakage, kind, strata, drawn)


def _cleaned(corpus: Split, dataset: Dataset, most: int | None) -> tuple[Split, DuplicateSearch]:
    """At most so many examples, less those that are near-duplicates of test items."""
    chosen = np.random.default_rng(1).permutation(len(corpus))[:most]
    corpus = subset(corpus, np.sort(chosen))
    found = find_duplicates(corpus, dataset.test, dataset.modality)
    return without(corpus, found.duplicate_idx), found


def short_name(dataset: str) -> str:
    """A data set's name or path without folders, endings and versions."""
    last = dataset.rstrip("/").rsplit("/", 1)[-1]
    return re.split("[.:]", last.lstrip("."))[0] or last


def _upstream(config: TaskConfig, dataset: Dataset) -> tuple[Split, DuplicateSearch]:
    if config.out_of_domain_dataset is None:
        raise UserError(
            f"the upstream arm of {config.dataset} needs other {dataset.modality} data: "
            f"--upstream=NAME, or leave upstream out of --arms"
        )
    other = load(
        config.out_of_domain_dataset, data_dir=config.data_dir, text_column=config.text_column
    )
    forms = [(each.info.get("shape"), each.info.get("rate")) for each in (dataset, other)]
    if other.modality != dataset.modality or forms[0] != forms[1]:
        own, others = (f"{shape or ''}{f' at {rate:g}' if rate else ''}" for shape, rate in forms)
        raise UserError(
            f"--upstream={config.out_of_domain_dataset} is {other.modality} {others}, but "
            f"{config.dataset} is {dataset.modality} {own}; they must be alike"
        )
    return _cleaned(other.train, dataset, config.max_corpus_items)
