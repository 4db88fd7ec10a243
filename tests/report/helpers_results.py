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
        "in_domain": (0.745, 0.02),
        "out_of_domain": (0.655, 0.03),
        "classical": (0.695, 0.03),
    },
    "digits": {
        "scratch": (0.80, 0.05),
        "in_domain": (0.86, 0.025),
        "out_of_domain": (0.79, 0.046),
        "classical": (0.855, 0.033),
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
    "classical": ("the classical baseline", None, ["scratch"], "#E69F00", [0, [1, 1]], "X"),
}


def arm(name: str) -> dict[str, Any]:
    """An entry of `arms`."""
    title, pretrained_on, rivals, color, linestyle, marker = ARMS[name]
    look = {"color": color, "linestyle": linestyle, "marker": marker}
    about = {"name": name, "title": title, "description": f"{title.capitalize()} & labels."}
    return about | look | {"pretrained_on": pretrained_on, "rivals": rivals}


def results() -> dict[str, Any]:
    """Two tasks, four arms, four budgets, eight seeds, and every extra section."""
    rng = np.random.default_rng(0)
    cells = [_cell(rng, *key) for key in _keys()]
    return {
        "schema": 2,
        "experiment": "compare",
        "config": {
            "model": {"d_model": 128, "num_layers": 4, "rope": True},
            "data": {"tasks": ["reviews", "digits"], "note": HOSTILE, "folder": "x/" * 90},
            "pretrain_seeds": 1,
        },
        "config_hash": "4be1f0c2a9",
        "versions": {"jax": "0.10.0", "flax": "0.12.1", "numpy": "2.3.4"},
        "device": {"platform": "cpu", "kind": "x86-64", "count": 1, "cores": 2},
        "xla_flags": "--xla_cpu_use_thunk_runtime=true " * 3,
        "attention": {"reviews": "xla_tiled", "digits": "xla_tiled"},
        "arms": [arm(name) for name in ("scratch", "in_domain", "out_of_domain", "classical")],
        "cells": cells,
        "comparisons": _comparisons(cells),
        "label_efficiency": _label_efficiency(),
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
    neural = arm != "classical"
    rates = (1e-3, 3e-3) if neural else (1.0, 10.0)
    return {
        "task": task,
        "modality": _TASKS[task][0],
        "arm": arm,
        "num_labels": labels,
        "seed": seed,
        "metric": "accuracy",
        "value": float(min(value, 0.995)),
        "validation": float(value),
        "trials": [{"config": {"rate": rate}, "validation": float(value)} for rate in rates],
        "train_flops": 3e11 if neural else None,
        "pretrain_flops": 4e14 if arm in ("in_domain", "out_of_domain") else 0,
        "seconds": 3.1 if neural else 0.2,
    }


def _values(cells, task, arm, labels):
    kept = [
        row for row in cells if (row["task"], row["arm"], row["num_labels"]) == (task, arm, labels)
    ]
    return np.array([row["value"] for row in sorted(kept, key=lambda row: row["seed"])])


def _comparisons(cells):
    pairs = [(arm, "scratch") for arm in ("in_domain", "out_of_domain", "classical")]
    pairs += [(arm, "classical") for arm in ("in_domain", "out_of_domain")]
    rows = []
    for task in _TASKS:
        for arm, baseline in pairs:
            for labels in BUDGETS:
                gaps = _values(cells, task, arm, labels) - _values(cells, task, baseline, labels)
                half = 2.6 * math.hypot(gaps.std(ddof=1) / SEEDS**0.5, 0.006)
                p = max(2 / 2**SEEDS, math.exp(-3 * abs(gaps.mean()) / half))
                rows.append(
                    {
                        "task": task,
                        "num_labels": labels,
                        "arm": arm,
                        "baseline": baseline,
                        "difference": float(gaps.mean()),
                        "low": float(gaps.mean() - half),
                        "high": float(gaps.mean() + half),
                        "p": p,
                        "p_adjusted": min(1.0, 40 * p),
                        "seeds": SEEDS,
                        "items": 25_000 if task == "reviews" else 360,
                        "variance": {"run": float(gaps.var(ddof=1)), "item": 0.006**2},
                    }
                )
    return rows


def _label_efficiency():
    rows = []
    for task in _TASKS:
        for arm in ("in_domain", "out_of_domain"):
            (start, gain), (base, base_gain) = _QUALITY[task][arm], _QUALITY[task]["scratch"]
            for labels in BUDGETS:
                doublings = (start + gain * math.log2(labels / 64) - base) / base_gain
                ratio = 64 * 2**doublings / labels
                bounds = (BUDGETS[0] / labels, BUDGETS[-1] / labels)
                censored = "above" if ratio > bounds[1] else "below" if ratio < bounds[0] else None
                inside = min(max(ratio, bounds[0]), bounds[1])
                rows.append(
                    {
                        "task": task,
                        "num_labels": labels,
                        "arm": arm,
                        "label_multiplier": inside,
                        "low": inside * 0.8,
                        "high": None if censored == "above" else inside * 1.3,
                        "censored": censored,
                        "steps_to_scratch_quality": 40 if ratio > 1 else None,
                    }
                )
    return rows


def _compute_cost():
    rows = []
    for task in _TASKS:
        for arm in _QUALITY[task]:
            pretrained, neural = arm in ("in_domain", "out_of_domain"), arm != "classical"
            rows.append(
                {
                    "task": task,
                    "arm": arm,
                    "pretrain_flops": 4.1e14 if pretrained else 0,
                    "pretrain_seconds": 141.0 if pretrained else 0,
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
        for labels in BUDGETS:
            for arm in ("scratch", "in_domain", "out_of_domain"):
                start, gain = _QUALITY[task][arm]
                final = start + gain * math.log2(labels / 64)
                steps = np.arange(0, 201, 20)
                rows.append(
                    {
                        "task": task,
                        "arm": arm,
                        "kind": "adapt",
                        "num_labels": labels,
                        "unit": "accuracy",
                        "steps": steps.tolist(),
                        "value": (final - (final - 0.5) * np.exp(-steps / 50)).tolist(),
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
