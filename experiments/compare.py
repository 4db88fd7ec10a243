"""The main job: is pretraining worth it against training from scratch?

    python -m experiments.compare

Pretrains on unlabeled film reviews and digits, adapts every arm to 20 to 400 labels, each seed
choosing its settings on its own labels, and writes runs/compare/report.html, results.json and
predictions.csv. The same command resumes, and says so when the study is finished.

Own data:

    python -m experiments.compare --dataset=reviews.csv --out=runs/mine

More labels and longer pretraining, with spoken words and named entities of tweets:

    python -m experiments.compare --profile=full --out=runs/compare-full

On a Ray cluster (see experiments/cluster.py), with the same results:

    python -m experiments.compare --cluster=ray
"""

from __future__ import annotations

from absl import flags

from experiments import cli, cluster, config_flags, stages, study_flags
from fm.study.config import StudyConfig
from fm.study.dry_run import study_stages
from fm.study.runner import run_compare

# smollm2-135m is more accurate and slower.
PUBLISHED_MODEL = "minilm-l6"


def define(values: flags.FlagValues) -> None:
    """Defines the flags of a study."""
    study_flags.define(
        values, suite_name="compare", out="runs/compare", published_model=PUBLISHED_MODEL
    )
    cluster.define(values)


def main(values: flags.FlagValues) -> None:
    """Runs the study and writes its report."""
    config, out_dir = configure(values), cli.out_dir(values)
    with cluster.cell_executor(values, "compare") as executor:
        results = run_compare(config, out_dir, executor)
    study_flags.finish(results, out_dir)


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
