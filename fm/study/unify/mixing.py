"""What each task gains and loses when a format has more or less of the joint mixture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from fm.data.groups import rows_of
from fm.study.mixture import Source
from fm.study.unify.variants import JOINT, Ground

Row = dict[str, Any]
FACTORS = (0.25, 4.0)


def rows(ground: Ground) -> list[Row]:
    """A row for each task, budget, format and factor of its weight; the study's own is factor 1.

    `shares` are the formats' shares of rows in the mixture, as they came out in whole rows.
    """
    batch = ground.config.joint.batch_size
    about: Row = {"format": None, "factor": 1.0, "shares": shares(ground.corpora, batch)}
    variants = {JOINT: (ground.models[JOINT], about)}
    for name in about["shares"]:
        for factor in FACTORS:
            mixed = weighted(ground.corpora, name, factor)
            called = f"{name}_by_{factor:g}"
            about = {"format": name, "factor": factor, "shares": shares(mixed, batch)}
            variants[called] = ground.pretrained(called, mixed, ground.config.joint), about
    return ground.rows(variants, JOINT)


def weighted(corpora: Sequence[Source], modality: str, factor: float) -> list[Source]:
    """The mixture with the weight of one format's sources multiplied."""
    return [
        dataclasses.replace(each, weight=each.weight * factor)
        if each.modality == modality
        else each
        for each in corpora
    ]


def shares(corpora: Sequence[Source], batch_size: int) -> dict[str, float]:
    """Share of a batch's rows that each format gets."""
    weight: dict[str, float] = {}
    for each in corpora:
        weight[each.modality] = weight.get(each.modality, 0.0) + each.weight
    return {name: rows / batch_size for name, rows in rows_of(weight, batch_size).items()}
