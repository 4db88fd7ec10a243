"""Model cards: the README.md of a saved or exported model, written from its run."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import binomtest

from fm.data.datasets import Dataset
from fm.files import atomic_write, expand_path

MODEL_CARD_FILE = "README.md"
# What holds for every model of this project, whatever its data.
GENERAL_LIMITS = (
    "The model knows what is in its training data alone: it is not checked for bias, for memorized "
    "or personal data, or for use on other data than those named above.",
    "No license is chosen for the weights; the licenses of the data named above apply.",
)


@dataclasses.dataclass(frozen=True)
class DataSource:
    """Data that a model was trained or tested on, as a row of its card.

    Attributes:
      name: of the data set.
      use: what it was used for, such as "pretraining", "labels" or "test".
      rows: examples used; None if not known.
      license: of the data; "" if not known.
      fingerprint: hash of ids and labels; "" if not known.
    """

    name: str
    use: str
    rows: int | None = None
    license: str = ""
    fingerprint: str = ""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measured figure of a model, with its interval where there is one.

    Attributes:
      name: what was measured, on what, such as "accuracy, 200 test items".
      value: the figure.
      low: lower end of its 95% interval, or None.
      high: upper end of its 95% interval, or None.
      percent: whether the figure is a share from 0 to 1, shown in percent.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    percent: bool = True

    def __str__(self) -> str:
        """Returns the figure and its interval, such as "61.2% [58.0%, 64.3%]"."""
        text = self._format(self.value)
        if self.low is None or self.high is None:
            return text
        return f"{text} [{self._format(self.low)}, {self._format(self.high)}]"

    def _format(self, value: float) -> str:
        return (f"{100 * value:.1f}%" if self.percent else f"{value:.4g}").replace("-", "\u2212")


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """Content of a model card.

    Attributes:
      title: name of the model.
      summary: what the model is and does, in a sentence or two.
      data: data it was trained and tested on.
      training: how it was trained, by name: method, steps, hyper-parameters, size.
      figures: measured figures.
      limits: what it cannot do, or was not tested on; `GENERAL_LIMITS` follow.
      usage: (sentence, commands or code, language) for each way to use it; language such as "sh".
      metadata: front matter that the Hugging Face hub reads, such as {"library_name": ...}.
    """

    title: str
    summary: str
    data: Sequence[DataSource] = ()
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    figures: Sequence[Figure] = ()
    limits: Sequence[str] = ()
    usage: Sequence[tuple[str, str, str]] = ()
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def data_source(dataset: Dataset, use: str, rows: int | None = None) -> DataSource:
    """Returns the card's row of a data set.

    Args:
      dataset: as loaded.
      use: see `DataSource`.
      rows: examples used; by default all of the training split.
    """
    return DataSource(
        name=public_name(dataset.name),
        use=use,
        rows=len(dataset.train) if rows is None else rows,
        license=str(dataset.info.get("licence") or ""),
        fingerprint=str(dataset.info.get("fingerprint") or ""),
    )


def accuracy_figure(name: str, accuracy: float, num_items: int) -> Figure:
    """Returns an accuracy with its 95% interval over test items (Wilson 1927).

    The interval covers which items are in the test set, not which labels were drawn.
    """
    interval = binomtest(round(accuracy * num_items), num_items).proportion_ci(method="wilson")
    return Figure(name, accuracy, float(interval.low), float(interval.high))


def public_name(name: str) -> str:
    """Returns a data set's name; of a file or folder without the folders that it is in."""
    path = expand_path(name)
    return path.resolve().name if path.exists() else name


def render(card: ModelCard) -> str:
    """Returns the card as Markdown, sections without content left out."""
    parts = []
    if card.metadata:
        # JSON values are YAML values.
        lines = [f"{name}: {json.dumps(value)}" for name, value in card.metadata.items()]
        parts.append("\n".join(["---", *lines, "---"]))
    parts += [f"# {_inline(card.title)}", card.summary]
    if card.data:
        rows = [
            (
                source.name,
                source.use,
                "not known" if source.rows is None else f"{source.rows:,}",
                source.license or "not known",
                source.fingerprint or "not known",
            )
            for source in card.data
        ]
        parts += ["## Data", _table(("data", "used for", "rows", "license", "fingerprint"), rows)]
    if card.training:
        rows = [(name, _shown(value)) for name, value in card.training.items()]
        parts += ["## Training", _table(("what", "value"), rows)]
    if card.figures:
        rows = [(figure.name, str(figure)) for figure in card.figures]
        parts += ["## Figures", _table(("measured", "value [95% interval]"), rows)]
    parts += ["## Limits", "\n".join(f"- {limit}" for limit in (*card.limits, *GENERAL_LIMITS))]
    if card.usage:
        parts.append("## Use")
        parts += [f"{text}\n\n{_fenced(code, language)}" for text, code, language in card.usage]
    return "\n\n".join(parts) + "\n"


def write_model_card(folder: pathlib.Path, card: ModelCard) -> pathlib.Path:
    """Writes the card as README.md of a model's folder, atomically; returns its path."""
    path = folder / MODEL_CARD_FILE
    atomic_write(path, render(card))
    return path


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_inline, line))} |" for line in lines)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _inline(text: str) -> str:
    """Returns text that stays in its cell and its line, and starts no HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _fenced(code: str, language: str) -> str:
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"
