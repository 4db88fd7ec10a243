"""Is pretraining worth it here, against training from scratch? The main job.

    python -m experiments.compare

About ten minutes on two cores: pretrains on unlabelled film reviews and digits (and on other
data of the same format), adapts every arm to 20 to 400 labels under one tuning grid, and writes
runs/compare/report.html, results.json and predictions.csv. The same command again goes on where
it was, or says that it is finished.

Own data:

    python -m experiments.compare --dataset=reviews.csv --out=runs/mine

More of everything, and spoken words and the named entities of tweets as well:

    python -m experiments.compare --profile=full --out=runs/compare-full

On a Ray cluster (see `experiments.spread`), with the same results:

    python -m experiments.compare --cluster=ray
"""

from __future__ import annotations

from absl import flags

from experiments import command, spread, studies
from fm.study.config import StudyConfig
from fm.study.runner import run_compare

# Small enough for the job's ten minutes; smollm2-135m does better and takes its time.
PUBLISHED_MODEL = "minilm-l6"


def define(values: flags.FlagValues) -> None:
    """The flags of a study."""
    studies.define(
        values, suite_name="compare", out="runs/compare", published_model=PUBLISHED_MODEL
    )
    spread.define(values)


def main(values: flags.FlagValues) -> None:
    """Runs the study, or shows the one that is there."""
    config, out = configure(values), command.out(values)
    with spread.over(values, "compare") as executor:
        results = run_compare(config, out, executor)
    studies.finish(results, out)


def configure(values: flags.FlagValues) -> StudyConfig:
    """The study that the flags describe."""
    return studies.configure(
        values, "compare", suite_name="compare", published_model=PUBLISHED_MODEL
    )


if __name__ == "__main__":
    command.run("compare", __doc__, define, main)
