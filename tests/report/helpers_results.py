"""A results dict as `compare` writes it, made up but realistic, with text meant to break a page."""

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image

HOSTILE = "<script>alert(1)</script>"
BUDGETS, SEEDS = (64, 128, 256, 400), 8
_TASKS = {"reviews": ("text", ["negative", "positive"]), "digits": ("image", list("0123456789"))}
# Accuracy at the fewest labels and what each doubling adds.
_QUALITY = {
    "reviews": {
        "scratch": (0.60, 0.035),
        "in_domain": (0.79, 0.012),
        "out_of_domain": (0.655, 0.03),
        "published": (0.76, 0.018),
        "classical": (0.695, 0.03),
        "classical_unlabeled": (0.735, 0.026),
    },
    "digits": {
        "scratch": (0.80, 0.05),
        "in_domain": (0.86, 0.025),
        "out_of_domain": (0.79, 0.046),
        "classical": (0.885, 0.025),
        "classical_unlabeled": (0.87, 0.03),
    },
}


# Title, what it was pretrained on, rivals, color, line and marker.
ARMS = {
    "scratch": ("training from scratch", None, [], "#000000", [0, [5, 2]], "s"),
    "in_domain": (
        "pretraining on your own unlabeled {data}",
        *("the task's own data", ["scratch", "classical"], "#0072B2", "-", "o"),
    ),
    "out_of_domain": (
        "pretraining on other {data}",
        *("other data", ["scratch", "classical"], "#009E73", "-", "^"),
    ),
    "joint": ("joint pretraining", "all modalities", ["scratch"], "#CC79A7", "-", "D"),
    "instruction_tuned": (
        "instruction tuning",
        *("all modalities", ["joint"], "#56B4E9", [0, [7, 1, 1, 1]], "v"),
    ),
    "published": (
        "starting from published weights",
        *("published data", ["scratch", "classical"], "#8A7700", "-", "P"),
    ),
    "classical": ("the classical baseline", None, ["scratch"], "#E69F00", [0, [1, 1]], "X"),
    "classical_unlabeled": (
        "the classical baseline with unlabeled {data}",
        *(None, ["scratch"], "#882255", [0, [3, 1]], "<"),
    ),
}
PRETRAINED = ("in_domain", "out_of_domain", "published")
RIVALS = ("scratch", "classical", "classical_unlabeled")


def arm(name: str) -> dict[str, Any]:
    """An entry of `arms`."""
    title, pretrained_on, rivals, color, linestyle, marker = ARMS[name]
    look = {"color": color, "linestyle": linestyle, "marker": marker}
    about = {"name": name, "title": title, "description": f"{title.capitalize()} & labels."}
    return about | look | {"pretrained_on": pretrained_on, "rivals": rivals}


def results() -> dict[str, Any]:
    """Two tasks, four budgets, eight seeds over two checkpoints, and every section there is."""
    rng = np.random.default_rng(0)
    cells = [_cell(rng, *key) for key in _keys()]
    comparisons = _comparisons(cells)
    multipliers = _label_efficiency()
    return {
        "schema": 2,
        "experiment": "compare",
        "config": {
            "model": {"d_model": 128, "num_layers": 4, "rope": True},
            "data": {"tasks": ["reviews", "digits"], "note": HOSTILE, "folder": "x/" * 90},
            "pretrain_seeds": 2,
        },
        "config_hash": "4be1f0c2a9",
        "versions": {"jax": "0.10.0", "flax": "0.12.1", "numpy": "2.3.4"},
        "device": {"platform": "cpu", "kind": "x86-64", "count": 1, "cores": 2},
        "xla_flags": "--xla_cpu_use_thunk_runtime=true " * 3,
        "attention": {"reviews": "xla_tiled", "digits": "xla_tiled"},
        "arms": [arm(name) for name in ("scratch", *PRETRAINED, *RIVALS[1:])],
        "cells": cells,
        "comparisons": comparisons,
        "decisions": _decisions(cells, comparisons, multipliers),
        "learning_curves": [
            {"task": task, "arm": arm, "asymptote": 0.0, "scale": scale, "exponent": 0.25}
            for task in _TASKS
            for arm, scale in (
                ("in_domain", 0.6),
                ("classical_unlabeled", 0.9),
                ("classical", 0.8),
            )
        ],
        "crossings": _crossings(),
        "label_efficiency": multipliers,
        "compute_cost": _compute_cost(),
        "decontamination": [
            _decontamination("reviews", "13-gram overlap", 25_000_000, 41),
            _decontamination("digits", "perceptual hash, distance 2 or less", 1_400_000, 0),
        ],
        "tasks": [_task(name, *kind) for name, kind in _TASKS.items()],
        "curves": _curves(),
        "samples": _samples(rng),
        "methods": [_method(task, *each) for task in _TASKS for each in _METHODS],
        "mistakes": _mistakes(rng),
    }


