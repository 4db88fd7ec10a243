"""The transfer matrix: pretrained on one format alone, adapted to the tasks of every format.

All models are one architecture with the streams of all formats, so that any can start any task:
of one pretrained on X the streams of the others are as fresh as those of the baseline, which is
fresh altogether. Each format is trained on as many rows a step as it has in the joint mixture.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fm.data.groups import rows_of
from fm.study.unify.variants import FRESH, JOINT, Ground

Row = dict[str, Any]


def rows(ground: Ground) -> list[Row]:
    """A row for each task, budget and source: a format, `all` or, the baseline, `nothing`."""
    recipe = ground.config.joint
    weight: dict[str, float] = {}
    for each in ground.corpora:
        weight[each.modality] = weight.get(each.modality, 0.0) + each.weight
    share = rows_of(weight, recipe.batch_size)
    variants = {FRESH: (ground.models[FRESH], {"source": "nothing"})}
    for name in weight:
        own = [each for each in ground.corpora if each.modality == name]
        alone = dataclasses.replace(recipe, batch_size=share[name])
        ready = ground.pretrained(f"only_{name}", own, alone)
        variants[f"only_{name}"] = ready, {"source": name}
    variants[JOINT] = ground.models[JOINT], {"source": "all"}
    return ground.rows(variants, FRESH)
