"""Ablations of whole studies: along a pretraining run, what transfers, upstream data, scaling.

Each variant is a study with a changed config, run by `fm ablate`. Its rows hold the
difference of one pretrained arm from training from scratch within the same variant.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fm.errors import UserError
from fm.evaluation.design import Design
from fm.evaluation.scaling_surface import AXES, bootstrap_exponents, fit_surface
from fm.files import atomic_write, read_bytes
from fm.model.config import ModelConfig
from fm.study import analysis, run_dir
from fm.study.ablations import Ablation, Row, Variant, register_ablation
from fm.study.arm_spec import IN_DOMAIN, OUT_OF_DOMAIN
from fm.study.arms import ARMS, REFERENCE_ARM
from fm.study.comparisons import with_differences
from fm.study.config import Recipe, StudyConfig, TaskConfig
from fm.study.transfer import TRANSFERS

# Shares of a pretraining run after which its checkpoints are adapted.
PROGRESS_SHARES = (1, 2, 4, 8, 16)
_NUM_CHECKPOINTS = 16
# Widths and pretraining lengths of the scaling grid, as multiples of the recipe's.
SCALING_WIDTHS = (0.5, 1.0, 2.0)
SCALING_STEPS = (1 / 16, 1 / 4, 1.0)


def _with_recipes(config: StudyConfig, change: Callable[[Recipe], Recipe]) -> StudyConfig:
    """Returns the config with every recipe of every task changed."""

    def changed(task: TaskConfig) -> TaskConfig:
        others = tuple(change(recipe) for recipe in task.other_recipes)
        return dataclasses.replace(task, recipe=change(task.recipe), other_recipes=others)

    return _with_tasks(config, changed)


def _with_fixed_steps(config: StudyConfig, ablation: str) -> StudyConfig:
    """Returns the config with recipes that pretrain for exactly their `steps`; says what it drops.

    A run that goes on until its loss is flat, or time is up, has no length to take shares of.
    """
    open_ended = dict.fromkeys(("early_stopping_patience", "max_pretrain_minutes"))
    for task in config.tasks:
        for recipe in (task.recipe, *task.other_recipes):
            if dropped := [name for name in open_ended if getattr(recipe, name) is not None]:
                print(
                    f"{ablation}: {task.name} is pretrained for {recipe.steps:,} steps or a share "
                    f"of them, without {' and '.join(dropped)}",
                    file=sys.stderr,
                )
    return _with_recipes(config, lambda recipe: dataclasses.replace(recipe, **open_ended))


def _with_tasks(config: StudyConfig, change: Callable[[TaskConfig], TaskConfig]) -> StudyConfig:
    return dataclasses.replace(config, tasks=tuple(change(task) for task in config.tasks))


def _pretraining_progress(config: StudyConfig) -> dict[str, Variant]:
    """The checkpoints of one run at 1/16 to all of its steps; the whole run is the first."""
    config, variants = _with_fixed_steps(config, "pretraining_progress"), {}
    for share in reversed(PROGRESS_SHARES):

        def at_share(recipe: Recipe, share: int = share) -> Recipe:
            period = recipe.steps // _NUM_CHECKPOINTS
            if period < 1:
                raise UserError(
                    f"--ablation=pretraining_progress: steps={recipe.steps} is too short a run; "
                    f"takes {_NUM_CHECKPOINTS} steps or more"
                )
            whole = share == _NUM_CHECKPOINTS
            step = recipe.steps if whole else share * period
            return dataclasses.replace(recipe, keep_period=period, transfer_step=step)

        variants[f"{share} of {_NUM_CHECKPOINTS}"] = Variant(
            {"share": share / _NUM_CHECKPOINTS}, config=_with_recipes(config, at_share)
        )
    return _sharing_rivals(variants)


def _what_transfers(config: StudyConfig) -> dict[str, Variant]:
    """The whole checkpoint, and parts of it, see `fm.study.transfer.TRANSFERS`."""
    variants = {}
    few = [task.name for task in config.tasks if task.recipe.model.num_layers < 2]
    for how in TRANSFERS:
        if how == "top_reinitialized" and few:
            print(
                f"skipping {how}: it needs 2 or more layers, and the model of {', '.join(few)} has "
                "fewer",
                file=sys.stderr,
            )
            continue

        def with_transfer(recipe: Recipe, how: str = how) -> Recipe:
            return dataclasses.replace(recipe, transfer=how)

        variants[how] = Variant({"kept": how}, config=_with_recipes(config, with_transfer))
    return _sharing_rivals(variants)


def _upstream(config: StudyConfig) -> dict[str, Variant]:
    """The out_of_domain arm on data from near to far, and on the task's own data cut to their size.

    Raises:
      UserError: a task has fewer than two upstream data sets, or tasks have different numbers.
    """
    for task in config.tasks:
        check_upstream(task.name, task.upstream_datasets)
    counts = {len(task.upstream_datasets) for task in config.tasks}
    if len(counts) > 1:
        raise UserError(
            "--ablation=upstream: takes tasks with the same number of upstream data sets, not "
            + ", ".join(f"{t.name} with {len(t.upstream_datasets)}" for t in config.tasks)
        )
    count = counts.pop()
    names = ["near", *(f"middle {n}" for n in range(1, count - 1)), "far"]

    def on(
        choose: Callable[[TaskConfig], str], size_of: Callable[[TaskConfig], str | None]
    ) -> StudyConfig:
        return _with_tasks(
            config,
            lambda task: dataclasses.replace(
                task,
                out_of_domain_dataset=choose(task),
                out_of_domain_size_of=size_of(task),
                excluded_arms=tuple(a for a in task.excluded_arms if a != OUT_OF_DOMAIN),
            ),
        )

    def variant(name: str, changed: StudyConfig) -> Variant:
        data = {task.name: task.out_of_domain_dataset for task in changed.tasks}
        return Variant({"upstream": name, "datasets": data}, config=changed)

    def rank(n: int) -> Callable[[TaskConfig], str]:
        return lambda task: task.upstream_datasets[n]

    own = {
        "own data": on(lambda task: task.dataset, lambda task: None),
        "own data, as much as far": on(lambda task: task.dataset, rank(-1)),
    }
    others = {name: on(rank(n), lambda task: None) for n, name in enumerate(names)}
    variants = {name: variant(name, changed) for name, changed in (own | others).items()}
    return _sharing_rivals(variants)


def _scaling(config: StudyConfig) -> dict[str, Variant]:
    """Widths times pretraining lengths; the recipe's own are the first."""
    config = _with_fixed_steps(config, "scaling")
    variants: dict[str, Variant] = {}
    for width in sorted(SCALING_WIDTHS, key=lambda width: width != 1.0):
        first = ""
        for share in sorted(SCALING_STEPS, reverse=True):

            def scaled(recipe: Recipe, width: float = width, share: float = share) -> Recipe:
                steps = max(1, round(share * recipe.steps))
                model = scaled_width(recipe.model, width)
                return dataclasses.replace(recipe, model=model, steps=steps)

            name = f"width {width:g}, steps {share:g}"
            fields = {"width": width, "share": share, "size": f"width ×{width:g}"}
            variants[name] = Variant(
                fields, config=_with_recipes(config, scaled), same_rivals_as=first
            )
            first = first or name
    return variants


