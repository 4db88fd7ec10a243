"""The texts of a domain: what is trained on, what the judge gets, what is set aside."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from fm.data import tokenizer as bpe
from fm.data.datasets import Split, subset
from fm.data.decontamination import find_duplicates
from fm.data.load import load
from fm.errors import UserError
from fm.files import atomic_path
from fm.study.text_quality.config import DOMAINS, CorpusPart, TextQualityConfig, TrainingSet

_PRINTABLE = np.array(list(map(chr, range(33, 127))))


@dataclasses.dataclass(frozen=True, eq=False)
class Domain:
    """The texts of one domain; what is set aside has no near-duplicate elsewhere.

    Attributes:
      letter: "A" or "B".
      name: of the data set.
      train: for the arms.
      scorer_train: for the judge.
      held_out: seen by no model.
      info: of the data set.
      decontamination: what was searched for, found and removed, as a row of results.
    """

    letter: str
    name: str
    train: list[str]
    scorer_train: list[str]
    held_out: list[str]
    info: dict[str, Any]
    decontamination: dict[str, Any]


def load_domains(config: TextQualityConfig) -> dict[str, Domain]:
    """Both domains, by letter.

    All come from the training splits; official test splits are left alone.

    Raises:
      UserError: data that is not text, or too little of it.
    """
    return {
        letter: _domain(letter, name, config)
        for letter, name in zip(DOMAINS, config.domains, strict=True)
    }


def _domain(letter: str, name: str, config: TextQualityConfig) -> Domain:
    data = load(name, data_dir=config.data_dir, text_column=config.text_column, label_column="")
    if data.modality != "text":
        raise UserError(f"{name} holds {data.modality}s; this study takes texts")
    order = np.random.default_rng(config.seed).permutation(len(data.train))
    if len(order) < 4 * config.num_held_out:
        raise UserError(
            f"{name} has {len(order)} training texts; this study needs {4 * config.num_held_out}, of "
            f"which {config.num_held_out} are set aside (the quick profile needs fewer)"
        )
    held_out, rest = order[: config.num_held_out], order[config.num_held_out :]
    sizes = np.cumsum([len(text.encode()) for text in data.train.texts(rest)])
    # Of a small corpus the judge gets a third.
    most = min(config.train_bytes, int(sizes[-1] * 2 / 3))
    ends = np.searchsorted(sizes, [most, most * 3 // 2])
    groups = subset(data.train, rest[: ends[0]]), subset(data.train, rest[ends[0] : ends[1]])
    return _apart(letter, name, groups, subset(data.train, held_out), data.info)


def _apart(
    letter: str, name: str, groups: tuple[Split, Split], held_out: Split, info: dict[str, Any]
) -> Domain:
    """The groups without near-duplicates of what is set aside."""
    train, judge = groups
    leaks = find_duplicates(train, held_out, "text")
    train_texts = _less(train, leaks.duplicate_idx)
    judge_texts = _less(judge, find_duplicates(judge, held_out, "text").duplicate_idx)
    return Domain(
        letter,
        name,
        train_texts,
        judge_texts,
        held_out.texts(range(len(held_out))),
        info,
        {
            "domain": letter,
            "method": leaks.method,
            "checked": leaks.num_checked,
            "found": leaks.num_found,
            "removed": len(leaks.duplicate_idx),
        },
    )


def _less(split: Split, removed: np.ndarray) -> list[str]:
    return split.texts(np.setdiff1d(np.arange(len(split)), removed))


def load_or_train_tokenizer(
    found: dict[str, Domain], vocab: int, out: pathlib.Path
) -> bpe.Tokenizer:
    """The one tokenizer of all arms, trained on both domains' training texts, saved with the run.

    One for all, so that samples of all arms are equally long in tokens.
    """
    path = out / "tokenizer.json"
    if not path.exists():
        both = [text for domain in found.values() for text in domain.train]
        with atomic_path(path) as partial:
            bpe.train(both, vocab).save(partial)
    return bpe.load(path)


def part_texts(part: CorpusPart, found: dict[str, Domain]) -> list[str]:
    """The texts of an ingredient, noise included."""
    texts = found[part.domain].train
    own = texts[: max(1, round(part.fraction * len(texts)))]
    if not part.noise_rate:
        return own
    draws = np.random.default_rng(0)
    return [add_noise(text, part.noise_rate, draws) for text in own]


def training_set_texts(
    diet: TrainingSet, found: dict[str, Domain], diets: tuple[TrainingSet, ...]
) -> list[str]:
    """All a model has read, of the arm it went on from too; each text once."""
    before = [each for each in diets if each.name == diet.init_from]
    parts = [part for each in (*before, diet) for part in each.parts]
    return list(dict.fromkeys(text for part in parts for text in part_texts(part, found)))


def add_noise(text: str, share: float, draws: np.random.Generator) -> str:
    """The text with a share of its characters dropped, doubled or replaced, a third each."""
    spots = draws.random(len(text))
    strange = draws.choice(_PRINTABLE, len(text))
    return "".join(
        character if spot >= share else ("", character * 2, str(other))[int(spot / share * 3)]
        for character, spot, other in zip(text, spots, strange, strict=True)
    )
