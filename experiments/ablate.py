"""Varies one config field, or runs a registered ablation: a study per value, side by side.

    fm ablate --field=objective.mask_ratio --values=0.5,0.75 --tasks=digits

A field is a dotted path in the recipe (model.num_layers, optimizer.name, steps,
finetune.min_steps, ...), in a task (max_corpus_items) or in the study (pretrain_seeds). With
--ablation=NAME the variants are those of an ablation registered with `of_configs`; built in are
pretraining_progress, what_transfers, upstream and scaling (docs/ablations.md). Every value gets the
same arms, labels and seeds and a report of its own under OUT; OUT/report.html has them side by
side, each value against the first, with the same evidence. Variants share pretraining runs, in
OUT/pretrained, where recipe and corpus are equal.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from absl import flags

from experiments import cli, config_flags, stages, study_flags
from experiments.finish import finish
from fm.errors import UserError
from fm.progress_lines import say
from fm.study import analysis, config_ablations, run_dir
from fm.study.ablations import ABLATIONS, Ablation, Variant, ablation_names, field_ablation
from fm.study.arms import REFERENCE_ARM
from fm.study.config import StudyConfig
from fm.study.dry_run import variant_stages
from fm.study.runner import run_compare

_OF_THE_ABLATION = ("field", "values", "ablation")


def define(values: flags.FlagValues) -> None:
    """Defines the field, its values, and the flags of a study."""
    flags.DEFINE_string(
        "field",
        "objective.mask_ratio",
        "dotted path of the field that is varied",
        flag_values=values,
    )
    flags.DEFINE_list(
        "values",
        ["0.5", "0.75"],
        "values of the field; the first is the baseline",
        flag_values=values,
    )
    flags.DEFINE_string(
        "ablation", None, "name of a registered ablation, instead of --field", flag_values=values
    )
    study_flags.define(values, suite_name="ablate", out="runs/ablate")


def main(values: flags.FlagValues) -> None:
    """Runs one study per variant, then compares them."""
    out = cli.out_dir(values)
    ablation, config, variants = configure(values)
    configs = {name: variant.config for name, variant in variants.items()}
    run_dir.check_existing_run(config, out)
    folders = {name: out / f"{ablation.name}={name.replace('/', '_')}" for name in configs}
    results = {}
    for number, (name, variant) in enumerate(configs.items(), 1):
        say(f"variant {number} of {len(configs)}: {ablation.name} = {name}")
        if earlier := variants[name].same_rivals_as:
            config_ablations.reuse_rival_cells(variant, folders[earlier], folders[name])
        results[name] = run_compare(
            variant,
            folders[name],
            shared_dir=out / "pretrained",
            accepted=lambda: run_dir.init(config, out),
        )
        print(f"\n{ablation.name} = {name}")
        finish(results[name], folders[name])
    print(f"\n{ablation.name}: side by side")
    merged = analysis.merge_studies(ablation.name, results, folders)
    if ablation.arm:
        merged |= config_ablations.ablation_sections(ablation, variants, results, folders)
    finish(merged, out)


def dry_run(values: flags.FlagValues) -> None:
    """Prints the stages of every variant's study."""
    ablation, config, variants = configure(values)
    configs = {
        f"{ablation.name}={name}": variant.config
        for name, variant in variants.items()
        if variant.config is not None
    }
    stages.show("ablate", config, cli.out_dir(values), variant_stages(configs))


def configure(
    values: flags.FlagValues,
) -> tuple[Ablation, dict[str, Any], dict[str, Variant]]:
    """Returns the ablation, its config as in config.json, and its variants by name.

    Raises:
      UserError: a flag names something that does not exist or does not fit.
    """
    ablation = _ablation(values)
    base = config_flags.study_config(
        values,
        StudyConfig,
        "ablate",
        lambda: study_flags.configure(
            values, "ablate", suite_name="ablate", upstream=ablation.name == "upstream"
        ),
        beside=_OF_THE_ABLATION,
    )
    if any(path == ablation.name for path, _, _ in config_flags.settings(values)):
        raise UserError(f"--set={ablation.name}: is what the ablation varies; give --values")
    chosen = not values["arms"].using_default_value or values["config"].value
    if ablation.arm and not chosen:
        base = dataclasses.replace(base, arms=(REFERENCE_ARM, ablation.arm))
    if ablation.arm and ablation.arm not in base.arms:
        raise UserError(f"--arms={','.join(base.arms)}: {ablation.name} needs {ablation.arm}")
    variants = dict(ablation.variants(base))
    if len(variants) < 2:
        raise UserError("--values: takes at least two different values, such as 0.5,0.75")
    config = base.to_dict() | {"experiment": "ablate", "field": ablation.name}
    return ablation, config, variants


def _ablation(values: flags.FlagValues) -> Ablation:
    saved = config_flags.saved_config(values, "ablate", _OF_THE_ABLATION)
    if saved is not None and not values["ablation"].present:
        # A saved ablation holds the field or name, and no values: more can be added to it.
        if saved.get("field") in ablation_names(of_configs=True):
            return ABLATIONS[saved["field"]]
        if not values["values"].present:
            raise UserError(
                f"--config={values['config'].value}: give --values too, the first being the "
                f"baseline; a saved ablation holds its field alone ({saved.get('field')})"
            )
        if not values["field"].present:
            values.__setattr__("field", str(saved.get("field")))
    name = values["ablation"].value
    if name is None:
        return field_ablation(values["field"].value, values["values"].value)
    if name not in ablation_names(of_configs=True):
        known = ", ".join(ablation_names(of_configs=True)) or "none registered"
        raise UserError(f"--ablation={name}: must be an ablation of configs ({known})")
    return ABLATIONS[name]


if __name__ == "__main__":
    cli.run("ablate", __doc__, define, main, dry_run=dry_run)