def check_upstream(task: str, datasets: Sequence[str]) -> None:
    """Raises UserError if a task has fewer than two upstream data sets, or one twice."""
    if len(datasets) < 2 or len(set(datasets)) < len(datasets) or not all(datasets):
        raise UserError(
            f"--ablation=upstream: {task} needs two or more different data sets, from near to far; "
            "give one task and --out_of_domain_dataset=NEAR,FAR"
        )


def scaled_width(model: ModelConfig, factor: float) -> ModelConfig:
    """Returns the model with its width, heads and MLP multiplied, heads as wide as before.

    Raises:
      UserError: half of an odd number of heads is asked for.
    """
    heads, kv_heads = factor * model.num_heads, factor * model.num_kv_heads
    if not heads.is_integer() or not kv_heads.is_integer() or min(heads, kv_heads) < 1:
        raise UserError(
            f"a model of {model.num_heads} heads and {model.num_kv_heads} key/value heads cannot "
            f"be made {factor:g} times as wide; set model.num_heads to an even number"
        )
    return dataclasses.replace(
        model,
        d_model=round(factor * model.d_model),
        num_heads=int(heads),
        num_kv_heads=int(kv_heads),
        mlp_dim=round(factor * model.mlp_dim),
    )


def _sharing_rivals(variants: Mapping[str, Variant]) -> dict[str, Variant]:
    """Returns variants that differ in pretraining only, so that rivals are run for the first."""
    first, *_ = variants
    return {
        name: each if name == first else dataclasses.replace(each, same_rivals_as=first)
        for name, each in variants.items()
    }


def reuse_rival_cells(
    config: StudyConfig, earlier_dir: pathlib.Path, out_dir: pathlib.Path
) -> None:
    """Copies the cells of arms that pretraining does not affect from another variant's study."""
    for task in config.tasks:
        for arm in config.arms_of(task):
            if ARMS[arm].depends_on_pretraining:
                continue
            for num_labels in task.label_budgets:
                name = f"{task.name}-{arm}-{num_labels}.json"
                source, target = earlier_dir / "cells" / name, out_dir / "cells" / name
                if source.exists() and not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    atomic_write(target, read_bytes(source))