OLD_CELL = (
    *("task", "modality", "arm", "num_labels", "seed", "metric", "value", "validation", "hparams"),
    *("trials", "train_flops", "pretrain_flops", "seconds"),
)
OLD_COMPARISON = (
    *("task", "num_labels", "arm", "baseline", "difference", "low", "high", "p", "p_adjusted"),
    *("seeds", "items", "variance"),
)


def old_results() -> dict[str, Any]:
    """The same as a file that knows nothing of decisions, checkpoints, or other scores."""
    found = results()
    for name in ("decisions", "learning_curves", "crossings"):
        del found[name]
    for name, fields in (("cells", OLD_CELL), ("comparisons", OLD_COMPARISON)):
        found[name] = [
            {field: row[field] for field in fields if field in row}
            for row in found[name]
            if row["num_labels"] is not None
        ]
    found["label_efficiency"] = [
        {field: value for field, value in row.items() if field != "rival"}
        for row in found["label_efficiency"]
        if row["rival"] == "scratch"
    ]
    for row in found["compute_cost"]:
        del row["pretrain_cpu_seconds"], row["adapt_cpu_seconds"]
    for row in found["tasks"]:
        del row["test_slice"]
    return found


_METHODS = (
    ("probe", 257, 1_200_000, None, 0.71),
    ("full", 300_000, 4_800_000, 31_000_000, 0.74),
    ("lora", 4_400, 1_300_000, 22_000_000, 0.73),
)


def _method(task, method, trained, state, program, accuracy):
    sizes = {"parameters_trained": trained, "bytes_state": state, "bytes_program": program}
    place = {"task": task, "arm": "in_domain", "method": method, "num_labels": BUDGETS[-1]}
    return place | sizes | {"seconds": 1.5, "accuracy": accuracy}


def _keys():
    for task in _TASKS:
        for arm in _QUALITY[task]:
            for labels in BUDGETS:
                for seed in range(SEEDS):
                    yield task, arm, labels, seed


def _cell(rng, task, arm, labels, seed):
    start, gain = _QUALITY[task][arm]
    value = start + gain * math.log2(labels / 64) + rng.normal(0, 0.25 / labels**0.5)
    neural = "classical" not in arm
    rates = (1e-3, 3e-3) if neural else (1.0, 10.0)
    return {
        "task": task,
        "modality": _TASKS[task][0],
        "arm": arm,
        "num_labels": labels,
        "seed": seed,
        "metric": "accuracy",
        "value": float(min(value, 0.995)),
        "balanced_accuracy": float(min(value, 0.995)) - 0.01,
        "macro_f1": float(min(value, 0.995)) - 0.02,
        "nll": float(1.3 - value),
        "ece": 0.04,
        "still_improving": arm == "scratch" and task == "reviews" and labels == 64,
        "at_edge": ["rate"] if arm == "out_of_domain" and seed == 0 else [],
        "constant_prediction": arm == "classical" and labels == 64 and seed < 2,
        "cpu_seconds": 31.0 if neural else 8.5,
        "compile_seconds": 6.1 if neural else 0.0,
        "feature_cpu_seconds": 3.0 if arm in PRETRAINED else None,
        "validation": float(value),
        "trials": [{"config": {"rate": rate}, "validation": float(value)} for rate in rates],
        "train_flops": 3e11 if neural else None,
        "pretrain_flops": {"published": None, "in_domain": 4e14, "out_of_domain": 4e14}.get(arm, 0),
        "seconds": 3.1 if neural else 0.2,
    }


def _values(cells, task, arm, labels):
    kept = [
        row for row in cells if (row["task"], row["arm"], row["num_labels"]) == (task, arm, labels)
    ]
    return np.array([row["value"] for row in sorted(kept, key=lambda row: row["seed"])])


