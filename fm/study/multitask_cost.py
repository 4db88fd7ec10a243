"""The bill for K tasks: one model, or a network for each; and from which K on one is cheaper.

Read from results alone, so that a report made again has it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from fm.adaptation.methods import METHODS
from fm.evaluation.cost import (
    CostItem,
    amortized_cost,
    break_even,
    joint_tuning_share,
    per_task_share,
    shared_share,
)

Row = dict[str, Any]
WAYS = ("scratch", "in_domain", "joint", "instruction_tuned")
UNITS = ("flops", "seconds", "parameters")
PAIRS = (
    *(("in_domain", "scratch"), ("joint", "scratch"), ("instruction_tuned", "scratch")),
    *(("joint", "in_domain"), ("instruction_tuned", "in_domain"), ("instruction_tuned", "joint")),
)


def add_amortized_cost(results: dict[str, Any]) -> dict[str, Any]:
    """Results with their bill; those that have it, or are of another experiment, as they are."""
    if results.get("experiment") != "unify" or results.get("bill"):
        return results
    return results | {"bill": amortized_cost_rows(results), "break_even": break_even_rows(results)}


def amortized_cost_rows(results: dict[str, Any]) -> list[Row]:
    """What 1 to all of the tasks cost in each way, at each budget of labels."""
    names = [task["name"] for task in results["tasks"]]
    made = []
    for way in _ways(results):
        for labels in _budgets(results):
            items = cost_items(results, way, dict.fromkeys(names, labels))
            made += [
                {"way": way, "labels": labels, "tasks": count}
                | {unit: amortized_cost(items, unit, count) for unit in UNITS}
                for count in range(1, len(names) + 1)
            ]
    return made


def break_even_rows(results: dict[str, Any]) -> list[Row]:
    """From how many tasks on each way is cheaper than another at equal quality.

    Equal quality of a task is what the better of the two reaches with the fewest labels: each
    pays for the smallest budget that gets it there, on its curve made non-decreasing by isotonic
    regression. A task that one of the two never gets there is left out of both bills and named,
    with the way that does not.
    """
    ways, names = _ways(results), [task["name"] for task in results["tasks"]]
    made = []
    for way, against in PAIRS:
        if not {way, against} <= set(ways):
            continue
        reached = {name: equal_budgets(results, name, way, against) for name in names}
        never = [
            {"task": name, "way": each}
            for name, budgets in reached.items()
            for each in (way, against)
            if budgets[each] is None
        ]
        both = [name for name in names if None not in reached[name].values()]
        bills = {
            each: cost_items(results, each, {name: reached[name][each] or 0 for name in both})
            for each in (way, against)
        }
        row = {"way": way, "against": against, "tasks": both, "never": never}
        for unit in UNITS:
            found = break_even(bills[way], bills[against], unit) if both else None
            row[unit] = found.first if found else None
            row[f"{unit}_until"] = found.last if found else None
        made.append(row)
    return made


def equal_budgets(
    results: dict[str, Any], task: str, way: str, against: str
) -> dict[str, int | None]:
    """The smallest budget at which each of two ways is as good as the better one at its first."""
    curves = {each: _curve(results, task, each) for each in (way, against)}
    goal = max(values[0] for _, values in curves.values())
    return {
        each: next((b for b, value in zip(*curve, strict=True) if value >= goal - 1e-12), None)
        for each, curve in curves.items()
    }


def cost_items(results: dict[str, Any], way: str, budgets: Mapping[str, int]) -> list[CostItem]:
    """The bill of a way of solving tasks, each with a budget of labels.

    One network is tuned to all its tasks at once, on the largest of the budgets. What is not
    shared is: a fresh network and a full fine-tune are kept for every task, a probe keeps its
    head, and the network it reads once.
    """
    tasks, count = list(budgets), len(budgets)
    if not tasks:
        return []
    formats = {task["name"]: task["modality"] for task in results["tasks"]}
    sizes = {row["task"]: row for row in results.get("sizes", [])}
    whole = sizes.get(None, {}).get("network")
    items = [*_pretraining(results, way, tasks, formats)]
    if way == "instruction_tuned":
        labels = max(budgets.values())
        following = {key: results["config"]["following"][key] for key in _TUNING}
        cells = [_cell(results, task, way, labels) for task in tasks]
        # Recorded of each task is its share in tuning for all tasks of the study.
        every = len(results["tasks"])
        once = joint_tuning_share(**following, num_labels=labels, tasks=every)
        flops = np.mean([cell["train_flops"] for cell in cells]) * every
        items.append(CostItem({"flops": float(flops)}, once))
        items += [CostItem({"seconds": cell["seconds"]}, per_task_share(count)) for cell in cells]
        return [*items, CostItem({"parameters": whole}, shared_share(count, count))]
    probed: dict[str, list[str]] = {}
    for task, labels in budgets.items():
        cell = _cell(results, task, way, labels)
        method, size = cell["setting"]["method"], sizes.get(task)
        kept = None
        if size:
            kept = size["heads"][method]
            if way == "scratch" or method not in METHODS or METHODS[method].updates_model:
                kept += size["network"]
            else:
                probed.setdefault(formats[task] if way == "in_domain" else "all", []).append(task)
        spent = {"flops": cell["train_flops"], "seconds": cell["seconds"], "parameters": kept}
        items.append(CostItem(spent, per_task_share(count)))
    for users in probed.values():
        network = sizes[users[0]]["network"] if way == "in_domain" else whole
        items.append(CostItem({"parameters": network}, shared_share(len(users), count)))
    return items


_TUNING = ("steps", "epochs", "batch_size")


def _pretraining(
    results: dict[str, Any], way: str, tasks: list[str], formats: dict[str, str]
) -> list[CostItem]:
    """Of each format that has tasks, or of all formats once."""
    paid: dict[str, tuple[Row, int]] = {}
    for row in results["ledger"]:
        if row["arm"] == way and row["task"] in tasks and row["pretrain_flops"]:
            key = formats[row["task"]] if way == "in_domain" else "all"
            paid[key] = row, paid.get(key, (row, 0))[1] + 1
    return [
        CostItem(
            {"flops": row["pretrain_flops"], "seconds": row["pretrain_seconds"]},
            shared_share(users, len(tasks)),
        )
        for row, users in paid.values()
    ]


def _curve(results: dict[str, Any], task: str, way: str) -> tuple[list[int], list[float]]:
    """Budgets, and the metric's mean over the seeds made non-decreasing."""
    values: dict[int, list[float]] = {}
    for cell in results["cells"]:
        if (cell["task"], cell["arm"]) == (task, way):
            values.setdefault(cell["labels"], []).append(cell["value"])
    budgets = sorted(values)
    means = [float(np.mean(values[labels])) for labels in budgets]
    return budgets, isotonic_regression(means).x.tolist()


def _cell(results: dict[str, Any], task: str, way: str, labels: int) -> Row:
    """The first seed's; what is read of it is the same for all."""
    where = (task, way, labels)
    return next(c for c in results["cells"] if (c["task"], c["arm"], c["labels"]) == where)


def _ways(results: dict[str, Any]) -> list[str]:
    found = {cell["arm"] for cell in results["cells"]}
    return [way for way in WAYS if way in found]


def _budgets(results: dict[str, Any]) -> list[int]:
    return sorted({cell["labels"] for cell in results["cells"]})
