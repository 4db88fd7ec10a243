"""From cells to evidence: scores and their design, compute cost, ablated values."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from fm.adaptation.targets import FITTED_HPARAMS
from fm.data.decontamination import DuplicateSearchResult
from fm.errors import UserError
from fm.evaluation.cost import compute_cost, matching_scratch_flops
from fm.evaluation.design import Design
from fm.evaluation.label_efficiency import LabelEfficiency
from fm.evaluation.model_selection import make_folds
from fm.files import atomic_path
from fm.study.arms import REFERENCE_ARM, arm_spec
from fm.study.built_arm import PretrainingCost
from fm.study.cells import Cell
from fm.study.comparisons import TaskScores, difference_rows
from fm.study.task import Task
from fm.study.task_types import TASK_TYPES

Row = dict[str, Any]
# What pretraining cost each arm that has any, one entry per pretraining seed.
PretrainingRuns = Mapping[str, Sequence[PretrainingCost]]
_PREDICTION_COLUMNS = (
    *("task", "arm", "num_labels", "seed", "row", "item", "truth", "prediction"),
    *("probability", "truth_probability", "group", "checkpoint"),
    *("row_id", "truth_class", "prediction_class"),
)
_CLASS_METRICS = ("balanced_accuracy", "macro_f1", "nll", "ece", "constant_prediction")
ScoresByCell = dict[tuple[str, str, int], np.ndarray]


def cell_scores(cell: Cell, task: Task) -> np.ndarray:
    """Returns the score of every seed on every test item of a cell, float [seeds, items]."""
    return task.task_type.scores(cell.predictions, task.test)


def cell_rows(cells: Sequence[Cell], task: Task, runs: PretrainingRuns) -> list[Row]:
    """Returns results rows of cells, one per arm, label budget and seed."""
    rows = []
    for cell in cells:
        still_improving = cell.still_improving
        for seed, value in enumerate(cell_scores(cell, task).mean(axis=1)):
            hparams, trials = cell.hparams[seed], cell.trials[seed]
            validation = [t["validation"] for t in trials if t["config"] == hparams]
            rows.append(
                {
                    "task": cell.task,
                    "modality": task.modality,
                    "arm": cell.arm,
                    "num_labels": cell.num_labels,
                    "seed": seed,
                    "metric": task.task_type.metric,
                    "value": float(value),
                    **_other_metrics(cell, task, seed),
                    "validation": validation[0] if validation else None,
                    "hparams": hparams,
                    "trials": trials,
                    "still_improving": still_improving,
                    "at_edge": at_edge(hparams, trials),
                    "train_flops": cell.train_flops[seed],
                    "pretrain_flops": _pretrain_flops(cell.arm, runs.get(cell.arm, ()), seed),
                    "cpu_seconds": cell.cpu_seconds,
                    "once_cpu_seconds": cell.once_cpu_seconds,
                    "feature_cpu_seconds": cell.feature_cpu_seconds,
                }
            )
    return rows


def _other_metrics(cell: Cell, task: Task, seed: int) -> Row:
    """Returns a seed's metrics beside the task's; those of classes are None where not given."""
    confidences = None if cell.confidences is None else cell.confidences[seed]
    found = task.task_type.other_metrics(cell.predictions[seed], task.test, confidences)
    return dict.fromkeys(_CLASS_METRICS) | found


def at_edge(hparams: Row, trials: Sequence[Row]) -> list[str]:
    """Returns the numbers among the hyper-parameters chosen at the end of the range tried.

    A search that widens its grid says so itself, in the trial's "at_edge". Else those trials are
    compared that equal the chosen one but for numbers; a number with fewer than three values has
    no inside.
    """
    chosen = next((trial for trial in trials if trial["config"] == hparams), {})
    if "at_edge" in chosen:
        return list(chosen["at_edge"])
    names = hparams.keys() - set(FITTED_HPARAMS)
    numbers = {name for name in names if _is_number(hparams[name])}
    alike = [
        trial["config"]
        for trial in trials
        if trial["config"].keys() == hparams.keys()
        and all(trial["config"][name] == hparams[name] for name in names - numbers)
    ]
    values = {name: {config[name] for config in alike} for name in sorted(numbers)}
    return [
        name
        for name, tried in values.items()
        if len(tried) > 2 and hparams[name] in (min(tried), max(tried))
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _pretrain_flops(arm: str, runs: Sequence[PretrainingCost], seed: int) -> float | None:
    """Returns the FLOPs of the checkpoint that a seed started from; None if unknown."""
    if arm_spec(arm).cost.pretraining == "unknown":
        return None
    return runs[seed % len(runs)].flops if runs else 0.0


def task_scores(
    cells: Sequence[Cell],
    task: Task,
    runs: PretrainingRuns,
    groups: Sequence[Hashable] | None = None,
) -> TaskScores:
    """Returns the scores of a task's cells with their design, for `fm.study.comparisons`.

    Args:
      cells: of the task.
      task: the task.
      runs: of the arms that have any; seeds are shared out over them in turn.
      groups: of each test item, its group; None if items are independent.
    """
    arms = list(dict.fromkeys(cell.arm for cell in cells))
    return TaskScores(
        task=task.name,
        label_budgets=task.config.label_budgets,
        scores={(cell.arm, cell.num_labels): cell_scores(cell, task) for cell in cells},
        rivals=tuple(arm for arm in arms if not arm_spec(arm).pretrained),
        checkpoints={
            arm: [seed % len(runs[arm]) for seed in range(len(cells[0].predictions))]
            for arm in arms
            if len(runs.get(arm, ())) > 1
        },
        groups=groups,
    )


def compute_cost_rows(
    cells: Sequence[Cell],
    task: Task,
    runs: PretrainingRuns,
    label_efficiency: Sequence[Row],
    label_cost: float | None = None,
) -> list[Row]:
    """Returns each arm's compute at the smallest label budget and its break-even task count.

    Pretraining is charged once, however many seeds measure how much it varies. `labels_saved` are
    those that the rival nearest to the arm would need beyond the arm's own; there are none where
    that label multiplier's interval reaches 1.

    Args:
      cells: of the task.
      task: the task.
      runs: what pretraining cost each arm.
      label_efficiency: rows of `fm.study.comparisons.label_multiplier_rows`.
      label_cost: price of a label, in any currency; None to price none.
    """
    budgets = task.config.label_budgets
    cell_of = {(cell.arm, cell.num_labels): cell for cell in cells}
    rows = []
    for arm in dict.fromkeys(cell.arm for cell in cells):
        cell, cost = cell_of[arm, budgets[0]], arm_spec(arm).cost
        place = arm, budgets[0], REFERENCE_ARM
        own = [r for r in label_efficiency if (r["arm"], r["num_labels"], r["rival"]) == place]
        if cost.no_break_even_reason:
            scratch_cost = None, cost.no_break_even_reason
        elif not own:
            scratch_cost = None, f"needs the {REFERENCE_ARM} arm, 2 budgets and 2 seeds"
        else:
            names = [field.name for field in dataclasses.fields(LabelEfficiency)]
            efficiency = LabelEfficiency(**{name: own[0][name] for name in names})
            reference = [cell_of[REFERENCE_ARM, n].mean_train_flops for n in budgets]
            scratch_cost = matching_scratch_flops(
                np.array(budgets), np.array(reference), budgets[0], efficiency
            )
        unknown, own_runs = cost.pretraining == "unknown", runs.get(arm, ())
        row = compute_cost(
            task.name,
            arm,
            pretrain_flops=None if unknown else _mean([run.flops for run in own_runs]),
            pretrain_cpu_seconds=None if unknown else _mean([run.cpu_seconds for run in own_runs]),
            adapt_flops=cell.mean_train_flops,
            adapt_cpu_seconds=cell.cpu_seconds,
            scratch_cost=scratch_cost,
        )
        saved = _labels_saved(label_efficiency, arm, budgets[0])
        money = {
            "num_labels": budgets[0],
            "label_cost": label_cost,
            "labels_saved": saved,
            "money_saved": None if saved is None or label_cost is None else saved * label_cost,
        }
        rows.append(dataclasses.asdict(row) | money)
    return rows


def _labels_saved(label_efficiency: Sequence[Row], arm: str, num_labels: int) -> float | None:
    """Returns the labels an arm saves against the rival that needs the fewest; None if unclear."""
    own = [row for row in label_efficiency if (row["arm"], row["num_labels"]) == (arm, num_labels)]
    if not own or any(row["low"] is None or row["low"] <= 1 for row in own):
        return None
    return num_labels * (min(row["label_multiplier"] for row in own) - 1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0


def steps_to_scratch_quality(
    cells: Sequence[Cell], task: Task
) -> dict[tuple[str, int], int | None]:
    """Returns the optimizer steps that pretrained arms need to match scratch on validation data.

    Of each seed: the steps after which the setting that the arm chose first reached the best
    validation score of `REFERENCE_ARM` with the same labels. Both were scored on the same folds;
    the steps are those of a run on the smallest fold's training part, read at every doubling. Of
    the seeds the lower median is taken, a seed that never gets there counting as infinite.

    Args:
      cells: of the task.
      task: the task.

    Returns:
      By pretrained arm and number of labels; None where fewer than half of the seeds get there,
      for example because they chose a method that does not train the network.
    """
    cell_of = {(cell.arm, cell.num_labels): cell for cell in cells}
    found = {}
    for (arm, num_labels), cell in cell_of.items():
        reference = cell_of.get((REFERENCE_ARM, num_labels))
        if reference is not None and arm_spec(arm).pretrained:
            steps = [
                _steps_to_score(cell, task, seed, _best_validation(reference.trials[seed]))
                for seed in range(len(cell.hparams))
            ]
            median = sorted(steps)[(len(steps) - 1) // 2]
            found[arm, num_labels] = int(median) if math.isfinite(median) else None
    return found


def _best_validation(trials: Sequence[Row]) -> float:
    """Returns the best validation score of any trial; infinity if none has one."""
    scores = [trial["validation"] for trial in trials if trial["validation"] is not None]
    return max((score for score in scores if math.isfinite(score)), default=math.inf)


def _steps_to_score(cell: Cell, task: Task, seed: int, score: float) -> float:
    """Returns the steps at the first reading of the chosen setting that reaches a score."""
    hparams = cell.hparams[seed]
    chosen = next((trial for trial in cell.trials[seed] if trial["config"] == hparams), {})
    readings = [epochs for epochs, reached in chosen.get("readings", ()) if reached >= score]
    if not readings:
        return math.inf
    labels = task.strata[task.train_idx[seed][: cell.num_labels]]
    num_trained = min(len(fit) for fit, _ in make_folds(labels, seed=seed))
    recipe = task.config.recipe
    if "recipe" in hparams:
        recipe = task.by_recipe[hparams["recipe"]].config.recipe
    return recipe.finetune.num_steps(num_trained, min(readings))


def duplicate_count_rows(task: Task, arms: Sequence[str]) -> list[Row]:
    """Returns counts of test items' near-duplicates in each pretraining corpus, one row each."""
    rows = [
        duplicate_count_row(task.name, corpus, search)
        for corpus, search in task.decontamination.items()
    ]
    for arm in arms:
        if arm_spec(arm).pretrained and arm_spec(arm).corpus is None:
            method = "not searched: its pretraining data is not published with it"
            counts = dict.fromkeys(("checked", "found", "removed"))
            rows.append({"task": task.name, "arm": arm, "method": method, **counts})
    return rows