def _comparisons(cells):
    pairs = [(arm, rival) for arm in PRETRAINED for rival in RIVALS] + [("classical", "scratch")]
    return [
        _comparison(cells, task, arm, rival, labels)
        for task in _TASKS
        for arm, rival in pairs
        for labels in (*BUDGETS, None)
        if arm in _QUALITY[task]
    ]


def _comparison(cells, task, arm, rival, labels):
    budgets = BUDGETS if labels is None else [labels]
    gaps = np.mean(
        [_values(cells, task, arm, n) - _values(cells, task, rival, n) for n in budgets], axis=0
    )
    mean, half = gaps.mean(), 2.6 * math.hypot(gaps.std(ddof=1) / SEEDS**0.5, 0.006)
    p = math.exp(-3 * abs(mean) / half)
    unclear = abs(mean) < half
    return {
        "task": task,
        "num_labels": labels,
        "arm": arm,
        "baseline": rival,
        "difference": float(mean),
        "low": float(mean - half),
        "high": float(mean + half),
        "p": p,
        "p_adjusted": min(1.0, 2 * p) if unclear else p,
        "p_equivalence": 0.01 if abs(mean) + half < 0.02 else 0.5,
        "margin": 0.01,
        "detectable": float(1.4 * half),
        "seeds": SEEDS,
        "checkpoints": 2,
        "items": 25_000 if task == "reviews" else 360,
        "groups": None,
        "variance": {"run": float(gaps.var(ddof=1)), "item": 0.006**2},
        "seeds_to_decide": 24 if unclear else None,
        "items_to_decide": None,
        "primary": labels is None and arm == "in_domain",
    }


def _decisions(cells, comparisons, multipliers):
    rows = []
    for task in _TASKS:
        for labels in BUDGETS:
            means = {arm: _values(cells, task, arm, labels).mean() for arm in _QUALITY[task]}
            best = max(means, key=means.get)
            own = max(("in_domain", "out_of_domain"), key=means.get)
            rival = max(RIVALS, key=means.get)
            row = next(
                row
                for row in comparisons
                if (row["task"], row["num_labels"], row["arm"], row["baseline"])
                == (task, labels, own, rival)
            )
            against = {
                each["rival"]: {"value": each["label_multiplier"], "low": each["low"]}
                for each in multipliers
                if (each["task"], each["num_labels"], each["arm"]) == (task, labels, own)
            }
            clear = row["p_adjusted"] < 0.05
            verdict = "pretrain" if row["low"] > 0 else "do not"
            rows.append(
                {
                    "task": task,
                    "num_labels": labels,
                    "best_arm": best,
                    "best_value": float(means[best]),
                    "published_value": float(means["published"]) if "published" in means else None,
                    "best_pretrained": own,
                    "best_rival": rival,
                    **{name: row[name] for name in ("difference", "low", "high", "p_adjusted")},
                    "detectable": row["detectable"],
                    "label_multiplier": against,
                    "smallest_multiplier": min(each["value"] for each in against.values()),
                    "verdict": verdict if clear else "no clear difference",
                }
            )
    return rows


def _crossings():
    reviews = {"labels": 310, "low": 190, "high": None, "status": "crosses"}
    digits = {"labels": None, "low": None, "high": None, "status": "ahead to the end"}
    return [
        {"task": task, "arm": "in_domain", "rival": rival} | row
        for task, row in (("reviews", reviews), ("digits", digits))
        for rival in RIVALS
    ]


def _label_efficiency():
    return [
        _multiplier(task, arm, rival, labels)
        for task in _TASKS
        for arm in ("in_domain", "out_of_domain")
        for rival in RIVALS
        for labels in BUDGETS
    ]


def _multiplier(task, arm, rival, labels):
    (start, gain), (base, base_gain) = _QUALITY[task][arm], _QUALITY[task][rival]
    ratio = 64 * 2 ** ((start + gain * math.log2(labels / 64) - base) / base_gain) / labels
    bounds = (BUDGETS[0] / labels, BUDGETS[-1] / labels)
    censored = "above" if ratio > bounds[1] else "below" if ratio < bounds[0] else None
    inside = min(max(ratio, bounds[0]), bounds[1])
    return {
        "task": task,
        "num_labels": labels,
        "arm": arm,
        "rival": rival,
        "label_multiplier": inside,
        "low": inside * 0.8,
        "high": None if censored == "above" else inside * 1.3,
        "censored": censored,
        "steps_to_scratch_quality": 40 if ratio > 1 and rival == "scratch" else None,
    }


