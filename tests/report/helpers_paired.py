"""Results of a paired comparison in which every outcome occurs."""

from fm.report import paired


def row(arm, difference, half, p_adjusted, p_equivalence=0.5, **more):
    given = {
        "task": "predictions",
        "num_labels": None,
        "arm": arm,
        "baseline": "base",
        "difference": difference,
        "low": difference - half,
        "high": difference + half,
        "p": p_adjusted / 2,
        "p_adjusted": p_adjusted,
        "p_equivalence": p_equivalence,
        "margin": 0.01,
        "detectable": 0.0213,
        "seeds": 5,
        "items": 1200,
        "groups": None,
        "checkpoints": 1,
        "seeds_to_decide": None,
        "items_to_decide": None,
        "variance": {"run": 1e-4, "item": 0.04},
        "primary": True,
    }
    return given | more


ROWS = [
    row("better", 0.05, 0.02, 0.001),
    row("worse", -0.05, 0.02, 0.001),
    row("equal", 0.001, 0.004, 0.8, 0.001),
    row("small", 0.006, 0.003, 0.001, 0.01),
    row("open", 0.01, 0.03, 0.4, seeds_to_decide=12, items_to_decide=4100),
    row("<b>hopeless</b>", 0.001, 0.03, 0.9),
]
VERDICTS = {
    "better": "better",
    "worse": "worse",
    "equal": "equivalent",
    "small": "better within the margin",
    "open": "unclear",
    "<b>hopeless</b>": "unclear",
}


def results(metric="accuracy", rows=None, seeds=5, **more):
    names = ["base", *VERDICTS]
    cell = {"task": "predictions", "num_labels": None, "value": 0.8, "balanced_accuracy": 0.75}
    cell |= {"macro_f1": 0.7, "nll": None, "ece": None}
    if metric == paired.SCORE:
        cell |= {"balanced_accuracy": None, "macro_f1": None, "value": 12.345}
    task = {"name": "predictions", "metric": metric, "test": 1200, "classes": ["a", "b"]}
    task |= {"majority_rate": 0.6, "item_group": None, "groups": None}
    given = {
        "schema": 2,
        "experiment": "paired",
        "config": {"metric": metric, "baseline": "base", "margin": 0.01, "files": ["a.csv"]},
        "arms": [{"name": name, "title": name} for name in names],
        "tasks": [task],
        "seed_names": [str(n) for n in range(seeds)],
        "cells": [cell | {"arm": name, "seed": n} for name in names for n in range(seeds)],
        "comparisons": ROWS if rows is None else rows,
        "notices": ["a.csv: columns not used: note."],
        "method_notes": [("Pairing", "By name.")],
    }
    return given | more