def duplicate_count_row(task: str, arm: str, *searches: DuplicateSearchResult) -> Row:
    """Returns the method and the summed counts of near-duplicate searches as a results row."""
    return {
        "task": task,
        "arm": arm,
        "method": searches[0].method,
        "checked": sum(search.num_checked for search in searches),
        "found": sum(search.num_found for search in searches),
        "removed": sum(len(search.duplicate_idx) for search in searches),
    }


def write_predictions(
    done: Sequence[tuple[Task, Sequence[Cell], TaskScores]], path: pathlib.Path
) -> None:
    """Writes predictions.csv, with a row per cell, seed and test item.

    Empty where there are none: the probabilities of the predicted and of the true class, the
    item's group, if intervals are over groups, the number of the checkpoint that the seed started
    from, and the names of the true and of the predicted class. `row_id` is the id by which the user
    knows the item, see `Split.row_ids`.

    Args:
      done: tasks with their cells and scores.
      path: of the file.
    """
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(_PREDICTION_COLUMNS)
        for task, cells, scores in done:
            groups = [""] * len(task.test) if scores.groups is None else scores.groups
            row_ids = task.test.row_ids(range(len(task.test)))
            for cell in cells:
                for seed, predictions in enumerate(cell.predictions):
                    rows = task.task_type.prediction_rows(
                        predictions, task.test, task.dataset.classes
                    )
                    shown: Any = itertools.repeat(("", ""))
                    if cell.confidences is not None:
                        shown = cell.confidences[seed].tolist()
                    where = (task.name, cell.arm, cell.num_labels, seed)
                    checkpoint = scores.checkpoint(cell.arm, seed)
                    names = task.task_type.class_names_of_rows(
                        predictions, task.test, task.dataset.classes
                    )
                    columns = rows, shown, groups, row_ids, names
                    table.writerows(
                        (
                            *(*where, n, task.test.ids[n][:12], *row, *probabilities, group),
                            *(checkpoint, row_id, *named),
                        )
                        for n, (row, probabilities, group, row_id, named) in enumerate(
                            zip(*columns, strict=False)
                        )
                    )


