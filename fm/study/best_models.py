"""Keeps the best model of each task of a finished study, chosen on validation data alone.

The arms are compared at the largest label budget by the mean, over all seeds, of the validation
score of the setting that each seed chose; test items play no part. Kept is the winner's model of
the first seed, fitted again to the same labels with the settings that the seed chose, which gives
the parameters that the study scored.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fm.data.tokenizer import Tokenizer
from fm.errors import UserError
from fm.study import saved_model
from fm.study.adaptation import CLASSICAL, Arm, ModelArm, chosen_arm
from fm.study.adapted_model import READING_FLAGS, adapted_model
from fm.study.baseline_arms import ClassicalArm, ClassicalNerArm
from fm.study.classical_model import classical_model
from fm.study.model_card import Figure, ModelCard, data_source
from fm.study.runner import BaseStudy
from fm.study.task import Task

BEST_DIR = "best"
# Of the seeds, that whose model is kept.
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An arm at the largest label budget: its validation scores, and what its first seed chose.

    Attributes:
      arm: its name.
      validation: mean over the seeds, higher is better.
      hparams: that the first seed chose.
      value: the mean test metric, for the card; it is not looked at in choosing.
      seeds: number of them.
    """

    arm: str
    validation: float
    hparams: dict[str, Any]
    value: float
    seeds: int


@dataclasses.dataclass(frozen=True)
class KeptModel:
    """What was kept of a task.

    Attributes:
      task: its name.
      folder: of the model; None if none could be kept.
      lines: what to tell the user, in order.
    """

    task: str
    folder: pathlib.Path | None
    lines: tuple[str, ...]


def ranked_candidates(results: dict[str, Any], task: str) -> list[Candidate]:
    """Returns the arms of a task at its largest label budget, the best on validation first.

    Arms without validation scores, which had nothing to choose, come last.
    """
    rows = [row for row in results["cells"] if row["task"] == task]
    num_labels = max(row["num_labels"] for row in rows)
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["num_labels"] == num_labels:
            by_arm.setdefault(row["arm"], []).append(row)
    found = []
    for arm, own in by_arm.items():
        scores = [row["validation"] for row in own if row["validation"] is not None]
        (first,) = (row for row in own if row["seed"] == _SEED)
        found.append(
            Candidate(
                arm,
                float(np.mean(scores)) if scores else -np.inf,
                first["hparams"],
                float(np.mean([row["value"] for row in own])),
                len(own),
            )
        )
    return sorted(found, key=lambda each: -each.validation)


def keep_best(study: BaseStudy, results: dict[str, Any], out_dir: pathlib.Path) -> list[KeptModel]:
    """Saves the best model of each task in OUT/best/TASK, if it is not there; returns what is kept.

    An arm whose result cannot be kept, such as an ensemble, is passed over, and a line says by how
    much it is ahead.

    Args:
      study: as run.
      results: of the study.
      out_dir: its folder.
    """
    return [_keep(study, results, out_dir, config.name) for config in study.config.tasks]


def _keep(study: BaseStudy, results: dict[str, Any], out_dir: pathlib.Path, name: str) -> KeptModel:
    folder = out_dir / BEST_DIR / name
    if saved_model.is_saved_model(folder):
        return KeptModel(name, folder, (f"{name}: {folder} is there already",))
    candidates = ranked_candidates(results, name)
    task, arms = study.load_task_and_built_arms(out_dir, name)
    reasons = {}
    for candidate in candidates:
        built = arms[candidate.arm]
        arm, hparams = chosen_arm(built.arm, candidate.hparams)
        tokenizer = None if built.processor is None else built.processor.tokenizer
        try:
            line = _save(folder, task, arm, hparams, candidate, tokenizer)
        except UserError as error:
            reasons[candidate.arm] = str(error)
            continue
        return KeptModel(name, folder, (line, *_ahead(name, candidates, candidate, reasons)))
    why = "; ".join(f"{arm}: {reason}" for arm, reason in reasons.items())
    return KeptModel(name, None, (f"{name}: no model can be kept ({why})",))


def _save(
    folder: pathlib.Path,
    task: Task,
    arm: Arm,
    hparams: dict[str, Any],
    candidate: Candidate,
    tokenizer: Tokenizer | None,
) -> str:
    """Fits and saves a model; returns the line that tells of it.

    Raises:
      UserError: it cannot be kept.
    """
    num_labels = max(task.config.label_budgets)
    train_idx = task.train_idx[_SEED][:num_labels]
    columns = {flag: getattr(task.config, flag) for flag in READING_FLAGS}
    columns = {flag: value for flag, value in columns.items() if value}
    run = {
        "arm": candidate.arm,
        "hparams": hparams,
        "num_labels": num_labels,
        "num_test_items": len(task.test),
        "seed": _SEED,
        "validation": candidate.validation,
        "metrics": {task.task_type.metric: candidate.value},
        "data": task.name,
        "fingerprint": task.dataset.info["fingerprint"],
    }
    if isinstance(arm, ModelArm):
        fitted = arm.fit(task.pool_rows(train_idx), task.strata[train_idx], _SEED, hparams)
        kept = adapted_model(
            arm.model,
            fitted,
            hparams,
            _SEED,
            dataset=task.dataset,
            task_type=task.task_type,
            tokenizer=arm.tokenizer,
            columns=columns,
            run=run,
        )
    elif isinstance(arm, ClassicalArm | ClassicalNerArm):
        kept = classical_model(
            task, arm, train_idx, hparams, _SEED, tokenizer=tokenizer, columns=columns, run=run
        )
    else:
        raise UserError("its result is not one model")
    saved_model.save(folder, kept, _card(task, candidate, run))
    how = hparams.get("member") or hparams.get("method", CLASSICAL)
    return (
        f"{task.name}: {folder} keeps {candidate.arm} ({how}) with {num_labels:,} labels, "
        f"{_score(candidate)} on validation in the mean over {candidate.seeds} seeds; the model is "
        "that of the first seed"
    )


def _ahead(
    name: str, candidates: Sequence[Candidate], kept: Candidate, reasons: dict[str, str]
) -> list[str]:
    """Returns a line for each arm that is better on validation and could not be kept."""
    return [
        f"{name}: {other.arm} is better on validation by "
        f"{other.validation - kept.validation:.3f} ({_score(other)}) and cannot be kept: "
        f"{reasons[other.arm]}"
        for other in candidates
        if other.arm in reasons and np.isfinite(other.validation)
    ]


def _score(candidate: Candidate) -> str:
    if not np.isfinite(candidate.validation):
        return "not scored"
    return f"{candidate.validation:.3f}"


def _card(task: Task, candidate: Candidate, run: dict[str, Any]) -> ModelCard:
    figure = f"{task.task_type.metric}, {run['num_test_items']:,} test items"
    return ModelCard(
        title=f"{task.name}, {candidate.arm}",
        summary=f"The best model of a comparison on {task.name}, chosen on validation data: "
        f"{candidate.arm} with {run['num_labels']:,} labels, of the first of {candidate.seeds} "
        "seeds.",
        data=(
            data_source(task.dataset, "labels", run["num_labels"]),
            data_source(task.dataset, "test", run["num_test_items"]),
        ),
        training=run["hparams"] | {"seed": run["seed"]},
        figures=(Figure(f"{figure}, mean over {candidate.seeds} seeds", candidate.value),),
        limits=("Its figures are of test items of the same data alone.",),
    )