def ablation_sections(
    ablation: Ablation,
    variants: Mapping[str, Variant],
    studies: Mapping[str, dict[str, Any]],
    folders: Mapping[str, pathlib.Path],
) -> dict[str, Any]:
    """Returns the sections of results.json that an ablation of configs adds.

    A row per task, variant and label budget: the score of `ablation.arm` and its difference from
    training from scratch, paired by seed and item, with p-values adjusted over all rows.

    Args:
      ablation: with an `arm`.
      variants: by name.
      studies: results by variant.
      folders: output folders by variant.
    """
    rows: list[Row] = []
    all_scores: list[np.ndarray] = []
    differences: list[tuple[np.ndarray, Design] | None] = []
    for name, variant in variants.items():
        path = folders[name] / run_dir.PREDICTIONS_FILE
        scores, groups = analysis.read_scores(path, studies[name]), analysis.read_item_groups(path)
        pretrained = {row["name"]: row for row in studies[name]["pretrained"]}
        pretrain_seeds = studies[name]["config"].get("pretrain_seeds", 1)
        for task in studies[name]["tasks"]:
            run = pretrained.get(f"{task['name']}/{ablation.arm}/0", {})
            size = task["corpora"].get(ARMS[ablation.arm].corpus, {})
            for key in (each for each in scores if each[:2] == (task["name"], ablation.arm)):
                rival = scores.get((task["name"], REFERENCE_ARM, key[2]))
                rows.append(
                    _row(task, key[2], scores[key])
                    | {"arm": ablation.arm, "baseline": REFERENCE_ARM, "variant": name}
                    | variant.fields
                    | {each: run.get(each) for each in ("steps", "tokens", "parameters")}
                    | {each: size.get(each) for each in ("examples", "characters")}
                )
                all_scores.append(scores[key])
                seeds = len(scores[key])
                design = analysis.difference_design(
                    ablation.arm, seeds, pretrain_seeds, groups[task["name"]]
                )
                compared = rival is not None and seeds > 1
                differences.append((scores[key] - rival, design) if compared else None)
    rows = with_differences(rows, differences)
    more = ablation.add_sections(rows, all_scores) if ablation.add_sections else {}
    return {"ablations": [ablation.to_dict()], ablation.name: rows, **more}


def _row(task: dict[str, Any], num_labels: int, scores: np.ndarray) -> Row:
    return {
        "task": task["name"],
        "modality": task["modality"],
        "num_labels": num_labels,
        "metric": task["metric"],
        "value": float(scores.mean()),
        "values": scores.mean(axis=1).tolist(),
        "items": scores.shape[1],
    }


def scaling_fits(rows: Sequence[Row], scores: Sequence[np.ndarray]) -> Row:
    """Returns the section `scaling_fits`: a row per task with the fitted surface of the error.

    Exponents have 95% intervals by resampling seeds and items; see `fm.evaluation.scaling_surface`.
    """
    fits = []
    for task in dict.fromkeys(row["task"] for row in rows):
        chosen = [n for n, row in enumerate(rows) if row["task"] == task]
        points = np.array(
            [[rows[n][axis] for axis in ("parameters", "tokens", "num_labels")] for n in chosen]
        )
        errors = [1 - scores[n] for n in chosen]
        surface = fit_surface(points, np.array([each.mean() for each in errors]))
        row = {"task": task, "arm": rows[chosen[0]]["arm"], "points": len(chosen)}
        row |= {"floor": surface.floor, "r2": surface.r2}
        intervals = bootstrap_exponents(points, errors)
        row["terms"] = [
            {
                "axis": axis,
                "center": surface.centers[n],
                "scale": surface.scales[n],
                "exponent": surface.exponents[n],
                "low": low,
                "high": high,
            }
            if np.isfinite(low)
            else {"axis": axis}
            for n, (axis, (low, high)) in enumerate(zip(AXES, intervals.tolist(), strict=True))
        ]
        fits.append(row)
    return {"scaling_fits": fits}


for _ablation in (
    Ablation(
        "pretraining_progress",
        "Gain over training from scratch along one pretraining run",
        _pretraining_progress,
        figure={
            **{"kind": "difference_curve", "field": "share"},
            "label": "share of the pretraining run",
        },
        of_configs=True,
        arm=IN_DOMAIN,
    ),
    Ablation(
        "what_transfers",
        "Gain over training from scratch by what is kept of the checkpoint",
        _what_transfers,
        figure={"kind": "forest", "field": "kept"},
        of_configs=True,
        arm=IN_DOMAIN,
    ),
    Ablation(
        "upstream",
        "Gain over training from scratch by what was pretrained on",
        _upstream,
        figure={"kind": "forest", "field": "upstream"},
        of_configs=True,
        arm=OUT_OF_DOMAIN,
    ),
    Ablation(
        "scaling",
        "Error by model size, pretraining tokens and labels",
        _scaling,
        figure={"kind": "surface", "field": "size"},
        of_configs=True,
        arm=IN_DOMAIN,
        add_sections=scaling_fits,
    ),
):
    register_ablation(_ablation)
