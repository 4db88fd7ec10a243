"""He, Girshick and Dollár 2019: trained longer, and with enough labels, scratch catches up."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from fm.adaptation.finetune import FIRST_EPOCHS
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
    is_ahead,
    is_within,
    verdict_of,
)
from fm.study.claims.studies import run_studies, task_config
from fm.study.comparisons import difference_rows
from fm.study.config import Recipe, StudyConfig

TASK = "film_reviews"
MARGIN = DEFAULT_MARGIN
# The study whose runs have the length that their own labels choose, at the fewest labels.
CHOSEN = "updates-chosen"


@dataclasses.dataclass(frozen=True)
class Size:
    """What a profile runs: labels x updates x arms, by seeds that each have a checkpoint."""

    label_budgets: tuple[int, ...]
    updates: tuple[int, ...]
    seeds: int
    pretrain_seeds: int
    max_test_items: int
    pretrain_profile: str = "default"
    max_corpus_items: int | None = None


SIZES = {
    QUICK: Size((40, 200), (20, 60), 2, 1, 100, "quick", 1500),
    PILOT: Size((400, 16_000), (100, 6400), 2, 1, 1000),
    FULL: Size((400, 2600, 26_000), (100, 400, 1600, 6400), 8, 8, 4500),
}
LEARNING_RATE = 3e-3
# Behind the items of the default job; its full profile has scored the first 3,000 of these.
FIRST_TEST_ITEM = 2200


def recipe(size: Size, updates: int | None) -> Recipe:
    """Returns the text recipe with one setting of fine-tuning.

    Args:
      size: of the experiment.
      updates: of every run; None lets each seed choose, up to the most that others have.
    """
    base = presets.text_recipe(size.pretrain_profile)
    if updates is None:
        epochs = size.updates[-1] * base.finetune.batch_size // size.label_budgets[0]
        finetune = dataclasses.replace(base.finetune, max_epochs=max(FIRST_EPOCHS, epochs))
    else:
        finetune = dataclasses.replace(base.finetune, fixed_updates=updates)
    return dataclasses.replace(
        base,
        finetune=finetune,
        learning_rates=(LEARNING_RATE,),
        regularizers=("weight_decay",),
    )


def studies(profile: str, data_dir: str | None = None) -> dict[str, StudyConfig]:
    """Returns a comparison of the arms for each number of updates, and one that chooses it."""
    size = SIZES[profile]
    lengths: dict[str, int | None] = {f"updates-{each}": each for each in size.updates}
    return {
        name: StudyConfig(
            experiment="claims",
            tasks=(
                task_config(
                    TASK,
                    recipe(size, updates),
                    size.label_budgets[:1] if updates is None else size.label_budgets,
                    development=profile == PILOT,
                    test_slice=FIRST_TEST_ITEM if profile == FULL else 0,
                    max_test_items=size.max_test_items,
                    max_corpus_items=size.max_corpus_items,
                ),
            ),
            arms=(REFERENCE_ARM, IN_DOMAIN),
            seeds=size.seeds,
            pretrain_seeds=size.pretrain_seeds,
            methods=("full",),
            smoke_test=profile == QUICK,
        )
        for name, updates in (lengths | {CHOSEN: None}).items()
    }


def settings(profile: str, data_dir: str | None = None) -> Row:
    """Returns the configs of the studies as JSON."""
    return {name: config.to_dict() for name, config in studies(profile).items()}


def measure(profile: str, out_dir: pathlib.Path, data_dir: str | None = None) -> Row:
    """Returns accuracies, gaps of pretraining to scratch, and what changes the gaps.

    The p-values of gaps and changes are adjusted together, over all of them.
    """
    size = SIZES[profile]
    found = run_studies(studies(profile), out_dir)
    by_updates = {each: found[f"updates-{each}"] for each in size.updates}
    first, last = by_updates[size.updates[0]], by_updates[size.updates[-1]]
    fewest, most = size.label_budgets[0], size.label_budgets[-1]
    design = last.design(IN_DOMAIN)
    differences = [
        (
            {"task": TASK, "what": "gap", "updates": updates, "num_labels": num_labels},
            study.gap(IN_DOMAIN, num_labels),
            design,
        )
        for updates, study in by_updates.items()
        for num_labels in size.label_budgets
    ]
    differences += [
        (
            {"task": TASK, "what": "fall with updates", "num_labels": num_labels},
            first.gap(IN_DOMAIN, num_labels) - last.gap(IN_DOMAIN, num_labels),
            design,
        )
        for num_labels in size.label_budgets
    ]
    differences.append(
        (
            {"task": TASK, "what": "fall with labels"},
            last.gap(IN_DOMAIN, fewest) - last.gap(IN_DOMAIN, most),
            design,
        )
    )
    chosen = found[CHOSEN]
    differences.append(
        (
            {"task": TASK, "what": "gap at chosen lengths", "num_labels": fewest},
            chosen.gap(IN_DOMAIN, fewest),
            design,
        )
    )
    scratch = [row for row in chosen.results["cells"] if row["arm"] == REFERENCE_ARM]
    return {
        "label_budgets": list(size.label_budgets),
        "updates": list(size.updates),
        "scores": [
            {"updates": updates} | study.score_row(arm, num_labels)
            for updates, study in by_updates.items()
            for arm, num_labels in itertools.product((REFERENCE_ARM, IN_DOMAIN), size.label_budgets)
        ],
        "chosen_scores": [chosen.score_row(arm, fewest) for arm in (REFERENCE_ARM, IN_DOMAIN)],
        "scratch_still_improving": any(row["still_improving"] for row in scratch),
        "differences": difference_rows(differences, margin=MARGIN),
    }


def judge(measured: Row) -> Verdict:
    """Returns the verdict by the conditions of `CLAIM.criterion`, in their order."""
    updates, budgets = measured["updates"], measured["label_budgets"]
    fewest, most = budgets[0], budgets[-1]

    def row(what: str, **key: Any) -> Row:
        key |= {"what": what}
        found = [each for each in measured["differences"] if key.items() <= each.items()]
        assert len(found) == 1, key
        return found[0]

    early = {n: row("gap", updates=updates[0], num_labels=n) for n in budgets}
    fall = row("fall with updates", num_labels=most)
    end_most = row("gap", updates=updates[-1], num_labels=most)
    end_fewest = row("gap", updates=updates[-1], num_labels=fewest)
    chosen = row("gap at chosen lengths", num_labels=fewest)
    clear, unfinished = is_ahead(chosen), measured["scratch_still_improving"]
    texts = criterion(updates, budgets)
    conditions = (
        Condition(
            texts[0],
            all_hold(map(is_ahead, early.values())),
            ", ".join(f"{in_points(each)} at {n:,}" for n, each in early.items()),
        ),
        Condition(texts[1], is_ahead(fall), in_points(fall)),
        Condition(texts[2], is_within(end_most, MARGIN), in_points(end_most)),
        Condition(
            texts[3],
            # A gap to runs that are still improving shows nothing yet.
            None if clear and unfinished else clear,
            f"{in_points(chosen)}{'; scratch is still improving' if unfinished else ''}",
        ),
    )
    return verdict_of(
        conditions,
        f"gap at {most:,} labels {in_points(early[most])} after {updates[0]:,} updates and "
        f"{in_points(end_most)} after {updates[-1]:,}; at {fewest:,} labels {in_points(chosen)} at "
        f"chosen lengths, {in_points(end_fewest)} after {updates[-1]:,} updates",
        [_accuracies(measured, fewest, updates)],
    )


def _accuracies(measured: Row, num_labels: int, updates: Sequence[int]) -> str:
    """Returns what lies behind the gaps at the fewest labels, where either arm may fall."""

    def percent(rows: Sequence[Row], arm: str) -> str:
        (row,) = (row for row in rows if (row["arm"], row["num_labels"]) == (arm, num_labels))
        return f"{100 * row['value']:.1f}%"

    by_length = [
        (f"after {each:,} updates", [row for row in measured["scores"] if row["updates"] == each])
        for each in (updates[0], updates[-1])
    ]
    by_length.append(("at chosen lengths", measured["chosen_scores"]))
    said = ", ".join(
        f"{percent(rows, REFERENCE_ARM)} and {percent(rows, IN_DOMAIN)} {when}"
        for when, rows in by_length
    )
    return f"Accuracy of {REFERENCE_ARM} and {IN_DOMAIN} at {num_labels:,} labels: {said}."


def plot(measured: Row, figure: Figure) -> None:
    """Draws accuracies and their gap by the number of updates, a line per number of labels."""
    left, right = figure.subplots(1, 2)
    draw_no_difference(right, MARGIN)
    colors = itertools.cycle(("#D55E00", "#009E73", "#0072B2"))
    for place, num_labels in enumerate(measured["label_budgets"]):
        color, label = next(colors), f"{num_labels:,} labels"
        for arm, line in ((REFERENCE_ARM, "--"), (IN_DOMAIN, "-")):
            own = [
                row
                for row in measured["scores"]
                if (row["arm"], row["num_labels"]) == (arm, num_labels)
            ]
            values = [100 * row["value"] for row in own]
            left.plot([row["updates"] for row in own], values, line, color=color, marker="o")
        key = {"what": "gap", "num_labels": num_labels}
        rows = [each for each in measured["differences"] if key.items() <= each.items()]
        draw_differences(right, rows, "updates", shift=place - 1, color=color, label=label)
    for axes in (left, right):
        log_axis(axes, measured["updates"], "updates of fine-tuning")
    left.set_ylabel("accuracy (%), scratch dashed")
    right.set_ylabel("points over scratch")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)


def criterion(updates: Sequence[int], label_budgets: Sequence[int]) -> tuple[str, ...]:
    """Returns the conditions of "reproduced in shape" for a size of the experiment."""
    first, last, fewest, most = updates[0], updates[-1], label_budgets[0], label_budgets[-1]
    return (
        f"after {first:,} updates pretraining is ahead of scratch at every number of labels "
        "(interval above 0, adjusted p below 0.05)",
        f"at {most:,} labels the gap after {last:,} updates is smaller than after {first:,} (same)",
        f"at {most:,} labels the gap after {last:,} updates is within {100 * MARGIN:g} point (two "
        "one-sided tests at 5%)",
        f"at {fewest:,} labels, where each seed chooses the length on its own labels, up to "
        f"{last:,} updates, pretraining is ahead (as in the first condition), and scratch is not "
        "still improving (its last doubling gained at most a point of validation)",
    )


_FULL = SIZES[FULL]
CLAIM = Claim(
    name="scratch_catches_up",
    statement="Training from scratch catches up with pretraining when it is trained longer and "
    "has enough labels, and not with few labels.",
    paper=Paper(
        "He, Girshick and Dollár",
        "Rethinking ImageNet Pre-training",
        2019,
        "ICCV",
        "https://arxiv.org/abs/1811.08883",
    ),
    figures=(
        PaperFigure(
            "COCO detection from random initialization is no worse than from ImageNet "
            "pre-training once training is long enough, also with 10% of the training data; "
            "50.9 AP without any external data",
            "abstract",
        ),
    ),
    protocol="Film reviews instead of COCO, a one-layer transformer pretrained on the same "
    "reviews without labels instead of a ResNet on ImageNet. "
    f"{', '.join(f'{n:,}' for n in _FULL.label_budgets)} labels x "
    f"{', '.join(f'{n:,}' for n in _FULL.updates)} updates of 16 reviews x scratch and in_domain, "
    "and the length that each seed chooses at the fewest labels; "
    f"{_FULL.seeds} seeds, each with its own labels and checkpoint; {_FULL.max_test_items:,} test "
    f"items. Both arms have the learning rate {LEARNING_RATE:g} and weight decay, which the pilot "
    "chose on development items.",
    criterion=criterion(_FULL.updates, _FULL.label_budgets),
    minutes={QUICK: 0.5, PILOT: 8, FULL: 75},
    settings=settings,
    measure=measure,
    judge=judge,
    plot=plot,
    studies=studies,
)