def read_scores(path: pathlib.Path, results: dict[str, Any]) -> ScoresByCell:
    """Reads predictions.csv; returns scores [seeds, items] by (task, arm, num_labels).

    Args:
      path: of predictions.csv.
      results: of the same study: the task types, and the means that the scores must have.

    Raises:
      UserError: a mean differs, so the file is of another study or the task type cannot read it.
    """
    task_types = {row["name"]: TASK_TYPES[row["task_type"]] for row in results["tasks"]}
    rows: dict[tuple[str, str, int], dict[int, list[tuple[str, str]]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            cell = rows.setdefault((row["task"], row["arm"], int(row["num_labels"])), {})
            cell.setdefault(int(row["seed"]), []).append((row["truth"], row["prediction"]))
    scores = {
        key: task_types[key[0]].scores_from_rows([seeds[seed] for seed in sorted(seeds)])
        for key, seeds in rows.items()
    }
    for row in results["cells"]:
        key = row["task"], row["arm"], row["num_labels"]
        if key not in scores or abs(scores[key][row["seed"]].mean() - row["value"]) > 1e-5:
            raise UserError(
                f"{path} does not give the {row['metric']} of {row['arm']} on {row['task']} in "
                f"results.json; takes the files that one study has written"
            )
    return scores


def read_item_groups(path: pathlib.Path) -> dict[str, list[str] | None]:
    """Returns the group of each test item by task, None where intervals are not over groups.

    Args:
      path: of predictions.csv.
    """
    cells: dict[str, tuple[str, ...]] = {}
    groups: dict[str, list[str]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            cell = row["arm"], row["num_labels"], row["seed"]
            if cells.setdefault(row["task"], cell) == cell:
                groups.setdefault(row["task"], []).append(row.get("group") or "")
    return {task: own if any(own) else None for task, own in groups.items()}


def merge_studies(
    setting: str, studies: Mapping[str, dict[str, Any]], folders: Mapping[str, pathlib.Path]
) -> dict[str, Any]:
    """Merges a study's results at several values of one setting; compares each with the first.

    Arm "in_domain" at value 0.5 becomes "in_domain, mask_ratio=0.5" and is compared with itself at
    the first value, paired by seed and item. Arms that the setting does not affect (equal in every
    prediction) appear once, under their own name.

    Args:
      setting: dotted path of the setting, or the name of the ablation.
      studies: results by value.
      folders: output folders by value.

    Raises:
      UserError: the studies scored different test items, label budgets or numbers of seeds, so
        that they cannot be paired.
    """
    short = setting.rsplit(".", 1)[-1]
    scores = {
        value: read_scores(folders[value] / "predictions.csv", results)
        for value, results in studies.items()
    }
    first, *others = studies
    for value in others:
        differs = _unpaired_by((studies[first], scores[first]), (studies[value], scores[value]))
        if differs:
            raise UserError(
                f"{short}={value} and {short}={first} differ in {differs}, so they cannot be "
                f"compared side by side; each has its own report in {folders[value].parent}"
            )
    affected = {
        key[1]
        for value in others
        for key in scores[first]
        if not np.array_equal(scores[first][key], scores[value][key])
    }

    def renamed(arm: str, value: str) -> str:
        return f"{arm}, {short}={value}" if arm in affected else arm

    merged = dict(studies[first])
    sections = ("cells", "compute_cost", "curves", "samples", "mistakes", "label_efficiency")
    sections += ("group_scores",)
    merged |= {
        section: [
            row | {"arm": renamed(row["arm"], value)}
            for value, results in studies.items()
            for row in results.get(section, [])
            if row["arm"] in affected or value == first
        ]
        for section in sections
    }
    merged["pretrained"] = [
        row | {"name": f"{short}={value}/{row['name']}"}
        for value, results in studies.items()
        for row in results.get("pretrained", [])
    ]
    differences = []
    groups = read_item_groups(folders[first] / "predictions.csv")
    for task, arm, num_labels in scores[first]:
        for value in others if arm in affected else ():
            own, rival = (scores[each][task, arm, num_labels] for each in (value, first))
            if len(own) < 2:
                continue
            key = {
                "task": task,
                "num_labels": num_labels,
                "arm": renamed(arm, value),
                "baseline": renamed(arm, first),
            }
            config = studies[value]["config"]
            pretrain_seeds = config.get("pretrain_seeds", 1)
            design = difference_design(arm, len(own), pretrain_seeds, groups[task])
            differences.append((key, own - rival, design))
    merged["comparisons"] = difference_rows(differences)
    # What is left out here compares arms, which merging does not.
    merged |= {name: [] for name in ("learning_curves", "crossings", "decisions")}
    merged["arms"] = [
        spec | {"name": renamed(spec["name"], value)}
        for value, results in studies.items()
        for spec in results.get("arms", [])
        if spec["name"] in affected or value == first
    ]
    merged["tasks"] = [
        _merged_task([(value, _task_named(row["name"], studies[value])) for value in studies])
        | {
            renamed(spec["name"], value): task[spec["name"]]
            for value, results in studies.items()
            for spec in results.get("arms", [])
            if spec["name"] in affected
            for task in [_task_named(row["name"], results)]
            if spec["name"] in task
        }
        for row in studies[first]["tasks"]
    ]
    merged["seconds"] = sum(results["seconds"] for results in studies.values())
    merged["experiment"] = f"ablate {setting}"
    merged["config"] = {value: results["config"] for value, results in studies.items()}
    return merged


def _unpaired_by(
    one: tuple[dict[str, Any], ScoresByCell], other: tuple[dict[str, Any], ScoresByCell]
) -> str:
    """Returns in what two studies differ that have to be paired by seed and item; "" if nothing."""
    (first, scores), (second, others) = one, other
    if not scores.keys() <= others.keys():
        return "tasks, arms or label budgets"
    if any(len(scores[key]) != len(others[key]) for key in scores):
        return "their numbers of seeds"
    for row in first["tasks"]:
        slices = [task.get("test_slice") or {} for task in (row, _task_named(row["name"], second))]
        if any(slices[0].get(name) != slices[1].get(name) for name in ("name", "items")):
            return f"the test items of {row['name']}"
    if any(scores[key].shape != others[key].shape for key in scores):
        return "their test items"
    return ""


def _task_named(name: str, results: dict[str, Any]) -> Row:
    return next(row for row in results["tasks"] if row["name"] == name)


def _merged_task(tasks: Sequence[tuple[str, Row]]) -> Row:
    """Returns the first study's row of a task, with every study's `test_slice` by its value.

    The items were kept apart only if they were in every study.
    """
    merged = dict(tasks[0][1])
    slices = {value: row["test_slice"] for value, row in tasks if row.get("test_slice")}
    if slices:
        sealed = all(each["sealed"] for each in slices.values())
        merged["test_slice"] = next(iter(slices.values())) | {"sealed": sealed}
        merged["variant_test_slices"] = slices
    return merged


def difference_design(
    arm: str, seeds: int, pretrain_seeds: int, groups: Sequence[Hashable] | None
) -> Design:
    """Returns the design of an arm against itself at another setting, or against a rival.

    Args:
      arm: compared.
      seeds: of a cell.
      pretrain_seeds: pretrained checkpoints of an arm that is pretrained here.
      groups: of each test item, its group; None if items are independent.
    """
    pretrains = arm_spec(arm).pretrained and arm_spec(arm).cost.pretraining != "unknown"
    if not pretrains or pretrain_seeds == 1:
        return Design(groups=groups)
    return Design([seed % pretrain_seeds for seed in range(seeds)], groups)
