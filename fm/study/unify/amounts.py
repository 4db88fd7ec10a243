"""How vast must vast be? The joint model from ever fewer examples, as many steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from fm.data.splits import subset
from fm.study.mixture import Source
from fm.study.unify.variants import FRESH, JOINT, Ground

Row = dict[str, Any]
SHARES = (Fraction(1, 64), Fraction(1, 16), Fraction(1, 4))
# One is held out for validation, and one is to learn from.
_LEAST = 2


def rows(ground: Ground) -> list[Row]:
    """A row for each task, budget and share of the examples; 0 is a fresh model, the baseline.

    The tokenizer stays that of all text.
    """
    variants = {FRESH: (ground.models[FRESH], {"share": 0.0, "examples": 0})}
    for share in SHARES:
        corpora = part(ground.corpora, share)
        called = f"share_{share.numerator}_{share.denominator}"
        ready = ground.pretrained(called, corpora, ground.config.joint)
        variants[called] = ready, {"share": float(share), "examples": _count(corpora)}
    whole = {"share": 1.0, "examples": _count(ground.corpora)}
    variants[JOINT] = ground.models[JOINT], whole
    return ground.rows(variants, FRESH)


def part(corpora: Sequence[Source], share: Fraction) -> list[Source]:
    """So much of every source, drawn at random; what is in a smaller part is in a larger one."""
    made = []
    for each in corpora:
        count = max(_LEAST, round(len(each.corpus) * share))
        drawn = np.random.default_rng(0).permutation(len(each.corpus))[:count]
        made.append(dataclasses.replace(each, corpus=subset(each.corpus, np.sort(drawn))))
    return made


def _count(corpora: Sequence[Source]) -> int:
    return sum(len(each.corpus) for each in corpora)
