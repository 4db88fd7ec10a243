"""What results tell of a domain and of a sample, as JSON."""

from __future__ import annotations

from typing import Any

from fm.evaluation.text_quality.validity import faults
from fm.study.text_quality.corpora import Domain
from fm.study.text_quality.samples import Sample

Row = dict[str, Any]
_SHOWN = 3


def about(domain: Domain) -> Row:
    """The domain as the page tells of it."""
    return {
        "letter": domain.letter,
        "name": domain.name,
        "train_texts": len(domain.train),
        "train_bytes": sum(len(text.encode()) for text in domain.train),
        "judge_texts": len(domain.judge),
        "held_out": len(domain.held_out),
        **{key: domain.info[key] for key in ("description", "licence", "fingerprint")},
    }


def shown(sample: Sample) -> list[Row]:
    """The first few texts of a sample."""
    return [
        {"prompt": prompt, "text": text, "faults": list(faults(text))}
        for prompt, text in zip(sample.prompts[:_SHOWN], sample.texts[:_SHOWN], strict=True)
    ]


def place(row: Row) -> Row:
    """Which checkpoint and decoding a row is of."""
    return {key: row[key] for key in ("stage", "decoding")}
