"""Is pretraining worth it here, against training from scratch? The main job.

    python -m experiments.compare

About ten minutes on two cores: pretrains on unlabelled film reviews and digits (and on other
data of the same format), adapts every arm to 20 to 400 labels under one tuning grid, and writes
runs/compare/report.html, results.json and predictions.csv. The same command again goes on where
it was, or says that it is finished.

Own data:

    python -m experiments.compare --dataset=reviews.csv --out=runs/mine
"""

from __future__ import annotations

from absl import flags

from experiments import command, studies
from fm.study import study

# Small enough for the job's ten minutes; smollm2-135m does better and takes its time.
IMPORTED = "minilm-l6"


def define(values: flags.FlagValues) -> None:
    """The flags of a study."""
    studies.define(values, tasks="film_reviews,digits", out="runs/compare", imported=IMPORTED)


def main(values: flags.FlagValues) -> None:
    """Runs the study, or shows the one that is there."""
    out = command.out(values)
    studies.finish(study.run(studies.configure(values, "compare", IMPORTED), out), out)


if __name__ == "__main__":
    command.run("compare", __doc__, define, main)
