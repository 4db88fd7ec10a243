"""Labels new examples with an adapted model: batch by batch, resumable, into predictions.csv.

A finished part of the file is kept in OUT/parts until all are there, so that the same command goes
on after an interruption. The numbers of an example do not depend on its batch.
"""

from __future__ import annotations

import csv
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fm.data.new_examples import NewExamples
from fm.errors import UserError
from fm.files import atomic_path
from fm.progress_lines import Phase, phase
from fm.study.adaptation import Predictions
from fm.study.adapted_model import AdaptedModel
from fm.study.run_dir import PREDICTIONS_FILE

PARTS_DIR = "parts"
# Examples in a part, which is what an interruption costs at most.
PART_SIZE = 1024


def header(adapted: AdaptedModel, *, truth: bool, probabilities: bool, text: bool = False) -> list:
    """Returns the columns of predictions.csv."""
    classes = [f"p_{name}" for name in adapted.names] if probabilities else []
    return ["id", *["truth"] * truth, "prediction", *classes, *["text"] * text]


def rows(
    adapted: AdaptedModel,
    predictions: Predictions,
    ids: Sequence[str],
    truths: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
) -> Iterator[list]:
    """Yields the rows of predictions.csv: id, truth, prediction, probabilities and text."""
    names = adapted.prediction_texts(predictions)
    for n, (row_id, name) in enumerate(zip(ids, names, strict=True)):
        row = [row_id] if truths is None else [row_id, truths[n]]
        row.append(name)
        if predictions.probabilities is not None:
            row += [str(value) for value in predictions.probabilities[n]]
        yield row if texts is None else [*row, texts[n]]


def write_predictions(
    path: pathlib.Path,
    adapted: AdaptedModel,
    predictions: Predictions,
    ids: Sequence[str],
    truths: Sequence[str],
    texts: Sequence[str] | None = None,
) -> None:
    """Writes predictions of scored items as CSV, atomically."""
    has = predictions.probabilities is not None
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(header(adapted, truth=True, probabilities=has, text=texts is not None))
        table.writerows(rows(adapted, predictions, ids, truths, texts))


def label_examples(
    adapted: AdaptedModel,
    examples: NewExamples,
    out_dir: pathlib.Path,
    *,
    batch_size: int,
    score: bool = False,
) -> pathlib.Path:
    """Writes predictions of all examples to OUT/predictions.csv; returns its path.

    Args:
      adapted: labels them.
      examples: to label.
      out_dir: folder of the run; its finished parts are not computed again.
      batch_size: examples read, labeled and written at once.
      score: whether their labels are written too, in a column `truth`; empty for none.

    Raises:
      UserError: an example cannot be read.
    """
    parts_dir = out_dir / PARTS_DIR
    starts = range(0, len(examples), PART_SIZE)
    done = [start for start in starts if _part(parts_dir, start).exists()]
    num_done = sum(min(PART_SIZE, len(examples) - start) for start in done)
    with phase("labeling", len(examples), "examples", done=num_done) as shown:
        for start in starts:
            if start in done:
                continue
            idx = np.arange(start, min(start + PART_SIZE, len(examples)))
            with atomic_path(_part(parts_dir, start)) as partial:
                _write_part(partial, adapted, examples, idx, batch_size, shown, score=score)
    path = out_dir / PREDICTIONS_FILE
    with atomic_path(path) as partial, partial.open("wb") as file:
        for n, start in enumerate(starts):
            with _part(parts_dir, start).open("rb") as part:
                first = part.readline()
                file.write(first if n == 0 else b"")
                shutil.copyfileobj(part, file)
    shutil.rmtree(parts_dir)
    return path


def _part(parts_dir: pathlib.Path, start: int) -> pathlib.Path:
    return parts_dir / f"{start:012d}.csv"


def _write_part(
    path: pathlib.Path,
    adapted: AdaptedModel,
    examples: NewExamples,
    idx: np.ndarray,
    batch_size: int,
    shown: Phase,
    *,
    score: bool,
) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        for start in range(0, len(idx), batch_size):
            batch = idx[start : start + batch_size]
            predictions = adapted.predict(examples.read(batch))
            if not start:
                has = predictions.probabilities is not None
                table.writerow(header(adapted, truth=score, probabilities=has))
            ids = [examples.ids[int(n)] for n in batch]
            truths = [truth_text(examples.labels[n]) for n in batch] if score else None
            table.writerows(rows(adapted, predictions, ids, truths))
            shown.update(len(batch))


def truth_text(label: Any) -> str:
    """Returns a label as predictions.csv shows it, "" for none."""
    if label is None:
        return ""
    if isinstance(label, list):
        return " ".join(label)
    return ";".join(label) if isinstance(label, tuple) else str(label)


def check_labels(adapted: AdaptedModel, examples: NewExamples) -> None:
    """Raises UserError unless some of the examples have labels that the model may predict."""
    known = set(adapted.names)
    labels = [label for label in examples.labels if label is not None]
    if not labels:
        raise UserError("--score: the data has no labels to compare with; leave --score out")
    if adapted.task_type.predicts_classes and not known & {str(label) for label in labels}:
        raise UserError(
            f"--score: none of the labels is a class of the model, such as {labels[0]!r}; it "
            f"predicts {', '.join(map(repr, adapted.names[:8]))}"
        )


def score_file(
    adapted: AdaptedModel, path: pathlib.Path, labels: Sequence[Any]
) -> tuple[str, float, int]:
    """Returns (metric, figure, number of labeled examples) of a file with a column `truth`.

    Args:
      adapted: the model.
      path: written by `label_examples`.
      labels: of the examples in the order of the file; those without one do not count.
    """
    truths, predictions = [], []
    with path.open(newline="", encoding="utf-8") as file:
        for row, label in zip(csv.DictReader(file), labels, strict=True):
            if label is not None:
                truths.append(row["truth"])
                predictions.append(row["prediction"])
    figure = adapted.task_type.score_texts(truths, predictions)
    return adapted.task_type.metric, figure, len(truths)
