"""The main job: is pretraining worth it against training from scratch?

    fm compare

Pretrains on unlabeled film reviews and digits, adapts every arm to 20 to 400 labels, each seed
choosing its settings on its own labels, and writes runs/compare/report.html, results.json and
predictions.csv. The same command resumes, and says so when the study is finished.

Own data:

    fm compare --dataset=reviews.csv --out=runs/mine

The best model of each task, by validation, kept for fm predict:

    fm compare --dataset=reviews.csv --out=runs/mine --keep_best

More labels and longer pretraining, with spoken words and named entities of tweets:

    fm compare --profile=full --out=runs/compare-full

On a Ray cluster (see experiments/cluster.py), with the same results:

    fm compare --cluster=ray
"""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any

import jax
from absl import flags

from experiments import cli, cluster, config_flags, stages, study_flags
from experiments.finish import finish
from fm.parallel.mesh import current_mesh
from fm.study.best_models import keep_best
from fm.study.config import StudyConfig
from fm.study.dry_run import study_stages
from fm.study.runner import CompareStudy, run_compare

# smollm2-135m is more accurate and slower.
PUBLISHED_MODEL = "minilm-l6"


def define(values: flags.FlagValues) -> None:
    """Defines the flags of a study."""
    study_flags.define(
        values, suite_name="compare", out="runs/compare", published_model=PUBLISHED_MODEL
    )
    cluster.define(values)
    flags.DEFINE_boolean(
        "keep_best",
        False,
        "keep the best model of each task, by validation, in OUT/best/TASK for fm predict",
        flag_values=values,
    )


def main(values: flags.FlagValues) -> None:
    """Runs the study and writes its report."""
    config, out_dir = configure(values), cli.out_dir(values)
    with cluster.cell_executor(values, "compare") as executor:
        results = run_compare(config, out_dir, executor)
    finish(results, out_dir)
    if values["keep_best"].value:
        _keep_best(config, results, out_dir)


def _keep_best(config: StudyConfig, results: dict[str, Any], out_dir: pathlib.Path) -> None:
    mesh = current_mesh()
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        kept = keep_best(CompareStudy(config), results, out_dir)
    for each in kept:
        print("\n".join(each.lines))
    folders = [each.folder for each in kept if each.folder is not None]
    if folders:
        cli.print_next("label new files", "predict", model=folders[0], dataset="FILE")


def dry_run(values: flags.FlagValues) -> None:
    """Prints the stages of the study."""
    config = configure(values)
    stages.show("compare", config.to_dict(), cli.out_dir(values), study_stages(config))


def configure(values: flags.FlagValues) -> StudyConfig:
    """Returns the study that the flags describe."""
    return config_flags.study_config(
        values,
        StudyConfig,
        "compare",
        lambda: study_flags.configure(
            values, "compare", suite_name="compare", published_model=PUBLISHED_MODEL
        ),
    )


if __name__ == "__main__":
    cli.run("compare", __doc__, define, main, dry_run=dry_run)
