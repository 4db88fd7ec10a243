"""Runs the studies that a claim is measured by, and returns their scores with their design."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fm.data.datasets import development_dataset
from fm.evaluation.design import Design
from fm.evaluation.statistics import mean_over_seeds_and_items
from fm.progress_lines import say
from fm.study import analysis, run_dir
from fm.study.arms import REFERENCE_ARM
from fm.study.config import Recipe, StudyConfig, TaskConfig
from fm.study.loading import load
from fm.study.runner import run_compare
from fm.study.task_registry import task_spec_or_default

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class StudyScores:
    """The scores of a finished study of one task.

    Attributes:
      results: its results.json.
      scores: by (arm, number of labels), float [seeds, items].
      groups: of each test item, its group; None if items are independent.
    """

    results: Row
    scores: Mapping[tuple[str, int], np.ndarray]
    groups: Sequence[str] | None

    def design(self, arm: str) -> Design:
        """Returns the design of a difference of an arm from itself elsewhere, or from a rival."""
        seeds = self.results["config"]["seeds"]
        pretrain_seeds = self.results["config"]["pretrain_seeds"]
        return analysis.difference_design(arm, seeds, pretrain_seeds, self.groups)

    def gap(self, arm: str, num_labels: int, rival: str = REFERENCE_ARM) -> np.ndarray:
        """Returns the differences of an arm from a rival at a label budget, [seeds, items]."""
        return self.scores[arm, num_labels] - self.scores[rival, num_labels]

    def score_row(self, arm: str, num_labels: int) -> Row:
        """Returns an arm's mean score with its interval, and its score by seed, as JSON."""
        own = self.scores[arm, num_labels]
        interval = mean_over_seeds_and_items(own, design=self.design(arm))
        return {
            "arm": arm,
            "num_labels": num_labels,
            "value": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "values": own.mean(axis=1).tolist(),
        }


def run_studies(
    configs: Mapping[str, StudyConfig], out_dir: pathlib.Path
) -> dict[str, StudyScores]:
    """Runs studies of one task each, or reads those that are finished; returns scores by name.

    Pretraining runs are shared, in `out_dir`/pretrained, where recipe and corpus are equal.

    Args:
      configs: by name.
      out_dir: folder of the claim; each study has its own below.
    """
    found = {}
    for number, (name, config) in enumerate(configs.items(), 1):
        folder = out_dir / "studies" / name
        if (folder / run_dir.RESULTS_FILE).exists():
            run_dir.check_existing_run(config.to_dict(), folder)
            results = run_dir.read_results(folder)
        else:
            say(f"study {number} of {len(configs)}: {name}")
            results = run_compare(config, folder, shared_dir=out_dir / "pretrained")
            run_dir.write_results(results, folder)
        found[name] = _scores(results, folder / run_dir.PREDICTIONS_FILE)
    return found


def _scores(results: Row, path: pathlib.Path) -> StudyScores:
    (task,) = (row["name"] for row in results["tasks"])
    scores = {key[1:]: own for key, own in analysis.read_scores(path, results).items()}
    return StudyScores(results, scores, analysis.read_item_groups(path)[task])


def task_config(
    name: str,
    recipe: Recipe,
    label_budgets: Sequence[int],
    *,
    data_dir: str | None = None,
    development: bool = False,
    test_slice: int = 0,
    max_test_items: int,
    max_corpus_items: int | None = None,
) -> TaskConfig:
    """Returns the config of a registered task, or of another data set, for a claim's study.

    Args:
      name: of the task, or a name that `fm.data.load.load` takes.
      recipe: of the model.
      label_budgets: numbers of labels.
      data_dir: folder of prepared TFDS data sets.
      development: whether a part of the training split is scored instead of the test items.
      test_slice: first of the test items scored.
      max_test_items: items scored.
      max_corpus_items: examples used of the corpus; None for all.
    """
    spec = task_spec_or_default(name)
    dataset = spec.dataset or spec.name
    data = load(dataset, data_dir=data_dir)
    if development:
        data = development_dataset(data)
    return TaskConfig(
        dataset=dataset,
        name=spec.name,
        out_of_domain_dataset=None,
        label_budgets=tuple(label_budgets),
        recipe=recipe,
        data_dir=data_dir,
        split="development" if development else "test",
        test_slice=0 if development else test_slice,
        max_test_items=max_test_items,
        max_corpus_items=max_corpus_items,
        fingerprint=data.info["fingerprint"],
    )
