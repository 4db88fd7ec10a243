"""How pretraining went, format by format: of a model of it alone, and of the one of all."""

from __future__ import annotations

from typing import Any

import numpy as np

from fm.study.multitask import InitialModel
from fm.study.multitask_config import MultitaskConfig

Row = dict[str, Any]


def multitask_curve_rows(
    models: dict[str, dict[str, InitialModel]], config: MultitaskConfig
) -> list[Row]:
    """Loss of each format against pieces of that format seen, see `own_pieces`.

    `task` is the format; `share` that of all pieces seen in the run.
    """
    asks = dict(config.joint.objectives)
    made = []
    for arm, by_format in models.items():
        for name, ready in by_format.items():
            if ready.run is None:
                continue
            unit = "bits per byte" if name == "text" else "bits per dimension"
            found = modality_curve(ready.run.curve, name)
            place = {"task": name, "arm": arm, "kind": "pretrain"}
            made.append(place | {"unit": unit if asks[name].causal_lm else "loss in bits"} | found)
    return made


def modality_curve(curve: dict[str, list[float]], group: str) -> Row:
    """A group's part of a run's curve (`fm.training.metric_writer.learning_curve`), over its own pieces alone.

    Pieces between two records count for the group by its share of them; at validation they are
    read off between the records.
    """
    tokens = np.asarray(curve["tokens"], float)
    own = np.cumsum(np.diff(tokens, prepend=0.0) * curve[f"{group}/share"])
    at = np.interp(curve["validation_tokens"], [0.0, *tokens], [0.0, *own])
    return {
        "tokens": own.tolist(),
        "value": curve[f"{group}/value"],
        "validation_tokens": at.tolist(),
        "validation": curve[f"{group}/validation"],
        "share": float(own[-1] / tokens[-1]),
    }
