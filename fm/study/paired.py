"""Compares files of predictions in pairs: differences, intervals, tests and power."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from fm.errors import UserError
from fm.evaluation.calibration import expected_calibration_error, negative_log_likelihood
from fm.evaluation.design import Design
from fm.evaluation.rank_correlation import rank_correlation_scores
from fm.evaluation.statistics import DEFAULT_MARGIN, linearized_ratio
from fm.study.comparisons import difference_rows
from fm.study.prediction_files import (
    CLASSES,
    NUMBERS,
    SCORES,
    SETS,
    AlignedPredictions,
    CellKind,
    PredictionFile,
)
from fm.study.run_dir import SCHEMA, package_versions

EXPERIMENT = "paired"
TASK = "predictions"
SCORE = "score"

Row = dict[str, Any]
# (predictions [S, N], truths [N]) to scores [S, N], whose means over items are the metric.
ScoreFunction = Callable[[np.ndarray, Any], np.ndarray]


@dataclasses.dataclass(frozen=True)
class PairedConfig:
    """What is compared.

    Attributes:
      metric: a key of `METRICS`.
      baseline: name of the file that the others are compared with; None for the first.
      all_pairs: compare every two files, each with those before it.
      margin: of equivalence, in the units of the metric (0.01 is a percentage point); None for no
        such test.
    """

    metric: str = "accuracy"
    baseline: str | None = None
    all_pairs: bool = False
    margin: float | None = DEFAULT_MARGIN


def accuracy_scores(prediction_SN: np.ndarray, truth_N: np.ndarray) -> np.ndarray:
    """Returns 1 for right and 0 for wrong predictions, float [S, N]."""
    return (prediction_SN == truth_N).astype(float)


def balanced_accuracy_scores(prediction_SN: np.ndarray, truth_N: np.ndarray) -> np.ndarray:
    """Returns linearized scores [S, N] whose means over items are the mean recall of classes."""
    right_SN = prediction_SN == truth_N
    members = [np.broadcast_to(truth_N == name, right_SN.shape) for name in sorted(set(truth_N))]
    return np.mean([linearized_ratio(right_SN & own, own) for own in members], axis=0)


def macro_f1_scores(prediction_SN: np.ndarray, truth_N: np.ndarray) -> np.ndarray:
    """Returns linearized scores [S, N] whose means over items are the mean F1 of the true classes.

    A class that is predicted but is nobody's truth costs recall, and is not averaged over.
    """
    scores = []
    for name in sorted(set(truth_N)):
        predicted, gold = prediction_SN == name, truth_N == name
        scores.append(linearized_ratio(2.0 * (predicted & gold), predicted.astype(float) + gold))
    return np.mean(scores, axis=0)


def micro_f1_scores(prediction_SN: np.ndarray, truth_N: np.ndarray) -> np.ndarray:
    """Returns linearized scores [S, N] whose means over items are the micro F1 of label sets."""
    shared = [
        [len(own & gold) for own, gold in zip(row, truth_N, strict=True)] for row in prediction_SN
    ]
    sizes = [
        [len(own) + len(gold) for own, gold in zip(row, truth_N, strict=True)]
        for row in prediction_SN
    ]
    return linearized_ratio(2.0 * np.array(shared), np.array(sizes))


def absolute_error_scores(prediction_SN: np.ndarray, truth_N: np.ndarray) -> np.ndarray:
    """Returns minus the absolute errors of numbers, float [S, N]: higher is better."""
    return -np.abs(prediction_SN - truth_N)


@dataclasses.dataclass(frozen=True)
class PairedMetric:
    """A metric of files of predictions.

    Attributes:
      scores: of predictions and truths.
      kind: what the files hold.
      in_units: whether it is in units of the data, not a fraction whose hundredths are points.
    """

    scores: ScoreFunction
    kind: CellKind = CLASSES
    in_units: bool = False


METRICS: dict[str, PairedMetric] = {
    "accuracy": PairedMetric(accuracy_scores),
    "balanced_accuracy": PairedMetric(balanced_accuracy_scores),
    "macro_f1": PairedMetric(macro_f1_scores),
    "micro_f1": PairedMetric(micro_f1_scores, SETS),
    "rank_correlation": PairedMetric(rank_correlation_scores, NUMBERS),
    "absolute_error": PairedMetric(absolute_error_scores, NUMBERS, in_units=True),
    SCORE: PairedMetric(lambda prediction_SN, _: prediction_SN, SCORES, in_units=True),
}


def compare(predictions: AlignedPredictions, config: PairedConfig) -> Row:
    """Compares files of predictions and returns results of the schema of results.json.

    A comparison is of the first file minus the second, paired by item and seed. With a single run
    its interval covers items (or groups of items) only.

    Raises:
      UserError: the baseline is no file's name, or no prediction of a file is a class of `truth`.
    """
    pairs = _pairs(predictions, config)
    scores = {file.name: _scores(file, predictions, config) for file in predictions.files}
    return {
        "schema": SCHEMA,
        "experiment": EXPERIMENT,
        "config": dataclasses.asdict(config)
        | {"baseline": pairs[0][1], "files": [str(file.path) for file in predictions.files]},
        "versions": package_versions(),
        "arms": [
            {"name": file.name, "title": file.name, "description": f"Predictions of {file.path}."}
            for file in predictions.files
        ],
        "tasks": [_task_row(predictions, config)],
        "seed_names": list(predictions.seeds),
        "cells": [
            row
            for file in predictions.files
            for row in _score_rows(file, scores[file.name], predictions, config)
        ],
        "comparisons": _comparison_rows(scores, pairs, predictions, config),
        "notices": _notices(predictions),
        "method_notes": _method_notes(predictions, config),
    }


def _pairs(predictions: AlignedPredictions, config: PairedConfig) -> list[tuple[str, str]]:
    names = [file.name for file in predictions.files]
    baseline = names[0] if config.baseline is None else config.baseline
    if baseline not in names:
        raise UserError(f"--baseline={baseline}: takes one of {', '.join(names)}")
    if config.all_pairs:
        names.sort(key=lambda name: name != baseline)
        return [(second, first) for first, second in itertools.combinations(names, 2)]
    return [(name, baseline) for name in names if name != baseline]


def _scores(
    file: PredictionFile, predictions: AlignedPredictions, config: PairedConfig
) -> np.ndarray:
    metric = METRICS[config.metric]
    if predictions.truth_N is None or metric.kind is not CLASSES:
        return metric.scores(file.prediction_SN, predictions.truth_N)
    classes, named = set(predictions.truth_N), set(file.prediction_SN.ravel())
    if not classes & named:
        raise UserError(
            f"{file.path}: no prediction is one of the truths ({_examples(named)} against "
            f"{_examples(classes)}); takes both written alike, --metric=rank_correlation for "
            "numbers, or --metric=score for scores"
        )
    return metric.scores(file.prediction_SN, predictions.truth_N)


def _examples(names: set[str]) -> str:
    return ", ".join(repr(name[:20]) for name in sorted(names)[:3])


def _task_row(predictions: AlignedPredictions, config: PairedConfig) -> Row:
    classes, counts = None, None
    if METRICS[config.metric].kind is CLASSES:
        assert predictions.truth_N is not None, "files of classes have truths"
        classes, counts = np.unique(predictions.truth_N.astype(str), return_counts=True)
    groups = predictions.group_N
    return {
        "name": TASK,
        "title": "Predictions",
        "metric": config.metric.replace("_f1", "-F1").replace("_", " "),
        "classes": None if classes is None else classes.tolist(),
        "majority_rate": None if counts is None else float(counts.max() / counts.sum()),
        "test": len(predictions.items),
        "item_group": None if groups is None else "group",
        "groups": None if groups is None else int(groups.max()) + 1,
        **({"in_units": True} if METRICS[config.metric].in_units else {}),
    }


def _score_rows(
    file: PredictionFile,
    scores_SN: np.ndarray,
    predictions: AlignedPredictions,
    config: PairedConfig,
) -> list[Row]:
    """Returns the scores of each seed of a file."""
    rows = []
    for seed, name in enumerate(predictions.seeds):
        row: Row = dict.fromkeys(("balanced_accuracy", "macro_f1", "nll", "ece"))
        row |= {"task": TASK, "arm": file.name, "num_labels": None, "seed": seed}
        row |= {"seed_name": name, "value": float(scores_SN[seed].mean())}
        if METRICS[config.metric].kind is CLASSES:
            truth_N, prediction_N = predictions.truth_N, file.prediction_SN[seed]
            assert truth_N is not None, "files of classes have truths"
            row |= {
                name: float(METRICS[name].scores(prediction_N[None], truth_N).mean())
                for name in ("balanced_accuracy", "macro_f1")
            }
            row |= _calibration(file, seed, truth_N == prediction_N, len(set(truth_N)))
        rows.append(row)
    return rows


def _calibration(file: PredictionFile, seed: int, right_N: np.ndarray, num_classes: int) -> Row:
    """Returns NLL and ECE of a seed, as far as the file has probabilities.

    Without `truth_probability` the NLL of two classes follows from the probability of the
    predicted one; of more classes it does not, and is left out.
    """
    own, of_truth = (
        file.probabilities[column][seed] if column in file.probabilities else None
        for column in ("probability", "truth_probability")
    )
    if of_truth is None and own is not None and num_classes == 2:
        of_truth = np.where(right_N, own, 1 - own)
    return {
        "nll": None if of_truth is None else negative_log_likelihood(of_truth),
        "ece": None if own is None else expected_calibration_error(own, right_N),
    }


def _notices(predictions: AlignedPredictions) -> list[str]:
    notices = [
        f"{file.path}: columns not used: {', '.join(file.unused_columns)}."
        for file in predictions.files
        if file.unused_columns
    ]
    return notices


def _comparison_rows(
    scores: dict[str, np.ndarray],
    pairs: list[tuple[str, str]],
    predictions: AlignedPredictions,
    config: PairedConfig,
) -> list[Row]:
    """Returns a row per pair of files: difference, interval, p-values and power."""
    groups = predictions.group_N
    design = Design(groups=None if groups is None else groups.tolist())
    one_run = len(predictions.seeds) == 1
    differences = []
    for arm, baseline in pairs:
        table = scores[arm] - scores[baseline]
        # Two equal rows add no variance: the crossed model becomes a t test over items or groups.
        table = np.repeat(table, 2, axis=0) if one_run else table
        key = {"task": TASK, "num_labels": None, "arm": arm, "baseline": baseline, "primary": True}
        differences.append((key, table, design))
    margin = DEFAULT_MARGIN if config.margin is None else config.margin
    rows = difference_rows(differences, margin=margin)
    for row in rows:
        if len(rows) == 1:
            row["p_adjusted"] = row["p"]  # simulated, it would be the same but for noise
        if one_run:
            row |= {
                "seeds": 1,
                "seeds_to_decide": None,
                "variance": row["variance"] | {"run": None},
            }
        if config.margin is None:
            row |= {"margin": None, "p_equivalence": None}
    return rows


def _method_notes(predictions: AlignedPredictions, config: PairedConfig) -> list[tuple[str, str]]:
    """Returns (term, explanation) pairs on how the comparisons were made."""
    unit, units = ("item", "items") if predictions.group_N is None else ("group", "groups of items")
    if len(predictions.seeds) == 1:
        interval = (
            f"The mean difference over items with Student's t; each {unit} counts as an "
            "independent draw. What another training run would change is not in it."
        )
    else:
        interval = (
            f"Seeds and {units} as crossed random effects: what another run and what another test "
            "set would change are both in it. Satterthwaite's degrees of freedom. Seeds count as "
            "independent: where all of them start from one pretrained checkpoint, the result "
            "holds for that checkpoint."
        )
    notes = [
        ("Pairing", "Items are paired by the column item, seeds by the column seed."),
        ("95% interval and p", f"{interval} p is of the same t test."),
        (
            "Adjusted p",
            "Westfall and Young's step-down max-T over all comparisons of this page, with "
            "simulated draws that keep what the comparisons share. Better and worse mean that it "
            "is below 0.05.",
        ),
    ]
    if config.margin is not None:
        equivalence = (
            "Two one-sided t tests that the true difference lies within the margin, to both sides; "
            "not adjusted. Equivalent means that the larger p is below 0.05."
        )
        notes.append(("Equivalence", equivalence))
    if METRICS[config.metric].kind is NUMBERS:
        figures = (
            "Rank correlation is Spearman's; each item's score is the correlation and the item's "
            "influence on it, whose mean is the correlation. Absolute error has a minus sign, so "
            "that higher is better."
        )
        notes.append(("Scores", figures))
    if METRICS[config.metric].kind is SETS:
        figures = "Micro F1 is that of all classes of all items together, sets of classes compared."
        notes.append(("Scores", figures))
    if METRICS[config.metric].kind is CLASSES:
        figures = (
            "Balanced accuracy is the mean recall of the true classes, macro-F1 the mean of their "
            "F1. NLL is the mean of -log of the true class's probability, in nats; ECE the gap "
            "between the predicted class's probability and accuracy in 15 bins of equal width "
            "(Guo et al. 2017)."
        )
        notes.append(("Scores", figures))
    return notes
