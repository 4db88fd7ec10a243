"""A mixture of corpora: each format's become one group of a joint step's batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fm.data import tokenizer as bpe
from fm.data.batches import Batches, mixed_batches, piece_batches, text_batches
from fm.data.layouts import Layout, layout_of
from fm.data.mixed import MixedRows, Segment, lay
from fm.data.pieces import text_pieces
from fm.data.splits import Dataset, Split
from fm.errors import UserError
from fm.model.config import CONTINUOUS
from fm.study.corpora import bytes_per_token, held_out, token_counts
from fm.study.reading import Reader
from fm.training.objectives import Objective
from fm.training.unit import BitsPerByte, BitsPerDimension

# Of a group of captioned examples, after its format.
CAPTIONED = "_from_text"
_NEXT = Objective(next=1.0, masked=0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A corpus and its part in the mixture.

    Attributes:
      name: to tell it by.
      modality: its format.
      corpus: the examples.
      weight: of its rows, in any unit.
      layout: how its examples become pieces; None for text.
      captions: class names, where rows of a class's name followed by the example are pretrained on
        too, as a group of its own of the same weight: labels enter, so such a model is no longer
        an unlabelled one's equal. () for none.
    """

    name: str
    modality: str
    corpus: Split
    weight: float = 1.0
    layout: Layout | None = None
    captions: tuple[str, ...] = ()


def source(data: Dataset, weight: float = 1.0, *, captioned: bool = False) -> Source:
    """The training examples of a data set, in its default layout.

    Raises:
      UserError: captions of what has no labels, or of text.
    """
    if captioned and (data.modality == "text" or data.train.labels is None):
        raise UserError(f"{data.name} cannot be captioned: takes labelled images, sounds or clips")
    layout = None
    if data.modality != "text":
        layout = layout_of(data.modality, data.info["shape"], data.info["rate"])
    captions = data.classes if captioned else ()
    return Source(data.name, data.modality, data.train, weight, layout, captions)


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """The sources of one format.

    Attributes:
      parts: what `batches` read of each source, to train on and held out.
    """

    objective: Objective
    unit: BitsPerByte | BitsPerDimension
    weights: list[float]
    parts: tuple[list[Any], ...]
    seed: int
    layout: Layout | None = None
    length: int = 0
    counts: np.ndarray | int = 0

    @property
    def weight(self) -> float:
        """Of its rows."""
        return sum(self.weights)

    def batches(self, batch_size: int, part: int) -> Batches:
        """Of the training part (0) or of what is held out (1)."""
        found = self.parts[part]
        how: dict[str, Any] = {"batch_size": batch_size, "seed": self.seed, "weights": self.weights}
        if isinstance(found[0], MixedRows):
            return mixed_batches(found, **how)
        if self.layout is not None:
            where = self.layout.positions()
            return piece_batches(found, where, stream=self.layout.modality, **how)
        return text_batches(found, length=self.length, share_rows=self.objective.bag == 0, **how)


def groups_of(
    sources: Sequence[Source],
    objectives: Mapping[str, Objective],
    length: int,
    reads: Reader,
    seed: int,
) -> dict[str, Group]:
    """The groups of a mixture, named after their format; captioned examples apart.

    Args:
      sources: in any order.
      objectives: of each format.
      length: tokens in a row of text.
      reads: tokenizer and layouts.
      seed: draws what is held out, and the order.
    """
    groups: dict[str, Group] = {}
    for name in ("text", *CONTINUOUS):
        of_name = [each for each in sources if each.modality == name]
        if not of_name:
            continue
        split = [held_out(len(each.corpus), seed) for each in of_name]
        weights = [each.weight for each in of_name]
        if name == "text":
            groups[name] = _text(of_name, split, objectives[name], length, reads, seed)
            continue
        layout, unit = reads.layouts[name], BitsPerDimension()
        cut = [
            layout.cut(np.asarray(each.corpus.inputs(range(len(each.corpus))))) for each in of_name
        ]
        parts = tuple(
            [pieces[places[part]] for pieces, places in zip(cut, split, strict=True)]
            for part in (0, 1)
        )
        groups[name] = Group(objectives[name], unit, weights, parts, seed, layout)
        captioned = [n for n, each in enumerate(of_name) if each.captions]
        if captioned:
            parts = tuple(
                [_captioned(of_name[n], cut[n], split[n][part], reads) for n in captioned]
                for part in (0, 1)
            )
            weights = [weights[n] for n in captioned]
            groups[f"{name}{CAPTIONED}"] = Group(_NEXT, unit, weights, parts, seed)
    return groups


def _text(
    sources: list[Source],
    split: list[tuple[np.ndarray, np.ndarray]],
    objective: Objective,
    length: int,
    reads: Reader,
    seed: int,
) -> Group:
    assert reads.tokenizer is not None
    texts = [
        [each.corpus.texts(places[part]) for each, places in zip(sources, split, strict=True)]
        for part in (0, 1)
    ]
    parts = tuple([text_pieces(reads.tokenizer, each, length) for each in part] for part in texts)
    counts = token_counts([piece for each in parts[0] for piece in each], reads.model.vocab)
    unit = BitsPerByte(bytes_per_token([text for each in texts[0] for text in each], counts))
    weights = [each.weight for each in sources]
    return Group(objective, unit, weights, parts, seed, length=length, counts=counts)


def _captioned(source: Source, pieces: np.ndarray, chosen: np.ndarray, reads: Reader) -> MixedRows:
    """Rows of a class's name, given, and the example, asked for."""
    assert source.layout is not None and reads.tokenizer is not None
    labels = np.asarray(source.corpus.labels)
    names = [caption(reads.tokenizer, name) for name in source.captions]
    places = source.layout.positions()
    examples = [
        lay(
            [
                Segment("tokens", names[labels[n]], answer=False),
                Segment(source.modality, pieces[n], places, start=True),
            ],
            reads.model.streams,
        )
        for n in chosen
        if labels[n] >= 0
    ]
    widths = [("tokens", 0), (source.modality, source.layout.size)]
    longest = max(map(len, names)) + len(places) + 1
    return MixedRows(examples, longest, widths, share_rows=False)


def caption(tokenizer: bpe.Tokenizer, name: str) -> np.ndarray:
    """Token ids of what a picture, sound or clip is led by, int32."""
    (ids,) = tokenizer.encode([name])
    return np.concatenate([[tokenizer.bos], ids]).astype(np.int32)
