"""What a reader must know before trusting the figures: warnings that follow from the results."""

from collections.abc import Callable, Iterator
from typing import Any

from fm.report import formats
from fm.report.formats import listed
from fm.report.records import SeedScore
from fm.report.saturation import majority_level, saturated_budgets, saturation_sentence
from fm.report.schema import Results, Task

# A pretraining loss that fell by more over the last half of its validations was not flat.
_FLAT = 0.01


def cautions(results: Results, task: str) -> list[str]:
    """Returns the warnings that concern a task, as sentences; empty if there are none."""
    return [
        *_saturated(results, task),
        *_unequal_classes(results.task(task)),
        *_constant(results, task),
        *_still_improving(results, task),
        *_pretraining_not_flat(results, task),
        *_at_edge(results, task),
        *_unequal_inputs(results, task),
        *_shrunk(results.task(task)),
    ]


def _budgets_by_arm(
    results: Results, task: str, marked: Callable[[SeedScore], object]
) -> dict[str, list[str]]:
    """The label budgets at which any run of an arm is marked, by arm."""
    found: dict[str, set[float]] = {}
    for cell in results.cells:
        if cell.task == task and cell.num_labels is not None and marked(cell):
            found.setdefault(cell.arm or "", set()).add(cell.num_labels)
    return {arm: [formats.count(n) for n in sorted(found[arm])] for arm in results.arm_names(found)}


def _saturated(results: Results, task: str) -> Iterator[str]:
    """Some numbers of labels; where it is all, that is the decision."""
    budgets = {cell.num_labels for cell in results.cells if cell.task == task}
    found = saturated_budgets(results, task)
    if found and set(found) != budgets:
        yield saturation_sentence(results, task)


def _unequal_classes(about: Task) -> Iterator[str]:
    if about.has_one_class and majority_level(about)[1] != "chance":
        yield (
            f"Classes are unequal: always naming the most frequent one is right for "
            f"{formats.percent(about.majority_rate)} of the test items, so read balanced accuracy "
            "and macro-F1 beside accuracy."
        )


def _constant(results: Results, task: str) -> Iterator[str]:
    for arm, budgets in _budgets_by_arm(
        results, task, lambda cell: cell.constant_prediction
    ).items():
        cells = [
            cell for cell in results.runs(task, arm, None) if cell.constant_prediction is not None
        ]
        number = sum(bool(cell.constant_prediction) for cell in cells)
        yield (
            f"{arm} gave one answer to every test item in {number} of {len(cells)} runs "
            f"(at {listed(budgets)} labels): its score there says nothing."
        )


def _still_improving(results: Results, task: str) -> Iterator[str]:
    for arm in results.arm_names(cell.arm for cell in results.cells if cell.task == task):
        budgets = [number for number in results.improving_budgets(task, arm) if number is not None]
        if budgets:
            yield (
                f"{arm} was still improving when its training ended at "
                f"{listed([formats.count(number) for number in sorted(budgets)])} labels: it could "
                "do better with more updates, so nothing is said to beat it there."
            )


def _pretraining_not_flat(results: Results, task: str) -> Iterator[str]:
    """Compares the last validation loss of pretraining with that half-way there.

    Of arms that share a run the first is named.
    """
    flat = {
        run.name.rsplit("/", 1)[0] for run in results.pretrained if run.stopped_because == "flat"
    }
    falls: dict[str, float] = {}
    seen: set[tuple[float, ...]] = set()
    for row in results.curves:
        if f"{task}/{row.arm}" in flat:
            continue
        losses = [value for value in row.validation or [] if value is not None]
        if row.task == task and row.kind == "pretrain" and len(losses) > 2:
            if tuple(losses) in seen:
                continue
            seen.add(tuple(losses))
            before, last = losses[len(losses) // 2 - 1], losses[-1]
            if before and before - last > _FLAT * abs(before):
                falls[row.arm or ""] = max(falls.get(row.arm or "", 0.0), 1 - last / before)
    if falls:
        arms = [f"{arm} by {formats.percent(falls[arm])}" for arm in results.arm_names(falls)]
        yield (
            f"Pretraining loss was still falling: over the second half {listed(arms)}. Longer "
            "pretraining might do better."
        )


def _at_edge(results: Results, task: str) -> Iterator[str]:
    by_arm = []
    for arm in _budgets_by_arm(results, task, lambda cell: cell.at_edge):
        chosen = [cell.at_edge or [] for cell in results.runs(task, arm, None)]
        shares = [
            f"{name} in {sum(name in each for each in chosen)} of {len(chosen)} runs"
            for name in sorted(set().union(*chosen))
        ]
        by_arm.append(f"{arm}: {', '.join(shares)}")
    if by_arm:
        yield (
            "Settings were chosen at the edge of their grid, where a wider grid might do better: "
            f"{'; '.join(by_arm)}."
        )


def _unequal_inputs(results: Results, task: str) -> Iterator[str]:
    own = _own_tokens(results.config, task)
    for arm, published in results.task(task).published_models.items():
        if published.tokens in (None, own):
            continue
        others = "the other arms may read more"
        if own is not None:
            others = f"the study's own networks up to {formats.count(own)} of theirs"
        yield (
            f"Inputs differ: the model of {arm} reads up to {formats.count(published.tokens)} "
            f"tokens of a text, {others}."
        )


def _own_tokens(config: Any, task: str) -> int | None:
    """How many tokens of a text the study's own models read, None if the config does not say."""
    try:
        recipe = config["tasks"][task]["recipe"]
        return int(recipe["seq_len"]) * int(recipe["num_windows"])
    except (LookupError, TypeError, ValueError):
        return None


def _shrunk(about: Task) -> Iterator[str]:
    if about.shrunk:
        before, after = (
            " by ".join(map(formats.count, about.shrunk[end])) for end in ("from", "to")
        )
        count = formats.count(about.shrunk["count"])
        yield f"{count} images were shrunk for all arms, typically from {before} to {after} pixels."
        if about.published_models:
            yield (
                "Published weights of images are made for larger ones than these: with more "
                "--image_size they may do better."
            )
