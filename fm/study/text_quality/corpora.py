"""Texts of the study's domains: training texts, the scorer's texts, held-out texts."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from fm.data import tokenizer as bpe
from fm.data.datasets import Split, subset
from fm.data.decontamination import find_duplicates
from fm.errors import UserError
from fm.files import atomic_path
from fm.study.loading import load
from fm.study.text_quality.config import DOMAINS, CorpusPart, TextQualityConfig, TrainingSet

_PRINTABLE = np.array(list(map(chr, range(33, 127))))


@dataclasses.dataclass(frozen=True, eq=False)
class Domain:
    """Texts of one domain, split to train the models, train the scoring model, and evaluate.

    Attributes:
      letter: "A" or "B".
      name: of the data set.
      train: for the arms.
      scorer_train: for the scorer.
      held_out: seen by no model.
      info: of the data set.
      decontamination: what was searched, found and removed, as a row of results.
    """

    letter: str
    name: str
    train: list[str]
    scorer_train: list[str]
    held_out: list[str]
    info: dict[str, Any]
    decontamination: dict[str, Any]


def load_domains(config: TextQualityConfig) -> dict[str, Domain]:
    """Loads the config's two text domains, each split; returns them as {"A": ..., "B": ...}.

    Raises:
      UserError: the data is not text, or there is too little of it.
    """
    return {
        letter: _load_domain(letter, name, config)
        for letter, name in zip(DOMAINS, config.domains, strict=True)
    }


def _load_domain(letter: str, name: str, config: TextQualityConfig) -> Domain:
    data = load(
        name,
        data_dir=config.data_dir,
        text_column=config.text_column,
        label_column="",
        encoding=config.encoding,
    )
    if data.modality != "text":
        raise UserError(f"{name} holds {data.modality}s; this study requires texts")
    order = np.random.default_rng(config.seed).permutation(len(data.train))
    if len(order) < 4 * config.num_held_out:
        raise UserError(
            f"{name} has {len(order)} training texts; this study needs {4 * config.num_held_out}, "
            f"of which {config.num_held_out} are held out (the quick profile needs fewer)"
        )
    held_out_idx, rest = order[: config.num_held_out], order[config.num_held_out :]
    cumulative_bytes = np.cumsum([len(text.encode()) for text in data.train.texts(rest)])
    # The scorer gets a third of a small corpus.
    train_bytes = min(config.train_bytes, int(cumulative_bytes[-1] * 2 / 3))
    train_end, scorer_end = np.searchsorted(cumulative_bytes, [train_bytes, train_bytes * 3 // 2])
    train = subset(data.train, rest[:train_end])
    scorer_train = subset(data.train, rest[train_end:scorer_end])
    held_out = subset(data.train, held_out_idx)
    duplicates = find_duplicates(train, held_out, "text")
    return Domain(
        letter,
        name,
        _without(train, duplicates.duplicate_idx),
        _without(scorer_train, find_duplicates(scorer_train, held_out, "text").duplicate_idx),
        held_out.texts(range(len(held_out))),
        data.info,
        {
            "domain": letter,
            "method": duplicates.method,
            "checked": duplicates.num_checked,
            "found": duplicates.num_found,
            "removed": len(duplicates.duplicate_idx),
        },
    )


def _without(split: Split, removed_idx: np.ndarray) -> list[str]:
    return split.texts(np.setdiff1d(np.arange(len(split)), removed_idx))


def load_or_train_tokenizer(
    domains: dict[str, Domain], vocab_size: int, out_dir: pathlib.Path
) -> bpe.Tokenizer:
    """Returns the study's tokenizer, trained on both domains; reads it if saved in `out_dir`.

    One for all arms, so that their samples are equally long in tokens.
    """
    path = out_dir / "tokenizer.json"
    if not path.exists():
        texts = [text for domain in domains.values() for text in domain.train]
        with atomic_path(path) as partial:
            bpe.train(texts, vocab_size).save(partial)
    return bpe.load(path)


def part_texts(part: CorpusPart, domains: dict[str, Domain]) -> list[str]:
    """Returns the training texts of one corpus part, with its character noise applied."""
    texts = domains[part.domain].train
    texts = texts[: max(1, round(part.fraction * len(texts)))]
    if not part.noise_rate:
        return texts
    rng = np.random.default_rng(0)
    return [add_noise(text, part.noise_rate, rng) for text in texts]


def all_training_texts(
    training_set: TrainingSet, domains: dict[str, Domain], training_sets: tuple[TrainingSet, ...]
) -> list[str]:
    """Returns the distinct texts of a training set and of the set its initial model trained on."""
    before = [each for each in training_sets if each.name == training_set.init_from]
    parts = [part for each in (*before, training_set) for part in each.parts]
    return list(dict.fromkeys(text for part in parts for text in part_texts(part, domains)))


def add_noise(text: str, rate: float, rng: np.random.Generator) -> str:
    """Returns the text with a fraction `rate` of characters dropped, doubled or replaced."""
    uniform = rng.random(len(text))
    replacements = rng.choice(_PRINTABLE, len(text))
    return "".join(
        character if u >= rate else ("", character * 2, str(other))[int(u / rate * 3)]
        for character, u, other in zip(text, uniform, replacements, strict=True)
    )
