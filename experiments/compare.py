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

from experiments import cli, spread, studies
from fm.study import runner
from fm.study.config import StudyConfig

# Small enough for the job's ten minutes; smollm2-135m does better and takes its time.
IMPORTED = "minilm-l6"
TASKS = "film_reviews,digits"
FULL = f"{TASKS},spoken_words,tweet_entities"


def define(values: flags.FlagValues) -> None:
    """The flags of a study."""
    studies.define(values, tasks=TASKS, out="runs/compare", imported=IMPORTED, full=FULL)
    spread.define(values)


def main(values: flags.FlagValues) -> None:
    """Runs the study, or shows the one that is there."""
    config, out = configure(values), cli.out_dir(values)
    with spread.over(values, "compare") as cells:
        results = runner.run_compare(config, out, cells)
    studies.finish(results, out)


def configure(values: flags.FlagValues) -> StudyConfig:
    """The study that the flags describe."""
    return studies.configure(values, "compare", IMPORTED, FULL)


if __name__ == "__main__":
    cli.run("compare", __doc__, define, main)