def _compute_cost():
    rows = []
    for task in _TASKS:
        for arm in _QUALITY[task]:
            pretrained, neural = arm in ("in_domain", "out_of_domain"), "classical" not in arm
            rows.append(
                {
                    "task": task,
                    "arm": arm,
                    "pretrain_flops": 4.1e14 if pretrained else 0,
                    "pretrain_seconds": 141.0 if pretrained else 0,
                    "pretrain_cpu_seconds": 262.0 if pretrained else 0,
                    "adapt_cpu_seconds": 31.0 if neural else 8.5,
                    "adapt_flops": 3.2e11 if neural else None,
                    "adapt_seconds": 12.4 if neural else 0.8,
                    "break_even_tasks": 9 if arm == "in_domain" else None,
                    "note": "never cheaper at equal quality" if arm == "out_of_domain" else "",
                }
            )
    return rows


def _decontamination(task, method, checked, found):
    return {
        "task": task,
        "arm": "in_domain",
        "method": method,
        "checked": checked,
        "found": found,
        "removed": found,
    }


def _task(name, modality, classes):
    return {
        "name": name,
        "title": "Film reviews" if name == "reviews" else "Handwritten digits",
        "modality": modality,
        "data_noun": {"text": "text", "image": "images"}[modality],
        "classes": classes,
        "metric": "accuracy",
        "train": 25_000 if modality == "text" else 1_437,
        "test": 25_000 if modality == "text" else 360,
        "description": "Is this review positive? Text of 20 to 400 words & no <b>markup</b>.",
        "licence": "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
        "fingerprint": "sha256:9f2c" + "0" * 60,
        "split": "official test split kept as it is",
        "majority_rate": 0.62 if modality == "text" else 0.11,
        "test_slice": {
            "name": "sealed",
            "items": 25_000 if modality == "text" else 360,
            "scored_before": 0 if modality == "text" else 3,
            "sealed": True,
        },
    }


def _curves():
    rows = []
    tokens = np.linspace(1e5, 6e6, 60)
    for task, unit in (("reviews", "bits per byte"), ("digits", "bits per dimension")):
        for arm, floor in (("in_domain", 1.9), ("out_of_domain", 2.2)):
            value = floor + 3 * (tokens / 1e5) ** -0.5
            rows.append(
                {
                    "task": task,
                    "arm": arm,
                    "kind": "pretrain",
                    "unit": unit,
                    "tokens": tokens.tolist(),
                    "value": (value + 0.08 * np.sin(np.arange(60))).tolist(),
                    "validation_tokens": tokens[::10].tolist(),
                    "validation": (value[::10] + 0.05).tolist(),
                }
            )
    return rows


def _picture(rng) -> str:
    image = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8))
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def _samples(rng):
    text = {"task": "reviews", "arm": "in_domain", "modality": "text", "prompt": "This film was"}
    written = (
        HOSTILE + " a slow start, but the last half hour is worth the ticket.",
        " not what I\x00 hoped \udcff for; $x^2$ {{ 7 * 7 }} \x1b[31m and the sound is poor.",
    )
    images = [
        {
            "task": "digits",
            "arm": "in_domain",
            "modality": "image",
            "caption": f"asked for a {digit}",
            "png": _picture(rng),
        }
        for digit in range(6)
    ]
    return [text | {"text": one} for one in written] + images


def _mistakes(rng):
    review = {
        "task": "reviews",
        "arm": "in_domain",
        "num_labels": 64,
        "truth": "negative",
        "prediction": "positive",
        "baseline_prediction": "negative",
        "modality": "text",
    }
    digit = {
        "task": "digits",
        "arm": "in_domain",
        "num_labels": 64,
        "truth": "3",
        "prediction": "8",
        "baseline_prediction": "3",
        "modality": "image",
    }
    texts = (
        f'{HOSTILE} <img src="http://example.com/x.png" onerror=alert(1)> Great, two hours gone.',
        "I wanted to love it: the cast is superb, the score is lovely, and yet nothing happens. "
        * 5,
        "Not bad at all, they said.",
    )
    broken = digit | {"png": 'bm90IGEgcG5n"><script>'}
    pictures = [digit | {"png": _picture(rng)} for _ in range(7)]
    return [review | {"text": text} for text in texts] + pictures + [broken]
