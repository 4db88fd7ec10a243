"""Zoph et al. 2020: augmentation and labels shrink pretraining's value; self-training helps."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fm.evaluation.statistics import DEFAULT_MARGIN
from fm.study import presets
from fm.study.arm_spec import IN_DOMAIN
from fm.study.arms import REFERENCE_ARM
from fm.study.claims.pictures import draw_differences, draw_no_difference, log_axis
from fm.study.claims.registry import (
    FULL,
    PILOT,
    QUICK,
    Claim,
    Condition,
    Paper,
    PaperFigure,
    Row,
    Verdict,
    all_hold,
    in_points,
    is_above,
    is_ahead,
    verdict_of,
)
from fm.study.claims.studies import run_studies, task_config
from fm.study.comparisons import difference_rows
from fm.study.config import Recipe, StudyConfig

MARGIN = DEFAULT_MARGIN
PLAIN, AUGMENTED = "none", "affine_erase"
AUGMENTATIONS = (PLAIN, AUGMENTED)
METHODS = {"full": "labels alone", "self_training": "self-training"}
LEARNING_RATE = 3e-3


@dataclasses.dataclass(frozen=True)
class Size:
    """What a profile runs: labels x augmentation x arms, with and without self-training."""

    task: str
    label_budgets: tuple[int, ...]
    updates: int
    seeds: int
    pretrain_seeds: int
    max_test_items: int
    pretrain_steps: int
    patch_size: int
    max_corpus_items: int | None
    max_unlabeled: int


SIZES = {
    QUICK: Size("digits", (30, 100), 20, 2, 1, 100, 30, 2, 500, 100),
    PILOT: Size("fashion_mnist", (100, 4000), 600, 2, 1, 500, 1500, 7, 10_000, 4096),
    FULL: Size("fashion_mnist", (100, 1000, 12_000), 3000, 6, 6, 4000, 1500, 7, None, 8192),
}
# Behind the items that the quick profile and the kept comparison have scored.
FIRST_TEST_ITEM = 1200


def recipe(size: Size, augmentation: str) -> Recipe:
    """Returns the image recipe with fine-tuning of a fixed number of updates and one setting."""
    base = presets.image_recipe()
    if size.patch_size != base.patch_size:
        base = presets.OTHER_RECIPES["image"]["large_patches"](base)
    finetune = dataclasses.replace(
        base.finetune,
        fixed_updates=size.updates,
        batch_size=32,
        self_training_rounds=1,
        max_unlabeled=size.max_unlabeled,
    )
    return dataclasses.replace(
        base,
        steps=size.pretrain_steps,
        patch_size=size.patch_size,
        finetune=finetune,
        learning_rates=(LEARNING_RATE,),
        regularizers=(augmentation,),
    )


def studies(profile: str, data_dir: str | None = None) -> dict[str, StudyConfig]:
    """Returns a comparison of the two arms for each augmentation and way to use unlabeled data."""
    size = SIZES[profile]
    return {
        study_name(augmentation, method): StudyConfig(
            experiment="claims",
            tasks=(
                task_config(
                    size.task,
                    recipe(size, augmentation),
                    size.label_budgets,
                    data_dir=None if size.task == "digits" else data_dir,
                    development=profile == PILOT,
                    test_slice=FIRST_TEST_ITEM if profile == FULL else 0,
                    max_test_items=size.max_test_items,
                    max_corpus_items=size.max_corpus_items,
                ),
            ),
            arms=(REFERENCE_ARM, IN_DOMAIN),
            seeds=size.seeds,
            pretrain_seeds=size.pretrain_seeds,
            methods=(method,),
            smoke_test=profile == QUICK,
        )
        for augmentation, method in itertools.product(AUGMENTATIONS, METHODS)
    }


def study_name(augmentation: str, method: str) -> str:
    """Returns the name of the study of an augmentation and an adaptation method."""
    return f"{augmentation}-{method}"


def settings(profile: str, data_dir: str | None = None) -> Row:
    """Returns the configs of the studies as JSON."""
    return {name: config.to_dict() for name, config in studies(profile, data_dir).items()}


def measure(profile: str, out_dir: pathlib.Path, data_dir: str | None = None) -> Row:
    """Returns accuracies, gaps of pretraining, gains of self-training, and what changes the gaps.

    The p-values of all differences are adjusted together.
    """
    size = SIZES[profile]
    found = run_studies(studies(profile, data_dir), out_dir)

    def scores(augmentation: str, method: str, arm: str, num_labels: int) -> np.ndarray:
        return found[study_name(augmentation, method)].scores[arm, num_labels]

    design = found[study_name(PLAIN, "full")].design(IN_DOMAIN)
    places = list(itertools.product(AUGMENTATIONS, size.label_budgets))
    gaps = {
        place: scores(place[0], "full", IN_DOMAIN, place[1])
        - scores(place[0], "full", REFERENCE_ARM, place[1])
        for place in places
    }
    gains = {
        (arm, *place): scores(place[0], "self_training", arm, place[1])
        - scores(place[0], "full", arm, place[1])
        for arm in (REFERENCE_ARM, IN_DOMAIN)
        for place in places
    }
    fewest, most = size.label_budgets[0], size.label_budgets[-1]
    tables = [
        ({"what": "gap", "augmentation": augmentation, "num_labels": num_labels}, gap)
        for (augmentation, num_labels), gap in gaps.items()
    ]
    tables += [
        (
            {"what": "self-training", "arm": arm, "augmentation": augmentation, "num_labels": n},
            gain,
        )
        for (arm, augmentation, n), gain in gains.items()
    ]
    fall = [gaps[each, fewest] - gaps[each, most] for each in AUGMENTATIONS]
    tables.append(({"what": "fall with labels"}, np.mean(fall, axis=0)))
    fall = [gaps[PLAIN, n] - gaps[AUGMENTED, n] for n in size.label_budgets]
    tables.append(({"what": "fall with augmentation"}, np.mean(fall, axis=0)))
    gain = [gains[REFERENCE_ARM, *place] for place in places]
    tables.append(({"what": "self-training in the mean"}, np.mean(gain, axis=0)))
    return {
        "label_budgets": list(size.label_budgets),
        "augmentations": list(AUGMENTATIONS),
        "scores": [
            {"study": name} | study.score_row(arm, num_labels)
            for name, study in found.items()
            for arm, num_labels in itertools.product((REFERENCE_ARM, IN_DOMAIN), size.label_budgets)
        ],
        "differences": difference_rows(
            [({"task": size.task} | row, table, design) for row, table in tables], margin=MARGIN
        ),
    }


def judge(measured: Row) -> Verdict:
    """Returns the verdict by the conditions of `CLAIM.criterion`, in their order."""
    budgets = measured["label_budgets"]

    def rows(what: str, **key: Any) -> list[Row]:
        key |= {"what": what}
        return [each for each in measured["differences"] if key.items() <= each.items()]

    (labels,), (augmentation,) = rows("fall with labels"), rows("fall with augmentation")
    gains = rows("self-training", arm=REFERENCE_ARM)
    (mean,) = rows("self-training in the mean")
    lowest = min(gains, key=lambda row: row["low"])
    texts = criterion(budgets)
    conditions = (
        Condition(texts[0], is_ahead(labels), in_points(labels)),
        Condition(texts[1], is_ahead(augmentation), in_points(augmentation)),
        Condition(
            texts[2],
            all_hold(is_above(row["low"], row["high"], -MARGIN) for row in gains),
            f"least certain {in_points(lowest)} at {lowest['num_labels']:,} labels, augmentation "
            f"{lowest['augmentation']}",
        ),
        Condition(texts[3], is_ahead(mean), in_points(mean)),
    )
    (first,) = rows("gap", augmentation=PLAIN, num_labels=budgets[0])
    (last,) = rows("gap", augmentation=AUGMENTED, num_labels=budgets[-1])
    both = rows("self-training", arm=IN_DOMAIN)
    note = "self-training over pretraining: " + ", ".join(
        f"{in_points(row)} at {row['num_labels']:,} labels ({row['augmentation']})" for row in both
    )
    return verdict_of(
        conditions,
        f"gap of pretraining {in_points(first)} at {budgets[0]:,} labels without augmentation, "
        f"{in_points(last)} at {budgets[-1]:,} with it; self-training {in_points(mean)} in the "
        "mean",
        (note,),
    )


def plot(measured: Row, figure: Figure) -> None:
    """Draws the gap of pretraining and the gain of self-training against the number of labels."""
    upper, lower = figure.subplots(2, 1, sharex=True)
    colors = dict(zip(measured["augmentations"], ("#D55E00", "#0072B2"), strict=True))
    panels = (
        (upper, {"what": "gap"}, "pretraining over scratch"),
        (lower, {"what": "self-training", "arm": REFERENCE_ARM}, "self-training over scratch"),
    )
    for axes, key, title in panels:
        draw_no_difference(axes, MARGIN)
        for place, (augmentation, color) in enumerate(colors.items()):
            chosen = key | {"augmentation": augmentation}
            rows = [each for each in measured["differences"] if chosen.items() <= each.items()]
            label = "no augmentation" if augmentation == PLAIN else "augmentation"
            draw_differences(axes, rows, "num_labels", shift=place - 0.5, color=color, label=label)
        axes.set_title(title)
        axes.set_ylabel("points")
    log_axis(lower, measured["label_budgets"], "labels")
    upper.legend()


def criterion(label_budgets: Sequence[int]) -> tuple[str, ...]:
    """Returns the conditions of "reproduced in shape" for a size of the experiment."""
    fewest, most = label_budgets[0], label_budgets[-1]
    return (
        f"the gap of pretraining to scratch is larger at {fewest:,} than at {most:,} labels, in "
        "the mean with and without augmentation (interval above 0, adjusted p below 0.05)",
        "the gap is larger without augmentation than with it, in the mean over numbers of labels "
        "(same)",
        "self-training from scratch is at no number of labels, with or without augmentation, worse "
        f"than labels alone by {100 * MARGIN:g} point or more (every interval above "
        f"{-100 * MARGIN:g})",
        "self-training is ahead of labels alone in the mean over all of these (interval above 0, "
        "adjusted p below 0.05)",
    )


_FULL = SIZES[FULL]
CLAIM = Claim(
    name="self_training",
    statement="Stronger augmentation and more labels shrink the value of pretraining, while "
    "self-training helps at every number of labels.",
    paper=Paper(
        "Zoph et al.",
        "Rethinking Pre-training and Self-training",
        2020,
        "NeurIPS",
        "https://arxiv.org/abs/2006.06882",
    ),
    figures=(
        PaperFigure(
            "with the strongest augmentation ImageNet pre-training lowers COCO detection by 1.0 AP",
            "introduction",
        ),
        PaperFigure(
            "self-training improves by 1.3 to 3.4 AP over all data set sizes; pre-training helps "
            "with a fifth of the labels and hurts with all of them",
            "abstract",
        ),
    ),
    protocol="Fashion-MNIST instead of COCO, a small transformer pretrained on the same pictures "
    "without labels instead of ImageNet's. "
    f"{', '.join(f'{n:,}' for n in _FULL.label_budgets)} labels x with and without augmentation "
    "(rotated, scaled, shifted, rectangles erased) x scratch, in_domain, self-training of each; "
    f"{_FULL.updates:,} updates of 32 pictures; {_FULL.seeds} seeds, each with its own labels and "
    f"checkpoint; {_FULL.max_test_items:,} test items. Self-training is one round: a second run "
    "of as many updates, from the same start, on the labels and the teacher's more confident half "
    f"of {_FULL.max_unlabeled:,} other training pictures, equally many of each class. All 60,000 "
    "labels, as in the paper's largest setting, would leave no picture unlabeled. Learning rate "
    f"{LEARNING_RATE:g} for all, that of the recipe; nothing is searched.",
    criterion=criterion(_FULL.label_budgets),
    minutes={QUICK: 0.5, PILOT: 6, FULL: 72},
    settings=settings,
    measure=measure,
    judge=judge,
    plot=plot,
    studies=studies,
    figure_height=5.0,
    tfds_name="fashion_mnist",
)
